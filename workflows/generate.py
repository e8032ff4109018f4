"""Write NanoAOD-like ttbar files of any size: for load tests and demonstrations, not for physics.

Jets follow the ttbar samples in their means and in how features depend on the
true flavour, one jet independent of the next.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from sonic_parsl.errors import ConfigError

EVENTS_PER_STEP = 20_000
"""What is in memory at once, about 20 MB; every step has random numbers of its own."""
EVENTS_PER_LUMI = 1000
MAX_ABS_ETA = 4.7
MIN_PT_GEV = 15.0

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Flavour:
    """Jets of one true flavour, as measured in the ttbar samples.

    Attributes
    ----------
    hadron
        Value of ``Jet_hadronFlavour``.
    per_event
        Mean number of jets an event.
    log_pt, log_pt_width, eta_width
        Of log(pt/GeV) and of eta.
    secondary_vertices, electrons, muons
        Mean number in a jet.
    neutral_hadrons
        Mean share of the jet's energy.
    """

    hadron: int
    per_event: float
    log_pt: float
    log_pt_width: float
    eta_width: float
    secondary_vertices: float
    electrons: float
    muons: float
    neutral_hadrons: float


FLAVOURS = (
    Flavour(5, 1.9, 4.2, 0.6, 1.3, 1.2, 0.26, 0.21, 0.10),
    Flavour(4, 0.9, 4.0, 0.6, 1.4, 0.7, 0.15, 0.06, 0.14),
    Flavour(0, 5.1, 3.6, 0.7, 2.0, 0.24, 0.10, 0.05, 0.29),
)


def generate(path: str | Path, *, events: int, seed: int = 0) -> Path:
    """Write a file with an ``Events`` tree that coffea reads with ``NanoAODSchema``.

    Memory does not grow with ``events``. The same seed gives the same events, and a
    shorter file the first events of a longer one.

    Parameters
    ----------
    path
        The file to write; its folder is made, and the file appears when it is complete.
    events
        Events to write, zero or more.
    seed
        Zero or more.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        If ``events`` or ``seed`` is negative.
    """
    if events < 0 or seed < 0:
        raise ConfigError(f"Cannot generate {events} events with seed {seed}: neither may be negative.")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".generate-", dir=target.parent) as temporary:
        partial = Path(temporary) / target.name
        with uproot.recreate(partial) as file:
            _write(file, events=events, seed=seed)
        return partial.replace(target)


def _write(file: Any, *, events: int, seed: int) -> None:
    tree = file.mktree("Events", {name: ak.type(array) for name, array in _step(1, first=0, seed=seed).items()})
    for first in range(0, events, EVENTS_PER_STEP):
        tree.extend(_step(min(EVENTS_PER_STEP, events - first), first=first, seed=seed))


def _step(n_events: int, *, first: int, seed: int) -> dict[str, ak.Array]:
    """Return the branches of some events; the whole step is drawn, so that its head is always the same."""
    rng = np.random.default_rng([seed, first // EVENTS_PER_STEP])
    number = np.arange(first, first + EVENTS_PER_STEP)
    branches = {
        "run": np.ones(EVENTS_PER_STEP, np.uint32),
        "luminosityBlock": (1 + number // EVENTS_PER_LUMI).astype(np.uint32),
        "event": (1 + number).astype(np.uint64),
        "genWeight": np.ones(EVENTS_PER_STEP, np.float32),
        "Jet": _jets(rng),
    }
    return {name: ak.Array(array[:n_events]) for name, array in branches.items()}


def _jets(rng: np.random.Generator) -> ak.Array:
    """Return the jets of one step, in each event by falling pt."""
    per_event = rng.poisson([flavour.per_event for flavour in FLAVOURS], size=(EVENTS_PER_STEP, len(FLAVOURS)))
    kind = np.repeat(np.tile(np.arange(len(FLAVOURS)), EVENTS_PER_STEP), per_event.ravel())
    counts = per_event.sum(axis=1)
    columns = {**_kinematics(rng, kind), **_content(rng, kind), **_truth(rng, kind)}
    columns["nConstituents"] = _constituents(rng, columns["pt"])
    order = np.lexsort((-columns["pt"], np.repeat(np.arange(EVENTS_PER_STEP), counts)))
    return ak.unflatten(ak.zip({name: column[order] for name, column in columns.items()}), counts)


def _parameter(name: str, kind: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = np.array([getattr(flavour, name) for flavour in FLAVOURS], dtype=float)[kind]
    return values


def _kinematics(rng: np.random.Generator, kind: npt.NDArray[np.int64]) -> Columns:
    pt = np.maximum(np.exp(rng.normal(_parameter("log_pt", kind), _parameter("log_pt_width", kind))), MIN_PT_GEV)
    eta = np.clip(rng.normal(0, _parameter("eta_width", kind)), -MAX_ABS_ETA, MAX_ABS_ETA)
    phi = rng.uniform(-np.pi, np.pi, len(kind))
    mass = pt * np.exp(rng.normal(-2.0, 0.35, len(kind)))
    return {name: value.astype(np.float32) for name, value in (("pt", pt), ("eta", eta), ("phi", phi), ("mass", mass))}


def _content(rng: np.random.Generator, kind: npt.NDArray[np.int64]) -> Columns:
    """Draw what is in the jets: counts, and energy fractions that sum to one (a Dirichlet draw)."""
    numbers = {
        "nSVs": rng.poisson(_parameter("secondary_vertices", kind)),
        "nElectrons": rng.poisson(_parameter("electrons", kind)),
        "nMuons": rng.poisson(_parameter("muons", kind)),
    }
    neutral = _parameter("neutral_hadrons", kind)
    shares = {
        "chHEF": rng.gamma(4 * (0.8 - neutral)),
        "neHEF": rng.gamma(4 * neutral),
        "neEmEF": rng.gamma(0.8, size=len(kind)),
        "chEmEF": rng.gamma(1.0, size=len(kind)) * (numbers["nElectrons"] > 0),
        "muEF": rng.gamma(1.0, size=len(kind)) * (numbers["nMuons"] > 0),
    }
    total = sum(shares.values())
    fractions = {name: (share / total).astype(np.float32) for name, share in shares.items()}
    return {**fractions, **{name: number.astype(np.uint8) for name, number in numbers.items()}}


def _constituents(rng: np.random.Generator, pt: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.clip(rng.normal(6 * np.log(pt) - 11, 4.5), 1, 100).astype(np.uint8)


def _truth(rng: np.random.Generator, kind: npt.NDArray[np.int64]) -> Columns:
    hadron = _parameter("hadron", kind).astype(np.int16)
    heavy = hadron * rng.choice([-1, 1], size=len(kind))
    light = rng.choice([21, 21, 21, -3, -2, -1, 1, 2, 3], size=len(kind))
    parton = np.where(hadron > 0, heavy, light)
    return {"hadronFlavour": hadron.astype(np.uint8), "partonFlavour": parton.astype(np.int16)}
