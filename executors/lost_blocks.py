"""When the loss of workers' jobs is the end: Parsl gives its executor up once all of them have failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parsl.jobs.error_handlers import simple_error_handler, windowed_error_handler
from parsl.jobs.states import JobStatus


class LostBlocks:
    """Judges failed blocks; for the ``block_error_handler`` of a HighThroughputExecutor.

    Where no worker has ever connected, the site file is wrong, and the first failure says how. Once one has, a job may
    be taken away even if it is the only one: Parsl asks for another, and only three in a row that fail are the end.
    """

    def __init__(self) -> None:
        self._have_worked = False

    def __call__(self, executor: Any, status: Mapping[str, JobStatus]) -> None:
        """Give the executor up, or do not."""
        self._have_worked = self._have_worked or bool(executor.connected_managers())
        judge = windowed_error_handler if self._have_worked else simple_error_handler
        judge(executor, status)
