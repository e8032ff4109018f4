"""Servers whose walltime is shorter than the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from coffea.processor import Runner
from typing_extensions import override

from sonic_parsl.executors.site import Site
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.workflows import btag_ttbar
from tests.faults.runs import Analysis, ScoresAndHistograms
from tests.schedulers.runs import up, write_site
from tests.schedulers.slurm import Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}
SHORT = {
    "provider": "slurm",
    "partition": "gpu",
    "request": ["--gres=gpu:1"],
    "device": "a100",
    "walltime": 60,
    "drain-before": 30,
}
GENERATIONS = 3
CHUNK, PACE_S = 12, 0.3
"""So that the run outlives them: 500 chunks, two at a time, each of which takes a while beside its scores."""


class Paced(ScoresAndHistograms):
    """Has other work to do in each chunk."""

    @override
    def process(self, events: Any) -> dict[str, Any]:
        time.sleep(PACE_S)
        return super().process(events)


def test_a_run_that_outlives_three_generations_of_servers_has_no_failed_request(
    slurm: Slurm, analysis: Analysis, tmp_path: Path
) -> None:
    with up(write_site(tmp_path, WORKERS, {"gpu": SHORT}), analysis, 1, slurm.jobs) as site:
        runner = Runner(executor=site.coffea_executor(status=False), schema=btag_ttbar.schema, chunksize=CHUNK)
        analysis.check(runner({"ttbar": {"files": {str(analysis.path): "Events"}}}, Paced()))
        report = site.report()
    assert len(left(site)) >= GENERATIONS
    assert {reason for _, reason in left(site)[:GENERATIONS]} == {"its walltime ends soon"}
    assert (report.retries, report.failovers, report.warnings) == (0, 0, ())
    assert report.events_in == report.events_out
    assert len([line for line in report.servers if line.rows]) > GENERATIONS


def left(site: Site) -> list[tuple[str, str]]:
    assert isinstance(site.pool, ServerPool)
    return [(departure.block_id, departure.reason) for departure in site.pool.departures]
