"""Parsl's worker pool, whose workers or driver may be killed at any time: ``-m sonic_parsl.executors.workers.worker_pool``.

Its workers share a queue that only the holder of a semaphore may read, and an idle worker holds it while it waits.
The kernel does not give back the semaphore of a process that was killed, so the other workers would wait for ever.
It does give back a lock on a file.

A driver that is killed while its pool starts leaves one that waits for ever for the interchange's first answer. Here
that wait has an end, and a pool ends with its first thread that fails. A pool that is killed takes its workers with it.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing.queues
import multiprocessing.spawn
import os
import runpy
import shutil
import tempfile
import threading
import time
from typing import Any

import zmq
from parsl import curvezmq
from parsl.executors.high_throughput import process_worker_pool
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from typing_extensions import override

from sonic_parsl.executors.steady_clock import keep_steady
from sonic_parsl.server.leash import leashed

LAUNCH_COMMAND = DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"python3 -m {__name__}")
"""For the ``launch_cmd`` of a HighThroughputExecutor."""
POLL_S = 0.01


class FileLock:
    """A lock between processes that ends with the process that holds it; one thread of each may use it.

    Parameters
    ----------
    path
        An empty file, on a disk of this node.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: int | None = None

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return FileLock, (self._path,)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock; return whether it was free within `timeout` s."""
        if self._opened is None:
            self._opened = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if block and timeout is None:
            fcntl.flock(self._opened, fcntl.LOCK_EX)
            return True
        end = time.monotonic() + (timeout or 0.0)
        while not self._try(self._opened):
            if not block or time.monotonic() >= end:
                return False
            time.sleep(POLL_S)
        return True

    def release(self) -> None:
        """Give it back."""
        assert self._opened is not None
        fcntl.flock(self._opened, fcntl.LOCK_UN)

    @staticmethod
    def _try(opened: int) -> bool:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def lock_queues_by_files(folder: str) -> None:
    """Let the queues that this process makes from here on, and hands to its workers, have file locks."""
    make = multiprocessing.queues.Queue.__init__

    def make_with_files(queue: Any, *args: Any, **kwargs: Any) -> None:
        make(queue, *args, **kwargs)
        queue._rlock, queue._wlock = (FileLock(_empty_file(folder)) for _ in range(2))

    multiprocessing.queues.Queue.__init__ = make_with_files  # type: ignore[assignment, method-assign]


def _empty_file(folder: str) -> str:
    opened, path = tempfile.mkstemp(dir=folder)
    os.close(opened)
    return path


def bound_answers(timeout_s: float) -> None:
    """Let no socket to the interchange that is made from here on wait longer for a message."""
    make = curvezmq.ClientContext.socket

    def make_with_timeout(context: curvezmq.ClientContext, *args: Any, **kwargs: Any) -> zmq.Socket[bytes]:
        opened: zmq.Socket[bytes] = make(context, *args, **kwargs)
        opened.setsockopt(zmq.RCVTIMEO, int(timeout_s * 1000))
        return opened

    curvezmq.ClientContext.socket = make_with_timeout


def leash_children() -> None:
    """Let what multiprocessing spawns from here on, workers and a helper, end with this process."""
    make = multiprocessing.spawn.get_command_line

    def make_leashed(**data: Any) -> list[str]:
        return leashed(make(**data))

    multiprocessing.spawn.get_command_line = make_leashed


def end_with_a_failed_thread(folder: str) -> None:
    """Let an exception that ends a thread end this process: nobody does the thread's work any more."""

    def end(failure: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(failure)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.excepthook = end


def main() -> None:
    """Run Parsl's worker pool, with the arguments of this process."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hb_threshold", type=float, default=120.0)
    with tempfile.TemporaryDirectory(prefix="locks-") as folder:
        keep_steady()
        lock_queues_by_files(folder)
        leash_children()
        bound_answers(parser.parse_known_args()[0].hb_threshold)
        end_with_a_failed_thread(folder)
        # As a script of its own, which is how its workers find their code again.
        runpy.run_path(process_worker_pool.__file__, run_name="__main__")


if __name__ == "__main__":
    from sonic_parsl.executors.workers import worker_pool  # the workers look for FileLock there, and not in __main__

    worker_pool.main()
