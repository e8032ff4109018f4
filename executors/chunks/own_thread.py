"""Work in a thread of its own, so that Ctrl-C comes to one that only waits.

Ctrl-C raises KeyboardInterrupt wherever the main thread happens to be. In the middle of Parsl or of the logging of
its thousand tasks that may be between the taking of a lock and the ``try`` that gives it back: then every other
thread that wants it waits for ever, those that clean up among them.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LAST_S = 5.0
"""So long an interrupted call waits for its thread, which then has nothing more to wait for."""


class Interrupted(BaseException):
    """Raised in the thread of a call that was interrupted; no code catches it by accident."""


class OwnThread(Generic[T]):
    """A call in a thread of its own, and the futures that it waits for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._futures: set[Future[Any]] = set()
        self._interrupted = False
        self._is_over = threading.Event()

    def result(self) -> T:
        """Run it; return what it returns, raise what it raises, and let it end where this thread is interrupted."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run,), name="sonic-parsl-run", daemon=True)
        try:
            thread.start()  # waits, too
            result, error = self._outcome.get()
        except BaseException:
            self._interrupt()
            self._is_over.wait(LAST_S)
            raise
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def launching(self, app: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        """Return `app` with futures that end with this call, whatever becomes of the task."""

        def launch(*args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self._futures.add(future)
            if self._interrupted:
                raise Interrupted
            app(*args, **kwargs).add_done_callback(lambda done: self._pass_on(done, future))
            return future

        return launch

    def _run(self) -> None:
        try:
            outcome = self._work(), None
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._outcome.put((None, error))
        else:
            self._outcome.put(outcome)
        finally:
            self._is_over.set()

    def _interrupt(self) -> None:
        self._interrupted = True
        for future in self._futures.copy():
            with suppress(InvalidStateError):
                future.set_exception(Interrupted())

    def _pass_on(self, done: Future[Any], future: Future[Any]) -> None:
        """Let a future end as its task has ended, unless it has ended already."""
        self._futures.discard(future)
        error = done.exception()
        with suppress(InvalidStateError):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result())
