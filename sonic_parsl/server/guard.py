"""Outlives an agent that was killed, just long enough to end what the agent had started.

The leash ends Triton, but not Triton's python stubs: one that was computing at that moment stays for ever.
Run as a script (``python -I -S guard.py GROUP PREFIX``) this imports nothing of the project. It waits for
the end of its standard input, whose other side is the agent's, then ends the process group.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def guarded(process: subprocess.Popen[bytes], shm_prefix: str) -> subprocess.Popen[bytes]:
    """Start a guard of the process group that `process` leads, and of its shared memory.

    Parameters
    ----------
    process
        Was started with ``start_new_session=True``.
    shm_prefix
        What the names of its shared memory begin with.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(process.pid), shm_prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_group(group: int) -> None:
    """End every process of a group that is still there."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: Sequence[str]) -> None:
    """Wait for the agent's end, and end what it left."""
    group, shm_prefix = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A batch system that sends them to all of a job's processes means the agent.
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_group(int(group))
    for region in Path("/dev/shm").glob(f"{glob.escape(shm_prefix)}*"):
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
