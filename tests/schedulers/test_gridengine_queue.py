"""A real Grid Engine that does not start what it is asked for, and drivers that leave jobs to it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from tests.leaks import assert_nothing_is_left, wait_until
from tests.schedulers.gridengine import DEVICES, GridEngine
from tests.schedulers.runs import GONE_S, GRIDENGINE_SERVERS, GRIDENGINE_WORKERS, at_work, driver, write_site


def test_a_run_whose_servers_never_start_fails_with_what_grid_engine_says(cell: GridEngine, tmp_path: Path) -> None:
    group = {**GRIDENGINE_SERVERS, "request": ["-V", f"-l fpga={DEVICES + 1}"], "start-timeout": 5}
    path = write_site(tmp_path, GRIDENGINE_WORKERS, {"fpga": group})
    wait_until(lambda: not cell.jobs(), GONE_S, what=cell.jobs)
    with sonic.load_site(path) as opened, pytest.raises(PoolLostError, match="cannot run at host"):
        opened.wait_ready()
    wait_until(lambda: not cell.jobs(), GONE_S, what=cell.jobs)
    assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_ended_in_mid_run_leaves_no_job(
    number: signal.Signals, cell: GridEngine, many: Path, tmp_path: Path
) -> None:
    site = write_site(tmp_path, GRIDENGINE_WORKERS, {"fpga": {**GRIDENGINE_SERVERS, "count": DEVICES}})
    with driver(site, many) as process:
        wait_until(at_work, GONE_S, what=cell.jobs)
        process.send_signal(number)
        process.wait(timeout=60)
    wait_until(lambda: not cell.jobs(), GONE_S, what=cell.jobs)
    assert_nothing_is_left()
