"""Parsl's processes go on when somebody sets the clock."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sonic_parsl.executors.steady_clock import SteadilyPolled
from tests.faults.clock import Clock

STEADY = """
import sys, time
from pathlib import Path
from sonic_parsl.executors.steady_clock import keep_steady
from tests.faults.clock import Clock

wall, started = time.time, time.monotonic()
keep_steady()
before = time.time()
assert abs(before - wall()) < 1
Clock(Path(sys.argv[1])).jump(int(sys.argv[2]))
while abs(wall() - before) < 3600:
    assert time.monotonic() < started + 30, "the clock was not set"
assert 0 <= time.time() - before <= time.monotonic() - started
"""


@pytest.mark.parametrize("by_s", ["7200", "-7200"])
def test_a_process_that_keeps_steady_does_not_see_the_clock_set(by_s: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", STEADY, str(tmp_path), by_s]
    done = subprocess.run(argv, env=Clock(tmp_path).env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Polled(SteadilyPolled):
    """Counts how often it is asked for its jobs' states."""

    status_polling_interval = 60
    asked = 0

    def status(self) -> dict[str, object]:
        self.asked += 1
        return {}


def test_jobs_are_looked_at_again_after_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Polled, "__abstractmethods__", frozenset())
    executor, now = Polled(provider=None, block_error_handler=False), time.time()
    for after_s, asked in ((0, 1), (59, 1), (61, 2), (61 - 7200, 2), (130 - 7200, 3)):
        monkeypatch.setattr(time, "time", lambda after_s=after_s: now + after_s)
        executor.poll_facade()
        assert executor.asked == asked
