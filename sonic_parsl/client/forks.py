"""Waits until gRPC is wholly gone, so that the process may fork.

gRPC ends its own threads in the background once its last object is freed. A fork while they run leaves
the child with half of gRPC's state: it aborts or hangs.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

THREADS = ("event_engine", "grpc_", "lifeguard", "timer_")
"""How the names of gRPC's own threads begin."""
PATIENCE_S = 1.0
"""They need milliseconds. Threads that stay are those of somebody else's gRPC, for which we cannot answer."""
SOON_S = 0.05
"""Threads that are there after this may be kept by garbage: by an error, whose traceback holds a call."""
POLL_S = 0.001


def wait_for_grpc_threads() -> None:
    """Wait until no thread of gRPC is left in this process, or patience ends."""
    start = time.monotonic()
    if not _gone_by(start + SOON_S):
        gc.collect()
        _gone_by(start + PATIENCE_S)


def _gone_by(end: float) -> bool:
    while _running():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True


def _running() -> bool:
    return any(_name(task).startswith(THREADS) for task in Path("/proc/self/task").iterdir())


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:
        return ""  # it ended while we looked
