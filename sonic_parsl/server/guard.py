"""Outlives an agent that was killed, just long enough to end what the agent had started.

The leash ends Triton, but not Triton's python stubs: one that was computing at that moment stays for ever.
Run as a script (``python -I -S guard.py PREFIX FOLDER``) this imports nothing of the project. It reads process
groups until the end of its standard input, whose other side is the agent's, then ends them.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Guard:
    """A process that is started before there is anything to leave behind.

    Parameters
    ----------
    shm_prefix
        What the names of the shared memory begin with that must not stay.
    folder
        A folder that must not stay; it need not be there yet.
    """

    def __init__(self, shm_prefix: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, shm_prefix, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Let it end a process group, too, which was started with ``start_new_session=True``."""
        self._tell(group)

    def forget(self, group: int) -> None:
        """Let it leave a group alone that is gone: its number may be another's by then."""
        self._tell(-group)

    def dismiss(self) -> None:
        """Let it do what is left to do, and wait for its end; may be called twice."""
        self._process.communicate()

    def _tell(self, number: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % number)
        self._process.stdin.flush()


def end_group(group: int) -> None:
    """End every process of a group that is still there."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: Sequence[str]) -> None:
    """Wait for the agent's end, and end what it left."""
    shm_prefix, folder = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A batch system that sends them to all of a job's processes means the agent.
        signal.signal(number, signal.SIG_IGN)
    numbers = [int(word) for word in sys.stdin.buffer.read().split()]
    for group in numbers:
        if group > 0 and -group not in numbers:
            end_group(group)
    for region in Path("/dev/shm").glob(f"{glob.escape(shm_prefix)}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # it may never have come to be


if __name__ == "__main__":
    main(sys.argv[1:])
