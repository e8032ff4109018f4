"""Whatever ends the driver, and whenever: nothing of its pool stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sonic_parsl.pool import named
from sonic_parsl.workflows.generate import generate
from tests.faults.runs import LEASE_S, agents, wait_at, write_site
from tests.leaks import PARSL_WORDS, POOL_WORDS, assert_nothing_is_left, leftovers, our_processes, told, wait_until

START_S = 90.0
GONE_S = LEASE_S + 5.0
"""What is promised; on a machine with twice as many processes as cores it takes up to six seconds."""
SOON_S = 30.0
"""Parsl looks every five seconds, and servers drain."""
PROGRAM = str(Path(sys.executable).with_name("sonic-parsl"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events for minutes, in small chunks."""
    return generate(tmp_path_factory.mktemp("many") / "events.root", events=200_000)


@dataclass(frozen=True)
class Driver:
    """A command-line run; while the file `gate` exists, jobs of servers wait as if in a queue."""

    process: subprocess.Popen[str]
    gate: Path

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; Ctrl-C goes to all of a terminal's foreground processes."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

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

    def over(self) -> None:
        """Wait until its analysis is done, and its servers drain."""
        wait_until(lambda: our_processes("multiprocessing.spawn"), START_S)
        wait_until(lambda: not our_processes(*PARSL_WORDS), START_S)
        assert agents()


def _busy_workers() -> bool:
    return any(
        time_s > 3.0 for time_s in told(our_processes("multiprocessing.spawn"), lambda one: one.cpu_times().user)
    )


PHASES: dict[str, Callable[[Driver], None]] = {
    "starting": Driver.starting,
    "queued": Driver.queued,
    "running": Driver.running,
    "draining": Driver.draining,
    "over": Driver.over,
}


@contextmanager
def analysing(folder: Path, data: Path, site: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run an analysis, as a user would in a terminal."""
    # Whoever started the tests in the background had them ignore Ctrl-C; a driver in a terminal does not.
    argv = ["env", "--default-signal=INT", PROGRAM, "run", "btag_ttbar", str(data), "--chunksize", "100"]
    argv += ["--site", str(site), "--output", str(folder / "out"), *options]
    log = (folder / "driver.log").open("w+")
    with log, subprocess.Popen(argv, stdout=log, stderr=log, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def driver(folder: Path, data: Path, phase: str) -> Iterator[Driver]:
    """Run an analysis that goes on for minutes, or is soon over, and wait until it is in a phase."""
    gate = folder / "gate"
    if phase == "queued":
        gate.touch()
    if phase == "over":
        data = generate(folder / "few.root", events=2_000)
    site = write_site(folder, init=wait_at(gate), driver=f"run-dir: {folder / 'runs'}")
    with analysing(folder, data, site) as process:
        try:
            started = Driver(process, gate)
            PHASES[phase](started)
            yield started
        finally:
            gate.unlink(missing_ok=True)


def wait_gone() -> None:
    """Wait for the end of a pool, and of what would start servers for it."""
    wait_until(lambda: not our_processes(*POOL_WORDS, "triton.block-"), GONE_S, what=leftovers)


def assert_no_key_is_left(folder: Path) -> None:
    """Check that the run's folder has gone, with the keys in it; what Parsl writes last may be there."""
    left = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert not left, left


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_told_to_end_cleans_up(number: signal.Signals, phase: str, many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, phase) as started:
        started.send(number)
        wait_gone()
        assert started.process.wait(timeout=60) == 1
    assert_nothing_is_left()
    assert_no_key_is_left(tmp_path)


TWICE = [(phase, (0.3,)) for phase in PHASES]
AGAIN = [("running", (1.0,)), ("running", (2.0,)), ("running", (0.3, 1.0)), ("queued", (1.0,))]


@pytest.mark.parametrize(("phase", "delays"), [*TWICE, *AGAIN])
def test_ctrl_c_again_and_again_cleans_up_too(
    phase: str, delays: tuple[float, ...], many: Path, tmp_path: Path
) -> None:
    with driver(tmp_path, many, phase) as started:
        started.send(signal.SIGINT)
        for delay_s in delays:
            time.sleep(delay_s)  # as a person does
            with suppress(ProcessLookupError):  # it may have ended
                started.send(signal.SIGINT)
        wait_gone()
        # Python itself no longer catches a Ctrl-C in its last moments, when everything has been cleaned up.
        assert started.process.wait(timeout=60) in {1, -signal.SIGINT}
    assert_nothing_is_left(60)
    assert_no_key_is_left(tmp_path)


def test_a_run_whose_interchange_is_killed_ends_soon_and_says_so_once(many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, "running") as started:
        kill_interchange()
        assert started.process.wait(timeout=SOON_S) == 1
    said = (tmp_path / "driver.log").read_text()
    assert said.count("was killed by signal 9") == said.count("Error:") == 1, said
    assert "Start the run again" in said
    assert "Traceback" not in said
    assert_nothing_is_left()
    assert_no_key_is_left(tmp_path)


def test_ctrl_c_ends_a_run_whose_interchange_was_killed_too(many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, "running") as started:
        kill_interchange()
        started.send(signal.SIGINT)
        assert started.process.wait(timeout=SOON_S) == 1
    assert_nothing_is_left()
    assert_no_key_is_left(tmp_path)


def kill_interchange() -> None:
    (interchange,) = our_processes("HTEX interchange")
    interchange.kill()


@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_killed_outright_leaves_no_server_one_lease_later(phase: str, many: Path, tmp_path: Path) -> None:
    with driver(tmp_path, many, phase) as started:
        started.process.kill()
        started.process.wait()
        started.gate.unlink(missing_ok=True)  # jobs that come out of the queue now find nobody
    wait_gone()
    assert_nothing_is_left(60)
    left = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert "sonic-parsl.log" in left
    assert not [name for name in left if name.endswith((".json", ".key_secret"))]


def test_a_lasting_pools_owner_killed_outright_leaves_no_server_and_its_run_says_so(many: Path, home: Path) -> None:
    site = write_site(home)
    subprocess.run([PROGRAM, "pool", "start", "--site", site, "--name", "ours", "--daemon"], check=True)
    (owner,) = named.running()
    with analysing(home, many, site, "--pool", "ours") as run:
        wait_until(lambda: our_processes("bin/tritonserver --model") and _busy_workers(), START_S)
        os.kill(owner.pid, signal.SIGKILL)
        wait_gone()
        assert run.wait(timeout=60) == 1
    said = (home / "driver.log").read_text()
    assert said.count("The pool's registry cannot be reached") == said.count("Error:") == 1, said
    assert not named.running()
    assert_nothing_is_left(60)
