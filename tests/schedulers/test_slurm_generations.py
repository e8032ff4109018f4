"""Servers whose walltime is shorter than the run."""

from __future__ import annotations

from pathlib import Path

from sonic_parsl.executors.site import Site
from sonic_parsl.pool.pool import ServerPool
from tests.faults.runs import Analysis
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


def test_a_run_that_outlives_three_generations_of_servers_has_no_failed_request(
    slurm: Slurm, analysis: Analysis, tmp_path: Path
) -> None:
    with up(write_site(tmp_path, WORKERS, {"gpu": SHORT}), analysis, 1, slurm.jobs) as site:
        while len(left(site)) < GENERATIONS:
            analysis.check(analysis.run(site.coffea_executor(status=False)))
            assert site.pool.table.ready, "no server was ready in time"
        report = site.report()
    assert {reason for _, reason in left(site)[:GENERATIONS]} == {"its walltime ends soon"}
    assert (report.retries, report.failovers, report.warnings) == (0, 0, ())
    assert report.events_in == report.events_out
    assert len([line for line in report.servers if line.rows]) > GENERATIONS


def left(site: Site) -> list[tuple[str, str]]:
    assert isinstance(site.pool, ServerPool)
    return [(departure.block_id, departure.reason) for departure in site.pool.departures]
