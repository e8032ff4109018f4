"""A thread that starts something, keeps it, and stops it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Keeper:
    """A thread that starts something, waits, and stops it.

    What Parsl starts is tied to the thread that starts it (the kernel sends the death signal when that
    thread ends), and cleaning up should not be cut short by a Ctrl-C in the main thread: so neither
    happens in the user's thread.
    """

    def __init__(self, start: Callable[[], None], stop: Callable[[], None]) -> None:
        self._start, self._stop = start, stop
        self._started = threading.Event()
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._stop_error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start; raises what starting raised, after stopping what was started."""
        self._thread = threading.Thread(target=self._run, name="sonic-parsl-site", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def close(self) -> None:
        """Stop and wait, however often Ctrl-C is pressed; may be called twice. Raises what stopping raised."""
        with _signals_later():
            self._ending.set()
            if self._thread is not None:
                self._thread.join()
        error, self._stop_error = self._stop_error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            self._error = error
        else:
            self._started.set()
            self._ending.wait()
        finally:
            try:
                self._stop()
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that closes
                self._stop_error = error
            self._started.set()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Put off what would end the program until the ``with`` block is done: keys have to be removed first.

    Python tells signals to the main thread only, so no other one is interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if not told:
            logger.warning("Jobs are being cancelled and keys removed; this ends by itself, and may take a minute.")
        told.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if handler not in {None, signal.SIG_IGN}}
    for number in ours:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    for one in dict.fromkeys(told):
        signal.raise_signal(one)
