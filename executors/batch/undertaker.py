"""Cancels the jobs that a driver leaves in a queue, however the driver ended.

A job that runs ends by itself when its driver is gone. One that waits would be started for nobody, a job that was
preempted comes back, and one in an error state stays in the queue: so all are cancelled once more at the end.
Run as a script (``python -I -S undertaker.py``) this imports nothing of the project. It reads jobs, a line each, from
its standard input, whose other side is the driver's, and acts when that says so or closes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

ATTEMPTS, PAUSE_S, CANCEL_S = 5, 5.0, 60.0
"""A scheduler may be out of reach for a while."""
END = "end"
"""The driver's last line: where it has forked, its side does not close with it."""
WAIT_S = 30.0
"""For so long a driver waits; the undertaker goes on without it."""


class Undertaker:
    """The process, as its driver sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def watch(self, provider: Any, cancel: str, answers: Sequence[str]) -> None:
        """Note each job that a provider submits from here on.

        Parameters
        ----------
        cancel
            Command that cancels jobs, by their ids.
        answers
            Command that succeeds where the scheduler can be reached.
        """
        submit: Callable[..., Any] = provider.submit

        def noted(*args: Any, **kwargs: Any) -> Any:
            job_id = submit(*args, **kwargs)
            if job_id:
                self._note(json.dumps([cancel, answers, str(job_id)]))
            return job_id

        provider.submit = noted

    def close(self) -> None:
        """Let it cancel what is left, and wait for it, unless the scheduler does not answer."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(f"{END}\n", WAIT_S)

    def _note(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the driver
                )
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


def main() -> None:
    """Wait for the driver's end, and cancel its jobs."""
    jobs: dict[tuple[str, ...], list[str]] = {}
    for line in sys.stdin:
        if line.strip() == END:
            break
        cancel, answers, job = json.loads(line)
        jobs.setdefault((cancel, *answers), []).append(job)
    for (cancel, *answers), ids in jobs.items():
        _cancel([cancel, *ids], answers)


def _cancel(command: list[str], answers: list[str]) -> None:
    """Ask until the scheduler has heard it; that some of the jobs are gone already is an error to some of them."""
    for _ in range(ATTEMPTS):
        if _succeeds(command) or _succeeds(answers):
            return
        time.sleep(PAUSE_S)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=CANCEL_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    main()
