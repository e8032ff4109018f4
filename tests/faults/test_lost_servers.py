from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from sonic_parsl.executors.site import Site
from tests.executors.conftest import write_site
from tests.executors.scores import Scores, assert_scores_are_right, run
from tests.leaks import assert_nothing_is_left, our_processes, wait_until


def while_running(site: Site, disturb: Callable[[], None]) -> object:
    """Run the scores over the samples in small chunks, and disturb the run after its first chunks."""

    def later() -> None:
        wait_until(lambda: sum(entry.load.rows for entry in site.pool.table.servers) > 0, 60)
        disturb()

    thread = threading.Thread(target=later)
    thread.start()
    try:
        return run(site.coffea_executor(status=False), Scores(), chunksize=20)
    finally:
        thread.join()


@pytest.mark.parametrize("victim", ["bin/tritonserver", "sonic_parsl.server.agent"])
def test_a_server_killed_in_mid_run_costs_no_event_and_no_score(victim: str, tmp_path: Path) -> None:
    with sonic.load_site(write_site(tmp_path)) as site:
        site.wait_ready()
        out = while_running(site, our_processes(victim)[0].kill)
        assert_scores_are_right(out)
        report = site.report()
        assert report.events_in == report.events_out == 400
        assert report.rows == 1504 + 1636
        site.pool.wait_ready(2, timeout_s=60)
        newcomer = next(entry.info.id for entry in site.pool.table.ready if entry.info.block_id == "2")
        run(site.coffea_executor(status=False), Scores(), chunksize=20)
        assert next(line.rows for line in site.report().servers if line.id == newcomer) > 0
    assert_nothing_is_left()


def test_a_drained_server_finishes_what_it_has(tmp_path: Path) -> None:
    with sonic.load_site(write_site(tmp_path)) as site:
        site.wait_ready()
        out = while_running(site, our_processes("sonic_parsl.server.agent")[0].terminate)
        assert_scores_are_right(out)
        assert not [departure for departure in site.pool.departures if departure.failed]
    assert_nothing_is_left()


def test_once_the_pool_is_lost_the_run_fails_at_once_with_the_reason(tmp_path: Path) -> None:
    with sonic.load_site(write_site(tmp_path, count="1")) as site:
        site.wait_ready()
        with pytest.raises(PoolLostError, match="somebody pulled the plug"):
            while_running(site, lambda: site.pool.lose("somebody pulled the plug"))
    assert_nothing_is_left()
