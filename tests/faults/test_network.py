"""A network that is cut between workers and a server: the server lives in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parsl.providers import LocalProvider

import sonic_parsl as sonic
from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.executors.site import Site
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.report import Report
from tests.faults.far import Far, InNamespace, far_place
from tests.faults.runs import LEASE_S, Analysis, longest_wait, wait_whole, write_site
from tests.leaks import assert_nothing_is_left, wait_until
from tests.live.conftest import PACKAGED
from tests.schedulers.apt import provide


@pytest.fixture
def far() -> Iterator[Far]:
    provide("A network that is cut", ["ip"], ["iproute2"])
    with far_place() as place:
        yield place


@contextmanager
def here_and_there(far: Far, folder: Path) -> Iterator[Site]:
    """Yield a site with workers and a server here, and a server at the far place."""
    with sonic.load_site(write_site(folder, count=1, driver=f"address: {far.interface}")) as site:
        pool = site.pool
        assert isinstance(pool, ServerPool)
        provider = LocalProvider(launcher=InNamespace(far.namespace))
        server = sonic.ServerExecutor("far", pool=pool, provider=provider, models=PACKAGED, lease_s=LEASE_S)
        site.dfk.add_executors([server])
        wait_whole(site)
        places = {entry.info.group: entry.info.address.rpartition(":")[0] for entry in pool.table.ready}
        assert places == {"triton": far.here, "far": far.address}
        yield site
    assert_nothing_is_left(60)


def assert_answered_soon(before: Report, after: Report) -> None:
    """Check that something was asked of who could not be reached, and waited no longer than a pool promises."""
    assert after.retries > before.retries, "nothing was asked of it"
    assert longest_wait(before, after) < LEASE_S + FLOOR_S


def test_a_cut_between_a_server_and_all_others_costs_nothing_and_it_comes_back_after(
    far: Far, analysis: Analysis, tmp_path: Path
) -> None:
    with here_and_there(far, tmp_path) as site:
        analysis.check(analysis.run(site.coffea_executor(status=False)))

        before = site.report()
        analysis.check(analysis.run_and(far.cut, site))
        assert_answered_soon(before, site.report())
        wait_until(lambda: [entry.info.group for entry in site.pool.table.servers] == ["triton"], LEASE_S + 5)
        far.mend()
        wait_until(lambda: {entry.info.group for entry in site.pool.table.ready} == {"triton", "far"}, 120)
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        rows = {line.id: line.rows for line in site.report().servers}
        assert all(rows[entry.info.id] for entry in site.pool.table.ready)


def test_a_cut_between_workers_and_a_server_of_which_the_registry_hears_costs_a_time_out_once(
    far: Far, analysis: Analysis, tmp_path: Path
) -> None:
    with here_and_there(far, tmp_path) as site:
        (server,) = [entry.info for entry in site.pool.table.ready if entry.info.group == "far"]
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        before = site.report()
        with far.no_way_to(int(server.address.rpartition(":")[2])) as cut:
            analysis.check(analysis.run_and(cut, site))
            assert_answered_soon(before, site.report())
            analysis.check(analysis.run(site.coffea_executor(status=False)))  # each worker has found out now
            known = site.report()
            analysis.check(analysis.run(site.coffea_executor(status=False)))
            after = site.report()
            assert server.id in {entry.info.id for entry in site.pool.table.ready}
        assert after.retries == known.retries, "it was asked again"
