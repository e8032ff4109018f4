"""Who asks: the scope of a chunk, which knows its pool, its calls and what they cost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from typing_extensions import override

from sonic_parsl.client.call import Call, Ledger
from sonic_parsl.client.records import CallRecord, merged
from sonic_parsl.kserve import Array
from sonic_parsl.poolref import PoolRef

KEPT_CALLS = 1000
"""So many calls outside of chunks are told one by one; older ones are told as sums."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of events, as coffea names it."""

    fileuuid: str
    entrystart: int
    entrystop: int

    @override
    def __str__(self) -> str:
        return f"{self.fileuuid}:{self.entrystart}-{self.entrystop}"


class Scope:
    """The calls of one chunk, or those that belong to none.

    Attributes
    ----------
    ref
        The pool to ask; None where the process's own is meant.
    chunk
        Which chunk this is; None outside of chunks.
    """

    def __init__(self, ref: PoolRef | None = None, chunk: Chunk | None = None) -> None:
        self.ref = ref
        self.chunk = chunk
        self._lock = threading.Lock()
        self._pending: set[Call] = set()
        self._ledgers: list[Ledger] = []
        self._older: tuple[CallRecord, ...] = ()
        self._fold_at = 2 * KEPT_CALLS

    def add(self, call: Call) -> None:
        """Count a call in, until its end."""
        with self._lock:
            self._pending.add(call)
            self._ledgers.append(call.ledger)
            if self.chunk is None and len(self._ledgers) >= self._fold_at:
                self._fold()
        call.add_done_callback(self._done)

    @property
    def pending(self) -> tuple[Call, ...]:
        """Calls that are not done."""
        with self._lock:
            return tuple(self._pending)

    def wait(self) -> None:
        """Wait until every call is done, well or not; what went wrong is in the records."""
        for call in self.pending:
            call.wait()

    def cancel(self) -> None:
        """Cancel every call that is not done."""
        for call in self.pending:
            call.cancel()

    def records(self) -> tuple[CallRecord, ...]:
        """Return what the calls did and cost so far."""
        with self._lock:
            return (*self._older, *(ledger.record() for ledger in self._ledgers))

    def _done(self, call: Future[dict[str, Array]]) -> None:
        assert isinstance(call, Call)
        with self._lock:
            self._pending.discard(call)

    def _fold(self) -> None:
        pending = {id(call.ledger) for call in self._pending}
        old = [ledger for ledger in self._ledgers[:-KEPT_CALLS] if id(ledger) not in pending]
        gone = set(map(id, old))
        self._older = merged((*self._older, *(ledger.record() for ledger in old)))
        self._ledgers = [ledger for ledger in self._ledgers if id(ledger) not in gone]
        self._fold_at = len(self._ledgers) + KEPT_CALLS


_outside = Scope()
_current: ContextVar[Scope | None] = ContextVar("sonic_parsl_scope", default=None)
_default_pool: PoolRef | None = None


def _forget() -> None:
    global _outside  # noqa: PLW0603 - what the parent process asked is not the child's
    _outside = Scope()


os.register_at_fork(after_in_child=_forget)


def current_scope() -> Scope:
    """Return the scope of this thread's chunk, or the one for calls outside of chunks."""
    return _current.get() or _outside


@contextmanager
def chunk_scope(ref: PoolRef | None, chunk: Chunk | None) -> Iterator[Scope]:
    """Let the calls in the ``with`` block be those of `chunk`, to the pool `ref`.

    An exception cancels what is pending; otherwise :meth:`Scope.wait` or :meth:`Scope.cancel` is the caller's.
    """
    scope = Scope(ref, chunk)
    token = _current.set(scope)
    try:
        yield scope
    except BaseException:
        scope.cancel()
        raise
    finally:
        _current.reset(token)


def set_default_pool(ref: PoolRef | None, calls: Scope | None = None) -> Scope:
    """Set the pool that this process asks outside of scopes that name one; return the scope of such calls.

    Parameters
    ----------
    calls
        The scope to count them in; a new one by default.
    """
    global _default_pool, _outside
    _default_pool, _outside = ref, calls or Scope()
    return _outside


def current_pool() -> PoolRef:
    """Return the scope's pool, else the process's default, else what the environment names.

    Raises
    ------
    PoolNotFoundError
        None of them is there.
    """
    return current_scope().ref or _default_pool or PoolRef.from_environment()
