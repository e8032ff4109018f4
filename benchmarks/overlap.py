"""How much of the waiting a lazy result hides behind columnar work that does not need the scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
from coffea.nanoevents import NanoEventsFactory
from coffea.processor import ProcessorABC
from typing_extensions import override

from benchmarks.harness import Row, Timed, in_turns, jets_file, script, serve, sooner
from sonic_parsl import Model
from sonic_parsl.workflows.btag_ttbar import schema

SERVICE_MS = 300.0
EVENTS, QUICK_EVENTS = 5000, 100
"""About 40 000 jets: three requests, which the model's instances take at the same time."""
SLOW = Timed("slow", SERVICE_MS, instances=4, max_batch_size=16384)
SHARES, QUICK_SHARES = (0.5, 1.0, 2.0), (1.0,)
"""Columnar work, in times of the inference."""
REACH = 0.87
FEATURES = ["pt", "eta", "phi", "mass"]


class Analysis(ProcessorABC):  # type: ignore[misc]
    """Scores jets, and looks for top quarks among them without the scores.

    Parameters
    ----------
    passes
        How often the columnar work is done, to make it long enough; 0 leaves it out.
    scored
        Whether jets are scored.
    """

    model = Model(SLOW.name, inputs=FEATURES, outputs=FEATURES)

    def __init__(self, *, passes: int, scored: bool) -> None:
        self.passes = passes
        self.scored = scored

    @override
    def process(self, events: Any) -> dict[str, float]:
        """Return a mean score and a mean mass of three jets."""
        jets = events.Jet
        if self.scored:
            jets = ak.with_field(jets, self.model(jets), "score")  # sent now, awaited when first read
        masses = [_top_mass(jets) for _ in range(self.passes)]
        score = float(ak.mean(jets.score.pt)) if self.scored else 0.0
        return {"score": score, "mass": sum(masses)}

    @override
    def postprocess(self, accumulator: dict[str, float]) -> dict[str, float]:
        """Return what was accumulated, as it is."""
        return accumulator


def _top_mass(jets: Any) -> float:
    """Return the mean mass of triples of hard, central jets."""
    good = jets[(jets.pt > 40) & (abs(jets.eta) < 2.4)]
    four = ak.zip({name: good[name] for name in FEATURES}, with_name="PtEtaPhiMLorentzVector", behavior=good.behavior)
    one, two, three = ak.unzip(ak.combinations(four[:, :5], 3))
    return float(ak.mean((one + two + three).mass))


def wall_time(path: Path, *, passes: int, scored: bool) -> float:
    """Return the wall time of ``process()`` on fresh events, in s; its inputs are read already."""
    events = NanoEventsFactory.from_root({str(path): "Events"}, schemaclass=schema, mode="virtual").events()
    for name in FEATURES:
        ak.materialize(events.Jet[name])
    start = time.perf_counter()
    Analysis(passes=passes, scored=scored).process(events)
    return time.perf_counter() - start


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure process() with a model of 300 ms: its wall time beside the longer of inference and columnar work."""
    with jets_file(QUICK_EVENTS if quick else EVENTS) as path, serve([SLOW]):
        inference = partial(wall_time, path, passes=0, scored=True)
        return [_compare(path, inference, share, rounds) for share in (QUICK_SHARES if quick else SHARES)]


def _compare(path: Path, inference: Callable[[], float], share: float, rounds: int) -> Row:
    """Compare for columnar work that takes `share` times as long as the inference."""
    wall_time(path, passes=1, scored=False)
    once = min(wall_time(path, passes=1, scored=False) for _ in range(3))
    passes = max(1, math.ceil(share * inference() / once))
    both, alone, columnar = in_turns(
        rounds,
        partial(wall_time, path, passes=passes, scored=True),
        inference,
        partial(wall_time, path, passes=passes, scored=False),
    )
    longer = [max(pair) for pair in zip(alone, columnar, strict=True)]
    return sooner(f"columnar work {share:g} x as long", both, longer, "s", REACH)


main = script(measure)

if __name__ == "__main__":
    main()
