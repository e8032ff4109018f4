"""The same through a real Grid Engine, with a consumable complex for the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sonic_parsl.executors.site import Site
from tests.faults.runs import Analysis, agents, tritons, wait_whole, workers
from tests.leaks import wait_until
from tests.schedulers.daemons import command
from tests.schedulers.gridengine import DEVICES, GridEngine
from tests.schedulers.runs import GONE_S, GRIDENGINE_SERVERS, GRIDENGINE_WORKERS, up, write_site


@pytest.fixture(scope="module")
def shared_site(cell: GridEngine, analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    groups = {"fpga": {**GRIDENGINE_SERVERS, "count": DEVICES}}
    path = write_site(tmp_path_factory.mktemp("gridengine"), GRIDENGINE_WORKERS, groups)
    with up(path, analysis, DEVICES, cell.jobs) as site:
        yield site
    assert not list(cell.temporary.iterdir())


@pytest.fixture
def site(shared_site: Site) -> Site:
    wait_whole(shared_site, DEVICES)
    return shared_site


def test_servers_that_each_hold_a_device_share_a_run(site: Site, cell: GridEngine) -> None:
    lines = site.report().servers
    assert {line.job_id for line in lines} < {line.split()[0] for line in cell.jobs()}
    assert all(line.rows > 0 for line in lines)
    assert "fpga=0" in command("qhost", "-F", "fpga").replace(".000000", "")


def test_what_jobs_write_is_in_their_own_temporary_folders(site: Site, cell: GridEngine) -> None:
    written = [Path(process.environ()["TMPDIR"]) for process in (*agents(), *tritons(), *workers())]
    folders = {path.relative_to(cell.temporary).parts[0] for path in written}
    assert {name.partition(".")[0] for name in folders} == {line.split()[0] for line in cell.jobs()}
    assert len(list(cell.temporary.glob("*/sonic-parsl-server-*"))) == DEVICES


def test_a_server_that_its_user_deletes_in_mid_run_is_replaced(
    site: Site, cell: GridEngine, analysis: Analysis
) -> None:
    victim = site.pool.table.ready[0].info
    analysis.check(analysis.run_and(lambda: command("qdel", victim.job_id), site))
    wait_until(lambda: victim.id not in {entry.info.id for entry in site.pool.table.servers}, GONE_S)
    wait_whole(site, DEVICES)
    assert victim.id not in {entry.info.id for entry in site.pool.table.ready}
    wait_until(lambda: not list(cell.temporary.glob(f"{victim.job_id}.*")), GONE_S)
