"""Whatever ends the driver, and whenever: nothing of its pool stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sonic_parsl.workflows.generate import generate
from tests.executors.conftest import write_site
from tests.leaks import PARSL_WORDS, POOL_WORDS, assert_nothing_is_left, leftovers, our_processes, wait_until

LEASE_S = 5.0
PHASES: dict[str, Callable[[], object]] = {
    "starting": lambda: our_processes("sonic_parsl.server.agent"),
    "running": lambda: our_processes("bin/tritonserver") and _busy_workers(),
}


def _busy_workers() -> bool:
    return any(process.cpu_times().user > 3.0 for process in our_processes("multiprocessing.spawn"))


@contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an analysis that goes on for minutes, as a user would."""
    data = generate(folder / "many.root", events=400_000)
    argv = [str(Path(sys.executable).parent / "sonic-parsl"), "run", "btag_ttbar", str(data), "--chunksize", "500"]
    options = ["--site", str(write_site(folder, lease=LEASE_S)), "--output", str(folder / "out")]
    log = (folder / "driver.log").open("w+")
    with log, subprocess.Popen([*argv, *options], stdout=log, stderr=log, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_told_to_end_cleans_up(number: signal.Signals, phase: str, tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        wait_until(PHASES[phase], 90)
        process.send_signal(number)
        assert process.wait(timeout=60) == 1
    assert_nothing_is_left()


def test_ctrl_c_twice_cleans_up_too(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        wait_until(PHASES["running"], 90)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # as a person does
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    wait_until(lambda: not our_processes(*POOL_WORDS), LEASE_S + 10, what=leftovers)


@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_killed_outright_leaves_no_server_one_lease_later(phase: str, tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        wait_until(PHASES[phase], 90)
        process.kill()
    wait_until(lambda: not our_processes(*POOL_WORDS), LEASE_S + 5 + 3, what=leftovers)
    wait_until(lambda: not our_processes(*PARSL_WORDS), 60, what=leftovers)
