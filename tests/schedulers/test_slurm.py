"""Workers and servers as jobs of a real Slurm: each group asks for its device, nothing is lost, nothing stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import SlurmProvider
from typing_extensions import override

from sonic_parsl.executors.site import Site
from sonic_parsl.server import install
from tests.faults.runs import Analysis, tritons, wait_whole, workers
from tests.leaks import POOL_WORDS, our_processes, told, wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import GONE_S, PORTS, up, write_site
from tests.schedulers.slurm import Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "nodes": 2, "workers-per-node": 1, "request": ["--cpus-per-task=2"]}
GROUPS: dict[str, dict[str, Any]] = {
    "gpu": {"device": "a100", "partition": "gpu", "request": ["--gres=gpu:1", "--nodelist=gpu1"], "count": 2},
    "fpga": {"device": "u250", "partition": "fpga", "request": "--gres=fpga:1", "launcher": "srun"},
    "ipu": {"device": "mk2", "partition": "ipu", "request": "--gres=ipu:2", "launcher": "srun"},
}
SERVERS = 4


class Gloomy(SlurmProvider):  # type: ignore[misc]
    """Calls every job failed, and is asked often."""

    @override
    def status(self, job_ids: list[str]) -> list[JobStatus]:
        return [JobStatus(JobState.FAILED, "so it says") for _ in job_ids]

    @property
    @override
    def status_polling_interval(self) -> int:
        return 1


@pytest.fixture(scope="module")
def shared_site(slurm: Slurm, analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    groups = {label: {"provider": "slurm", **group} for label, group in GROUPS.items()}
    groups["fpga"] |= {"runtime": "host", "binary": str(sites_own_triton(folder))}
    path = write_site(folder, WORKERS, groups)
    with up(path, analysis, SERVERS, slurm.jobs) as site:
        yield site


def sites_own_triton(folder: Path) -> Path:
    """Return a ``tritonserver`` that runs as it is, with its backends beside it, as a site has one."""
    installed = install.find()
    (folder / "backends").symlink_to(installed.backends)
    (folder / "bin").mkdir()
    binary = folder / "bin" / "tritonserver"
    binary.write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH={':'.join(installed.libraries)} PATH={installed.python_bin}:$PATH\n"
        f'exec {installed.tritonserver} "$@" --backend-directory={folder}/backends\n'
    )
    binary.chmod(0o755)
    return binary


@pytest.fixture
def site(shared_site: Site) -> Site:
    wait_whole(shared_site, SERVERS)
    return shared_site


def test_servers_on_three_kinds_of_nodes_share_a_run(site: Site, slurm: Slurm) -> None:
    lines = site.report().servers
    assert sorted(line.group for line in lines) == ["fpga", "gpu", "gpu", "ipu"]
    assert all(line.rows > 0 for line in lines)
    partitions = [line.split()[1] for line in slurm.jobs()]
    assert sorted(partitions) == ["cpu", "fpga", "gpu", "gpu", "ipu"]
    assert {line.job_id for line in lines} < {line.split()[0] for line in slurm.jobs()}


def test_a_server_runs_the_sites_own_triton(site: Site) -> None:
    (triton,) = [one for one in tritons() if one.environ()["SLURMD_NODENAME"] == "fpga1"]
    binary = Path(str(site.settings.servers["fpga"].binary))
    assert f"--backend-directory={binary.parents[1]}/backends" in triton.cmdline()


def test_a_job_of_workers_has_some_on_each_of_its_nodes(site: Site) -> None:
    assert [manager["block_id"] for manager in site.dfk.executors["workers"].connected_managers()] == ["0", "0"]
    assert {process.environ()["SLURMD_NODENAME"] for process in workers()} == {"cpu1", "cpu2"}
    assert all(process.cpu_times().user > 1.0 for process in workers()), "some have had no chunk"


def test_everything_listens_on_the_named_interface_within_the_range_of_ports(site: Site) -> None:
    listening = {
        (name, connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)  # IPv4, as IPv6 writes it
        for name, connections in told(
            {*our_processes(*POOL_WORDS), *psutil.Process().children(recursive=True)},  # Parsl's
            lambda process: (process.name(), process.net_connections(kind="inet")),
        )
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    }
    assert len({port for _, _, port in listening}) >= SERVERS + 2, "servers, registry, Parsl"
    assert {(name, host, port) for name, host, port in listening if host != "127.0.0.1" or not in_range(port)} == set()
    assert all(entry.info.address.startswith("127.0.0.1:") for entry in site.pool.table.ready)


def in_range(port: int) -> bool:
    return PORTS[0] <= port <= PORTS[1]


def test_each_server_says_which_devices_its_job_was_given(site: Site) -> None:
    given = {group: sorted(line.devices for line in site.report().servers if line.group == group) for group in GROUPS}
    assert given == {"gpu": ["0", "1"], "fpga": ["0"], "ipu": ["0,1"]}


def test_a_server_that_its_user_cancels_in_mid_run_is_replaced(site: Site, slurm: Slurm, analysis: Analysis) -> None:
    victim = next(entry.info for entry in site.pool.table.ready if entry.info.group == "fpga")
    analysis.check(analysis.run_and(lambda: command("scancel", victim.job_id), site))
    wait_until(lambda: victim.id not in {entry.info.id for entry in site.pool.table.servers}, GONE_S)
    wait_whole(site, SERVERS)
    assert victim.id not in {entry.info.id for entry in site.pool.table.ready}


def test_a_server_that_the_provider_calls_failed_serves_until_its_lease_is_over(
    site: Site, analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = next(entry.info for entry in site.pool.table.ready if entry.info.group == "fpga")
    executor, before = site.dfk.executors["fpga"], rows_of(site, victim.id)
    with monkeypatch.context() as patch:
        patch.setattr(executor.provider, "__class__", Gloomy)
        wait_until(lambda: executor.status_facade[victim.block_id].state == JobState.FAILED, 30)
        analysis.check(analysis.run(site.coffea_executor(status=False)))
    assert rows_of(site, victim.id) > before
    assert list(executor.blocks_to_job_id)[-1] == victim.block_id, "another one was asked for"
    command("scancel", "--signal=KILL", "--full", victim.job_id)
    wait_until(lambda: victim.id not in {entry.info.id for entry in site.pool.table.servers}, GONE_S)
    wait_whole(site, SERVERS)


def rows_of(site: Site, server: str) -> int:
    return next(line.rows for line in site.report().servers if line.id == server)


def test_what_slurm_says_does_not_hide_that_a_server_is_gone(site: Site, slurm: Slurm) -> None:
    """Parsl asks once a minute: until then it calls a job that is gone RUNNING."""
    victim = next(entry.info for entry in site.pool.table.ready if entry.info.group == "ipu")
    executor = site.dfk.executors["ipu"]
    command("scancel", "--signal=KILL", "--full", victim.job_id)
    wait_until(lambda: len(executor.blocks_to_job_id) > 1 + int(victim.block_id), 30)
    assert not executor.status_facade[victim.block_id].terminal
    wait_whole(site, SERVERS)
