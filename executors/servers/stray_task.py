"""Tasks that Parsl sends to an executor of servers, as it does with apps that name no executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from parsl.executors.base import ParslExecutor

from sonic_parsl.errors import ConfigError


def submit_to_one(
    others: Sequence[ParslExecutor],
    label: str,
    func: Callable[..., Any],
    resource_specification: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Future[Any]:
    """Run a task that came to `label` on the first of the others that has workers; return a future of its own.

    Parsl takes a future that comes twice for an error.

    Raises
    ------
    ConfigError
        None of them has workers.
    """
    worker = next((executor for executor in others if not executor.label.startswith("_")), None)
    if worker is None:
        raise ConfigError(
            f"A task was sent to {label}, whose blocks are servers, and no other executor could run it.",
            hint="Add a WorkerExecutor to the Config.",
        )
    outer: Future[Any] = Future()
    outer.set_running_or_notify_cancel()
    worker.submit(func, resource_specification, *args, **kwargs).add_done_callback(lambda d: _copy_outcome(d, outer))
    return outer


def _copy_outcome(done: Future[Any], outer: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(done.result())
