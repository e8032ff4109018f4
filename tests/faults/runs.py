"""Runs to be disturbed: scores and histograms of generated events, and what they are when nothing goes wrong."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import psutil
from coffea.nanoevents import NanoEventsFactory
from coffea.processor import Runner
from parsl.dataflow.states import States
from typing_extensions import override

from sonic_parsl.executors.site import Site
from sonic_parsl.report import Report
from sonic_parsl.workflows import btag_ttbar
from sonic_parsl.workflows.btag_inputs import CLASSES
from tests.executors.scores import Scores, in_process
from tests.leaks import our_processes, told, wait_until

EVENTS = 6_000
CHUNK = 100
FIRST_TASKS = 6
"""A run is in its middle once so many tasks are done, of some sixty: one looks at the file, the others are chunks."""
LEASE_S = 5.0

SITE = """
workers: {{provider: local, workers-per-node: 2, worker-init: '{worker_init}'}}
servers:
  triton: {{device: cpu, count: {count}, lease: {lease_s:g}, start-timeout: 120, worker-init: '{init}', {more}}}
driver: {{{driver}}}
"""


def write_site(
    folder: Path, *, count: int = 2, init: str = "", worker_init: str = "", more: str = "", driver: str = ""
) -> Path:
    """Write a site file with a short lease."""
    path = folder / "fault-site.yaml"
    path.write_text(
        SITE.format(count=count, init=init, worker_init=worker_init, more=more, driver=driver, lease_s=LEASE_S)
    )
    return path


def wait_at(gate: Path) -> str:
    """Return a line of a shell that waits, as a job in a queue does, while the file `gate` exists."""
    return f"while [ -e {gate} ]; do sleep 0.2; done"


class ScoresAndHistograms(Scores):
    """Brings every score home beside the analysis' own histograms."""

    @override
    def process(self, events: Any) -> dict[str, Any]:
        return {**btag_ttbar.BTagTTbar.process(self, events), **super().process(events)}


class Scored(btag_ttbar.BTagTTbar):
    """The analysis of scores that are there already."""

    def __init__(self, scores: npt.NDArray[Any]) -> None:
        columns = ak.zip({name: scores[:, column] for column, name in enumerate(CLASSES)})
        self.tagger = lambda jets: ak.unflatten(columns, ak.num(jets))  # type: ignore[assignment]


def _events_of(path: Path) -> Any:
    return NanoEventsFactory.from_root({str(path): "Events"}, schemaclass=btag_ttbar.schema, mode="virtual").events()


class Analysis:
    """The analysis of one file of generated events, and its right result.

    Attributes
    ----------
    right
        Scores of all jets, from ONNX Runtime in this process; shape (jets, classes).
    right_output
        What the analysis makes of them, in this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.right: npt.NDArray[Any] = in_process(str(path), 0, EVENTS)
        self.right_output = Scored(self.right).process(_events_of(path))

    def run(self, executor: Any, *, chunksize: int = CHUNK, **options: Any) -> Any:
        """Run it."""
        runner = Runner(executor=executor, schema=btag_ttbar.schema, chunksize=chunksize, **options)
        return runner({"ttbar": {"files": {str(self.path): "Events"}}}, ScoresAndHistograms())

    def run_and(self, disturb: Callable[[], object], site: Site, **options: Any) -> Any:
        """Run it at a site, and disturb the run after its first chunks."""
        before, disturbed = tasks_done(site), threading.Event()

        def later() -> None:
            wait_until(lambda: tasks_done(site) >= before + FIRST_TASKS, 60)
            disturbed.set()
            disturb()

        thread = threading.Thread(target=later)
        thread.start()
        try:
            out = self.run(site.coffea_executor(status=False), **options)
            assert disturbed.is_set(), "the run ended before it was disturbed"
            return out
        finally:
            thread.join()

    def check(self, out: Any) -> None:
        """Check that each event is there once, with the right scores, and that the histograms are right."""
        self.check_output(out)
        by_start = sorted((start, stop, scores) for (_, start, stop), scores in out["scores"].items())
        assert [start for start, _, _ in by_start] == [0, *(stop for _, stop, _ in by_start[:-1])]
        scores = np.concatenate([scores for _, _, scores in by_start])
        np.testing.assert_allclose(scores, self.right, atol=1e-6)

    def check_output(self, out: Any) -> None:
        """Check what the analysis itself brings home: how many events and jets, and the histograms."""
        for name in ("events", "jets", "b score", "b tags"):
            assert out[name] == self.right_output[name], name


def tasks_done(site: Site) -> int:
    """Return how many tasks Parsl's workers have done."""
    return int(site.dfk.task_state_counts[States.exec_done])


def longest_wait(before: Report, after: Report) -> float:
    """Return how long readers of one chunk were blocked at most between two reports, in seconds."""
    waited: defaultdict[tuple[object, ...], float] = defaultdict(float)
    for sign, report in ((-1, before), (1, after)):
        for line in report.chunk_records:
            waited[line.fileuuid, line.entrystart, line.entrystop, line.model] += sign * line.waiting_s
    return max(waited.values())


def wait_whole(site: Site, servers: int = 2) -> None:
    """Wait until the pool is as large as it should be."""
    wait_until(
        lambda: len(site.pool.table.ready) == servers == len(site.pool.table.servers),
        120,
        what=lambda: site.pool.table,
    )


def tritons() -> list[Any]:
    """Return the running Tritons of this test run."""
    return our_processes("bin/tritonserver --model")


def agents() -> list[Any]:
    """Return the running agents of this test run, without the shells that started them."""
    names = told(our_processes("sonic_parsl.server.agent"), lambda process: (process, process.name()))
    return [process for process, name in names if "python" in name]


def workers() -> list[Any]:
    """Return Parsl's workers of this test run, the busiest first."""
    pools: dict[int, list[psutil.Process]] = {}
    for process in our_processes("multiprocessing.spawn"):
        with suppress(psutil.NoSuchProcess):
            pools.setdefault(process.ppid(), []).append(process)
    # The first that a pool starts is a helper of its own.
    found = [process for pool in pools.values() for process in sorted(pool, key=psutil.Process.create_time)[1:]]
    return sorted(found, key=lambda process: -process.cpu_times().user)
