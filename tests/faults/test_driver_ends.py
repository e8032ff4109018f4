"""Whatever ends the driver, and whenever: nothing of its pool stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sonic_parsl.workflows.generate import generate
from tests.faults.runs import LEASE_S, agents, wait_at, write_site
from tests.leaks import PARSL_WORDS, POOL_WORDS, assert_nothing_is_left, leftovers, our_processes, wait_until

START_S = 90.0
GONE_S = LEASE_S + 5.0
SLACK_S = 3.0
"""For the kernel and a busy machine."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events for minutes, in small chunks."""
    return generate(tmp_path_factory.mktemp("many") / "events.root", events=200_000)


@dataclass(frozen=True)
class Driver:
    """A command-line run; while the file `gate` exists, jobs of servers wait as if in a queue."""

    process: subprocess.Popen[str]
    gate: Path

    def starting(self) -> None:
        """Wait until its servers start."""
        wait_until(lambda: our_processes("sonic_parsl.server.agent"), START_S)

    def queued(self) -> None:
        """Wait until the jobs of its servers wait in the queue."""
        wait_until(lambda: our_processes("triton.block-1"), START_S)
        assert not agents()

    def running(self) -> None:
        """Wait until it scores chunks."""
        wait_until(lambda: our_processes("bin/tritonserver --model") and _busy_workers(), START_S)

    def draining(self) -> None:
        """Let it end, and wait until it has ended its workers and its servers drain."""
        self.running()
        self.process.send_signal(signal.SIGINT)
        wait_until(lambda: not our_processes(*PARSL_WORDS), START_S)
        assert agents()


def _busy_workers() -> bool:
    return any(process.cpu_times().user > 3.0 for process in our_processes("multiprocessing.spawn"))


PHASES: dict[str, Callable[[Driver], None]] = {
    "starting": Driver.starting,
    "queued": Driver.queued,
    "running": Driver.running,
    "draining": Driver.draining,
}


@contextmanager
def driver(folder: Path, data: Path, phase: str) -> Iterator[Driver]:
    """Run an analysis that goes on for minutes, as a user would, and wait until it is in a phase."""
    gate = folder / "gate"
    if phase == "queued":
        gate.touch()
    program = str(Path(sys.executable).with_name("sonic-parsl"))
    # Whoever started the tests in the background had them ignore Ctrl-C; a driver in a terminal does not.
    argv = ["env", "--default-signal=INT", program, "run", "btag_ttbar", str(data), "--chunksize", "100"]
    options = ["--site", str(write_site(folder, init=wait_at(gate))), "--output", str(folder / "out")]
    log = (folder / "driver.log").open("w+")
    with log, subprocess.Popen([*argv, *options], stdout=log, stderr=log, text=True) as process:
        try:
            started = Driver(process, gate)
            PHASES[phase](started)
            yield started
        finally:
            process.kill()
            gate.unlink(missing_ok=True)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_told_to_end_cleans_up(number: signal.Signals, phase: str, many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, phase) as started:
        started.process.send_signal(number)
        wait_until(lambda: not our_processes(*POOL_WORDS), GONE_S + SLACK_S, what=leftovers)
        assert started.process.wait(timeout=60) == 1
    assert_nothing_is_left()


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_twice_cleans_up_too(phase: str, many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, phase) as started:
        started.process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # as a person does
        started.process.send_signal(signal.SIGINT)
        wait_until(lambda: not our_processes(*POOL_WORDS), GONE_S + SLACK_S, what=leftovers)
        started.process.wait(timeout=60)
    assert_nothing_is_left(60)


@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_killed_outright_leaves_no_server_one_lease_later(phase: str, many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, phase) as started:
        started.process.kill()
        started.process.wait()
        started.gate.unlink(missing_ok=True)  # jobs that come out of the queue now find nobody
    wait_until(lambda: not our_processes(*POOL_WORDS), GONE_S + SLACK_S, what=leftovers)
    assert_nothing_is_left(60)
