"""Jets of the ttbar samples as one table, and its split by event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from sonic_parsl.workflows import samples
from sonic_parsl.workflows.btag_inputs import FEATURES, MAX_ABS_ETA, MIN_PT_GEV

HADRON_FLAVOUR = (5, 4, 0)
"""Values of ``Jet_hadronFlavour`` in the order of ``btag_inputs.CLASSES``."""
REFERENCES = ("btagPNetB", "btagPNetCvB")


@dataclass(frozen=True)
class Jets:
    """Jets of many events, one row a jet.

    Attributes
    ----------
    features
        float32, shape ``(n_jets, n_features)``, columns as in ``FEATURES``.
    truth
        int64, shape ``(n_jets,)``: the index into ``CLASSES``.
    event
        int64, shape ``(n_jets,)``: the number of the event the jet is in, counted over all files.
    references
        float32, shape ``(n_jets, 2)``: scores of CMS's ParticleNet, for comparison only.
    n_events
        Events read, those without a selected jet included.
    """

    features: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    event: npt.NDArray[np.int64]
    references: npt.NDArray[np.float32]
    n_events: int

    def of_events(self, events: npt.NDArray[np.int64]) -> Jets:
        """Return the jets of these events."""
        keep = np.isin(self.event, events)
        return Jets(
            self.features[keep], self.truth[keep], self.event[keep], self.references[keep], n_events=len(events)
        )


def load(names: tuple[str, ...] = samples.TTBAR) -> Jets:
    """Read the selected jets of some samples.

    Raises
    ------
    DataError
        If a sample has not been fetched.
    """
    fields = (*FEATURES, *REFERENCES, "hadronFlavour")
    tables = [_table(name, fields) for name in names]
    first_event = np.cumsum([0, *(n_events for _, n_events in tables)])
    event = np.concatenate([table["event"] + first for (table, _), first in zip(tables, first_event, strict=False)])
    columns = {field: np.concatenate([table[field] for table, _ in tables]) for field in fields}
    return Jets(
        features=np.stack([columns[field] for field in FEATURES], axis=1).astype(np.float32),
        truth=_class_of(columns["hadronFlavour"]),
        event=event.astype(np.int64),
        references=np.stack([columns[field] for field in REFERENCES], axis=1).astype(np.float32),
        n_events=int(first_event[-1]),
    )


def split(jets: Jets, *, seed: int, test_fraction: float) -> tuple[Jets, Jets]:
    """Split into training and held-out jets, so that no event has jets in both."""
    shuffled = np.random.default_rng(seed).permutation(jets.n_events)
    n_test = round(test_fraction * jets.n_events)
    return jets.of_events(shuffled[n_test:]), jets.of_events(shuffled[:n_test])


def _table(name: str, fields: tuple[str, ...]) -> tuple[dict[str, npt.NDArray[Any]], int]:
    with uproot.open({samples.path(name): "Events"}) as tree:
        events = tree.arrays([f"Jet_{field}" for field in fields])
    selected = (events["Jet_pt"] > MIN_PT_GEV) & (abs(events["Jet_eta"]) < MAX_ABS_ETA)
    table = {field: ak.to_numpy(ak.flatten(events[f"Jet_{field}"][selected])) for field in fields}
    table["event"] = np.repeat(np.arange(len(events)), ak.to_numpy(ak.sum(selected, axis=1)))
    return table, len(events)


def _class_of(flavour: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    classes: npt.NDArray[np.int64] = np.argmax(flavour[:, None] == np.array(HADRON_FLAVOUR), axis=1)
    return classes
