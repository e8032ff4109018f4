"""An analysis that scores jets by coffea's own ``triton_wrapper``, and the same by a Model."""

from __future__ import annotations

import io
import time
from abc import abstractmethod
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from coffea.ml_tools import triton_wrapper
from coffea.processor import IterativeExecutor, ProcessorABC, Runner
from typing_extensions import override

from benchmarks.harness import Row, Timed, in_turns, jets_file, script, serve, sooner
from sonic_parsl import Model
from sonic_parsl.workflows.btag_ttbar import schema

SERVICE_MS, QUICK_SERVICE_MS = (1.0, 10.0, 100.0), (1.0, 10.0)
INSTANCES, QUICK_INSTANCES = 8, 2
MAX_BATCH = 64
BATCH_SIZES = (16, 32, 64)
"""Explicit batch sizes of the wrapper that are tried; the fastest is the peer."""
EVENTS, QUICK_EVENTS = 1000, 50
"""About 8000 jets, and 400."""
CHUNKS = 2
REACH = {1.0: None, 10.0: 4.0, 100.0: None}
FEATURES = ["pt", "eta", "phi", "mass"]


class Scoring(ProcessorABC):  # type: ignore[misc]
    """Brings the scores of all jets home."""

    @abstractmethod
    def score(self, jets: Any) -> list[Any]:
        """Return the scores of jets, an array for each class."""

    @override
    def process(self, events: Any) -> dict[str, list[Any]]:
        """Return the scores of a chunk, an array of shape (jets, classes)."""
        return {"scores": [np.stack(self.score(events.Jet), axis=1)]}

    @override
    def postprocess(self, accumulator: Any) -> Any:
        """Return what was accumulated, as it is."""
        return accumulator


class Ours(Scoring):
    """Scores by a Model."""

    def __init__(self, model: str) -> None:
        self.model = Model(model, inputs=FEATURES, outputs=FEATURES)

    @override
    def score(self, jets: Any) -> list[Any]:
        scores = self.model(jets)
        return [ak.to_numpy(ak.flatten(scores[name])) for name in FEATURES]


class Wrapper(triton_wrapper):  # type: ignore[misc]
    """coffea's wrapper, told which columns are the tensor, as its documentation has it."""

    def prepare_awkward(self, jets: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of its call with numpy arrays."""
        flat = ak.flatten(jets)
        columns = [flat[name][:, np.newaxis] for name in FEATURES]
        return [["OUTPUT0"], {"INPUT0": ak.values_astype(ak.concatenate(columns, axis=1), "float32")}], {}


class Peer(Scoring):
    """Scores by coffea's wrapper."""

    def __init__(self, model: str, address: str, batch_size: int) -> None:
        self.wrapper = Wrapper(f"triton+grpc://{address}/{model}/1", {"ssl": False}, batch_size=batch_size)

    @override
    def score(self, jets: Any) -> list[Any]:
        scores = self.wrapper(jets)["OUTPUT0"]
        return [ak.to_numpy(scores[:, i]) for i in range(len(FEATURES))]


@dataclass(frozen=True)
class Analysis:
    """A file, and how it is cut into chunks."""

    path: Path
    chunksize: int

    def run(self, processor: ProcessorABC, *, maxchunks: int | None = None) -> Any:
        """Run a processor over the file, in this process, one chunk after the other; return the scores."""
        runner = Runner(executor=IterativeExecutor(), schema=schema, chunksize=self.chunksize, maxchunks=maxchunks)
        with redirect_stdout(io.StringIO()):  # the executor draws its progress, whatever its `status` says
            return runner({"generated": {"files": {str(self.path): "Events"}}}, processor)["scores"]

    def wall_time(self, processor: ProcessorABC, *, maxchunks: int | None = None) -> float:
        """Return how long coffea's Runner takes, in s."""
        start = time.perf_counter()
        self.run(processor, maxchunks=maxchunks)
        return time.perf_counter() - start


def compare(analysis: Analysis, model: Timed, address: str, rounds: int) -> Row:
    """Measure one service time."""
    ours = Ours(model.name)
    peers = {size: Peer(model.name, address, size) for size in BATCH_SIZES}
    best = min(BATCH_SIZES, key=lambda size: analysis.wall_time(peers[size], maxchunks=1))
    for got, expected in zip(analysis.run(ours), analysis.run(peers[best]), strict=True):
        np.testing.assert_array_equal(got, expected)
    of_ours, of_peer = in_turns(rounds, partial(analysis.wall_time, ours), partial(analysis.wall_time, peers[best]))
    what = f"{model.service_ms:g} ms a request, wrapper's batch {best}"
    return sooner(what, of_ours, of_peer, "s", REACH[model.service_ms])


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure a coffea analysis that scores each jet: its wall time with a Model and with coffea's triton_wrapper."""
    events = QUICK_EVENTS if quick else EVENTS
    instances = QUICK_INSTANCES if quick else INSTANCES
    models = [
        Timed(f"service_{ms:g}_ms", ms, instances, MAX_BATCH) for ms in (QUICK_SERVICE_MS if quick else SERVICE_MS)
    ]
    with jets_file(events) as path, serve(models, tls=False) as site:
        analysis = Analysis(path, events // CHUNKS)
        address = site.pool.table.ready[0].info.address
        return [compare(analysis, model, address, rounds) for model in models]


main = script(measure)

if __name__ == "__main__":
    main()
