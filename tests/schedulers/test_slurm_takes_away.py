"""What a real Slurm takes away in mid-run costs no event: servers, workers, nodes without power, half of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from parsl.providers import SlurmProvider
from typing_extensions import override

from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.executors.site import Site
from sonic_parsl.protocol import ServerInfo
from sonic_parsl.report import Report
from tests.faults.runs import Analysis, agents, longest_wait, wait_whole, workers
from tests.leaks import wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import LEASE_S, up, write_site
from tests.schedulers.slurm import CPUS, Slurm

WORKERS = {"provider": "slurm", "partition": "low", "request": ["--cpus-per-task=2", "--exclude=gpu[1-2],fpga1,ipu1"]}
GROUPS: dict[str, dict[str, Any]] = {
    "low": {"device": "a100", "partition": "low", "request": ["--gres=gpu:1", "--nodelist=gpu1"]},
    "scavenge": {"device": "a100", "partition": "scavenge", "request": ["--gres=gpu:1", "--nodelist=gpu2"]},
    "pair": {"partition": "low", "nodes": 2, "request": "--nodelist=fpga1,ipu1"},
}
SERVERS = 4
SOON_S = LEASE_S + 15
"""When a server that was taken away has left the table: a lease, and what Slurm takes to end or to start a job."""
SMALL = 25
"""Events of a chunk: the run should go on for longer than a lease."""
SILENT_S = LEASE_S + FLOOR_S + 5
"""What was asked of a server that falls silent is answered by another one within a lease and an attempt's time-out."""


class Attentive(SlurmProvider):  # type: ignore[misc]
    """Is asked more often than once a minute, so that a test need not wait for it."""

    @property
    @override
    def status_polling_interval(self) -> int:
        return 5


@pytest.fixture(scope="module")
def shared_site(slurm: Slurm, analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    groups = {label: {"provider": "slurm", **group} for label, group in GROUPS.items()}
    path = write_site(tmp_path_factory.mktemp("slurm"), WORKERS, groups)
    with up(path, analysis, SERVERS, slurm.jobs) as site:
        yield site


@pytest.fixture
def site(shared_site: Site, slurm: Slurm) -> Iterator[Site]:
    wait_whole(shared_site, SERVERS)
    yield shared_site
    slurm.restore_power()


def server_of(site: Site, group: str) -> ServerInfo:
    return next(entry.info for entry in site.pool.table.ready if entry.info.group == group)


def left(site: Site, server: ServerInfo) -> Callable[[], bool]:
    return lambda: server.id not in {entry.info.id for entry in site.pool.table.servers}


def workers_job(site: Site) -> str:
    """Return the job of the workers that was asked for last."""
    *_, last = site.dfk.executors["workers"].blocks_to_job_id.values()
    return str(last)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


def preempt(node: str, partition: str) -> None:
    """Let a job of higher priority take a node."""
    ask = ["--partition", partition, "--nodelist", node, f"--cpus-per-task={CPUS}", "--output=/dev/null"]
    command("sbatch", *ask, "--wrap", "sleep 3")


def test_a_block_of_two_nodes_is_two_servers(site: Site) -> None:
    pair = [entry.info for entry in site.pool.table.ready if entry.info.group == "pair"]
    assert len(pair) == 2
    assert len({(info.block_id, info.job_id) for info in pair}) == 1
    assert sorted(agent.environ()["SLURMD_NODENAME"] for agent in agents()) == ["fpga1", "gpu1", "gpu2", "ipu1"]
    assert all(line.rows > 0 for line in site.report().servers)


# Servers ------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["low", "scavenge"])
def test_a_preempted_server_is_replaced(group: str, site: Site, slurm: Slurm, analysis: Analysis) -> None:
    victim = server_of(site, group)

    def preempted() -> None:
        preempt(slurm.node_of(victim.job_id), "gpu")
        wait_until(left(site, victim), SOON_S, what=slurm.jobs)

    analysis.check(analysis.run_and(preempted, site, chunksize=SMALL))
    wait_whole(site, SERVERS)
    # Slurm puts a job of `low` back into its queue, where it is not left.
    wait_until(lambda: victim.job_id not in {line.split()[0] for line in slurm.jobs()}, SOON_S, what=slurm.jobs)


def test_a_power_cut_of_a_servers_node_costs_no_event_and_no_more_than_a_lease_and_a_time_out(
    site: Site, slurm: Slurm, analysis: Analysis
) -> None:
    victim, before = server_of(site, "low"), site.report()

    def power_cut() -> None:
        slurm.cut_power("gpu1")
        wait_until(left(site, victim), SOON_S)

    analysis.check(analysis.run_and(power_cut, site, chunksize=SMALL))
    assert_answered_soon(site, before)
    slurm.restore_power()
    wait_whole(site, SERVERS)


def assert_answered_soon(site: Site, before: Report) -> None:
    """Check that what was asked of a server that fell silent did not wait for longer than a pool promises."""
    after = site.report()
    assert after.retries > before.retries, "nothing was asked of it"
    assert longest_wait(before, after) < SILENT_S


def test_a_power_cut_of_one_node_of_a_block_costs_no_event(site: Site, slurm: Slurm, analysis: Analysis) -> None:
    victim, before = server_of(site, "pair"), site.report()
    servers = {entry.info.id for entry in site.pool.table.ready}

    def power_cut_of_one() -> None:
        slurm.cut_power("ipu1")
        wait_until(lambda: servers - {entry.info.id for entry in site.pool.table.ready}, SOON_S)

    analysis.check(analysis.run_and(power_cut_of_one, site, chunksize=SMALL))
    assert_answered_soon(site, before)
    slurm.restore_power()
    command("scancel", victim.job_id, check=False)  # Slurm may have ended it itself, or let it go on with one node
    wait_whole(site, SERVERS)


# Workers ------------------------------------------------------------------------


def test_a_power_cut_of_the_workers_node_costs_no_event(site: Site, slurm: Slurm, analysis: Analysis) -> None:
    """Others go on elsewhere: the node stays dark until the end of the run."""
    analysis.check(analysis.run_and(lambda: slurm.cut_power(slurm.node_of(workers_job(site))), site, chunksize=SMALL))


def test_preempted_workers_cost_no_event(site: Site, slurm: Slurm, analysis: Analysis) -> None:
    """Slurm puts their job back into its queue, and starts it again."""
    lost = workers()
    assert lost

    def preempted() -> None:
        preempt(slurm.node_of(workers_job(site)), "cpu")
        wait_until(lambda: gone(lost), SOON_S, what=slurm.jobs)

    analysis.check(analysis.run_and(preempted, site, chunksize=SMALL))


def test_workers_whose_job_is_cancelled_cost_no_event(
    site: Site, slurm: Slurm, analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.dfk.executors["workers"].provider, "__class__", Attentive)
    lost = workers()
    assert lost

    def cancelled() -> None:
        command("scancel", workers_job(site))
        wait_until(lambda: gone(lost), SOON_S, what=slurm.jobs)

    analysis.check(analysis.run_and(cancelled, site, chunksize=SMALL))
