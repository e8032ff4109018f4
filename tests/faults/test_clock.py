"""A wall clock that jumps, for agents and workers: leases are counted by the monotonic one."""

from __future__ import annotations

from pathlib import Path

import pytest

import sonic_parsl as sonic
from sonic_parsl.server.runtimes import SHARED_MEMORY
from tests.executors.scores import Scores, assert_scores_are_right, run
from tests.faults.clock import Clock
from tests.faults.runs import write_site
from tests.leaks import assert_nothing_is_left


@pytest.mark.parametrize("by", ["+2h", "-2h"])
def test_a_clock_that_jumps_costs_nothing(by: str, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    there = set(SHARED_MEMORY.glob("*faketime*"))
    with sonic.load_site(write_site(tmp_path, init=clock.shell, worker_init=clock.shell)) as site:
        site.wait_ready()
        before = {entry.info.id for entry in site.pool.table.ready}
        assert_scores_are_right(run(site.coffea_executor(status=False), Scores(), chunksize=100))
        clock.jump(by)
        assert_scores_are_right(run(site.coffea_executor(status=False), Scores(), chunksize=100))
        assert {entry.info.id for entry in site.pool.table.ready} >= before
    assert_nothing_is_left()
    for left in set(SHARED_MEMORY.glob("*faketime*")) - there:
        left.unlink()  # the clock's own, of processes that were killed
