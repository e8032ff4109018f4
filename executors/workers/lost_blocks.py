"""When the loss of workers' jobs is the end: Parsl gives its executor up once all of them have failed."""

from __future__ import annotations

from typing import Any

from parsl.jobs.error_handlers import simple_error_handler, windowed_error_handler
from parsl.jobs.states import JobStatus


class LostBlocks:
    """Judges failed blocks; for the ``block_error_handler`` of a HighThroughputExecutor.

    Where no worker has ever connected, the site file is wrong, and the first failure says how. A job whose workers have
    connected may be taken away at any time, even if it is the only one: Parsl asks for another. Only three after it
    that fail without having connected are the end.
    """

    def __init__(self) -> None:
        self._last_connected = -1

    def __call__(self, executor: Any, status: dict[str, JobStatus]) -> None:
        """Give the executor up, or do not."""
        self._last_connected = max([self._last_connected, *map(int, executor.connected_blocks())])
        if self._last_connected < 0:
            simple_error_handler(executor, status)
        else:
            later = {block_id: one for block_id, one in status.items() if int(block_id) > self._last_connected}
            windowed_error_handler(executor, later)
