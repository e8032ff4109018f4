"""Servers whose walltime is shorter than the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coffea.processor import Runner
from typing_extensions import override

from sonic_parsl.executors.site import Site
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.workflows import btag_ttbar
from tests.faults.runs import Analysis, ScoresAndHistograms
from tests.schedulers.gridengine import GridEngine
from tests.schedulers.runs import GRIDENGINE_SERVERS, GRIDENGINE_WORKERS, up, write_site
from tests.schedulers.slurm import Slurm

SHORT = {"walltime": 60, "drain-before": 30}
GENERATIONS = 3
START_S = 5.0
"""A server needs at least so long on a machine with nothing else to do."""
CHUNK, PACE_S = 12, 0.3
"""So that the run outlives them: 500 chunks, two at a time, each of which takes a while beside its scores."""


class Paced(ScoresAndHistograms):
    """Has other work to do in each chunk."""

    @override
    def process(self, events: Any) -> dict[str, Any]:
        time.sleep(PACE_S)
        return super().process(events)


def test_a_run_on_slurm_outlives_three_generations_of_servers(slurm: Slurm, analysis: Analysis, tmp_path: Path) -> None:
    group = {"provider": "slurm", "partition": "gpu", "request": ["--gres=gpu:1"], "device": "a100"}
    workers = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}
    assert_outlives(write_site(tmp_path, workers, {"gpu": {**group, **SHORT}}), analysis, slurm.jobs)


def test_a_run_on_grid_engine_outlives_three_generations_of_servers(
    cell: GridEngine, analysis: Analysis, tmp_path: Path
) -> None:
    path = write_site(tmp_path, GRIDENGINE_WORKERS, {"fpga": {**GRIDENGINE_SERVERS, **SHORT}})
    assert_outlives(path, analysis, cell.jobs)


def assert_outlives(path: Path, analysis: Analysis, jobs: Callable[[], list[str]]) -> None:
    """Check that a run at a site of one server has no failed request, and replacements in time."""
    with up(path, analysis, 1, jobs) as site:
        runner = Runner(executor=site.coffea_executor(status=False), schema=btag_ttbar.schema, chunksize=CHUNK)
        with gaps_s(site) as gaps:
            analysis.check(runner({"ttbar": {"files": {str(analysis.path): "Events"}}}, Paced()))
        report = site.report()
    assert len(left(site)) >= GENERATIONS
    # A start that takes half as long again as those before it may be late by the rest; not asked for early, it
    # would be late by all of it.
    assert max(gaps, default=0.0) < START_S / 2
    assert {reason for _, reason in left(site)[:GENERATIONS]} == {"its walltime ends soon"}
    assert (report.retries, report.failovers, report.warnings) == (0, 0, ())
    assert report.events_in == report.events_out
    assert len([line for line in report.servers if line.rows]) > GENERATIONS


@contextmanager
def gaps_s(site: Site) -> Iterator[list[float]]:
    """Yield the lengths of the times without a ready server, in s; they are there at the end."""
    over, found = threading.Event(), list[float]()

    def follow() -> None:
        since = None
        while not over.wait(0.01):
            if site.pool.table.ready:
                found.extend([] if since is None else [time.monotonic() - since])
                since = None
            elif since is None:
                since = time.monotonic()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def left(site: Site) -> list[tuple[str, str]]:
    assert isinstance(site.pool, ServerPool)
    return [(departure.block_id, departure.reason) for departure in site.pool.departures]
