"""Waits until gRPC is wholly gone, so that the process may fork.

gRPC ends its own threads in the background once its last object is freed. A fork while they run leaves
the child with half of gRPC's state: it aborts or hangs.
"""

from __future__ import annotations

import time
from pathlib import Path

THREADS = ("event_engine", "grpc_", "lifeguard", "timer_")
"""How the names of gRPC's own threads begin."""
PATIENCE_S = 1.0
"""They need milliseconds. Threads that stay are those of somebody else's gRPC, for which we cannot answer."""
POLL_S = 0.001


def wait_for_grpc_threads() -> None:
    """Wait until no thread of gRPC is left in this process, or patience ends."""
    end = time.monotonic() + PATIENCE_S
    while _running() and time.monotonic() < end:
        time.sleep(POLL_S)


def _running() -> bool:
    return any(_name(task).startswith(THREADS) for task in Path("/proc/self/task").iterdir())


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:
        return ""  # it ended while we looked
