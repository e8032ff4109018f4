"""Outlives an agent that was killed, just long enough to end what the agent had started.

The leash ends Triton, but not Triton's python stubs: one that was computing at that moment stays for ever.
Run as a script (``python -I -S guard.py PREFIX [FOLDER]``) this imports nothing of the project. It reads process
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

    def __init__(self, shm_prefix: str, folder: Path | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, shm_prefix, *([str(folder)] if folder else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Let it end a process group, too, which was started with ``start_new_session=True``."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % group)
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """Let it do what is left to do, and wait for its end; may be called twice."""
        self._process.communicate()


def end_group(group: int) -> None:
    """End every process of a group that is still there."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: Sequence[str]) -> None:
    """Wait for the agent's end, and end what it left."""
    shm_prefix, *folders = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A batch system that sends them to all of a job's processes means the agent.
        signal.signal(number, signal.SIG_IGN)
    for group in sys.stdin.buffer.read().split():
        end_group(int(group))
    for region in Path("/dev/shm").glob(f"{glob.escape(shm_prefix)}*"):
        region.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # where the agent lived it is gone already


if __name__ == "__main__":
    main(sys.argv[1:])
