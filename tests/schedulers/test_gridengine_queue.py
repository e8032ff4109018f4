"""A real Grid Engine that does not start what it is asked for, and drivers that leave jobs to it."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from parsl.jobs.states import JobState

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from tests.faults.runs import Analysis, wait_whole
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


def test_a_job_that_is_long_on_its_way_to_a_node_is_waited_for(
    cell: GridEngine, analysis: Analysis, tmp_path: Path
) -> None:
    def states() -> set[str]:
        return {line.split()[4] for line in cell.jobs()}

    path = write_site(tmp_path, GRIDENGINE_WORKERS, {"fpga": {**GRIDENGINE_SERVERS, "count": DEVICES}})
    with ExitStack() as stack:
        with cell.silent_node():
            site = stack.enter_context(sonic.load_site(path))
            wait_until(lambda: len(cell.jobs()) == DEVICES + 1 and states() == {"t"}, GONE_S, what=cell.jobs)
            sent = {line.split()[0] for line in cell.jobs()}
            provider = site.dfk.executors["fpga"].provider
            assert {one.state for one in provider.status(list(provider.resources))} == {JobState.RUNNING}
        wait_whole(site, DEVICES)
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        assert {line.job_id for line in site.report().servers} < sent
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
