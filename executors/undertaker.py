"""Cancels the jobs that a driver leaves in a queue, however the driver ended.

A job that runs ends by itself when its driver is gone. One that waits would be started for nobody, a job that was
preempted comes back, and one in an error state stays in the queue: so all are cancelled once more at the end.
Run as a script (``python -I -S undertaker.py``) this imports nothing of the project. It reads lines ``COMMAND JOB``
from its standard input, whose other side is the driver's, and acts when that closes.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ATTEMPTS, PAUSE_S, CANCEL_S = 5, 5.0, 60.0
"""A scheduler may be out of reach for a while."""


class Undertaker:
    """The process, as its driver sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def watch(self, provider: Any, cancel: str) -> None:
        """Note each job that a provider submits from here on, and the command that cancels it."""
        submit: Callable[..., Any] = provider.submit

        def noted(*args: Any, **kwargs: Any) -> Any:
            job_id = submit(*args, **kwargs)
            if job_id:
                self._note(f"{cancel} {job_id}\n")
            return job_id

        provider.submit = noted

    def close(self) -> None:
        """Let it cancel what is left, and wait for it."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.communicate()

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
            self._process.stdin.write(line)
            self._process.stdin.flush()


def main() -> None:
    """Wait for the driver's end, and cancel its jobs."""
    jobs: dict[str, list[str]] = {}
    for line in sys.stdin:
        command, _, job = line.strip().partition(" ")
        jobs.setdefault(command, []).append(job)
    for command, ids in jobs.items():
        _cancel(command, ids)


def _cancel(command: str, ids: list[str]) -> None:
    """Ask until somebody answers; that some of the jobs are gone already is an answer too."""
    for _ in range(ATTEMPTS):
        try:
            subprocess.run([command, *ids], stdin=subprocess.DEVNULL, timeout=CANCEL_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            time.sleep(PAUSE_S)
        else:
            return


if __name__ == "__main__":
    main()
