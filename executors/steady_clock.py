"""Parsl's interchange and worker pools count heartbeats by the wall clock, which somebody may set.

Set forward, it makes each side take the other for dead; set back by an hour, it keeps a worker pool from saying for
an hour that it lives. In a process that calls :func:`keep_steady` it goes on as the monotonic clock does.
"""

from __future__ import annotations

import time

from parsl.executors.status_handling import BlockProviderExecutor
from typing_extensions import override


def keep_steady() -> None:
    """Let the wall clock of this process, but not of those it starts, go on from here as the monotonic one does."""
    start = time.time() - time.monotonic()
    time.time = lambda: start + time.monotonic()


class SteadilyPolled(BlockProviderExecutor):  # type: ignore[misc]
    """An executor whose jobs Parsl goes on to look at when the driver's clock was set back."""

    @override
    def poll_facade(self) -> None:
        self._last_poll_time: float = min(self._last_poll_time, time.time())
        super().poll_facade()
