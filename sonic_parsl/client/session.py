"""A process's way to a pool: one session, made when first needed, shared by all its models and threads."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from sonic_parsl.client.call import Call, Ledger
from sonic_parsl.client.dispatch import Dispatcher
from sonic_parsl.client.follow import GRACE_S, follow
from sonic_parsl.client.forks import wait_for_grpc_threads
from sonic_parsl.client.job import Job, parts_of
from sonic_parsl.client.requests import empty
from sonic_parsl.client.scope import current_pool, current_scope
from sonic_parsl.client.table import find_model, states
from sonic_parsl.errors import DeadlineError, InputError, PoolError, PoolLostError
from sonic_parsl.kserve import Array
from sonic_parsl.protocol import PoolRef, ServedModel, ServerTable

DEADLINE_S = 300.0
"""What a call gets when nobody says otherwise."""


class Session:
    """Sends this process's calls to a pool.

    A thread of its own runs an event loop, which follows the table and owns all connections. It starts
    with the first call and may be used from any thread.

    Parameters
    ----------
    ref
        The pool.
    grace_s
        How long the registry may be out of reach before the pool counts as lost.
    """

    def __init__(self, ref: PoolRef, *, grace_s: float = GRACE_S) -> None:
        self.ref = ref
        self._grace_s = grace_s
        self._dispatcher = Dispatcher()
        self._table: ServerTable | None = None
        self._problem: PoolError | None = None
        self._closed = False
        self._resume = False
        self._woken = False
        self._inbox: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._new_locks()

    def served(
        self,
        name: str,
        *,
        version: str | None = None,
        tags: Collection[str] = (),
        deadline_s: float = DEADLINE_S,
    ) -> ServedModel:
        """Return the newest version of a model that matches, as soon as a server has it.

        Raises
        ------
        ModelNotFoundError
            All servers are up and none has it.
        DeadlineError
            No server came up in time.
        PoolError
            The pool is lost or refuses this process.
        """
        self._ensure_running()
        end = time.monotonic() + deadline_s
        with self._changed:
            while True:
                if self._problem:
                    raise self._problem.at(model=name)
                found = find_model(self._table, name, version=version, tags=tags) if self._table else None
                if found:
                    return found
                if not self._changed.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    raise DeadlineError(
                        f"No server with the model came up within {deadline_s:g} s: {states(self._table)}.",
                        hint="Look at the batch system's queue and the servers' logs.",
                        model=name,
                    )

    def submit(
        self, model: ServedModel, tensors: Mapping[str, Array], *, rows: int, deadline_s: float = DEADLINE_S
    ) -> Call:
        """Send rows to a model; return at once.

        Parameters
        ----------
        model
            From :meth:`served`.
        tensors
            Inputs by name, of the model's types, each with `rows` as the size of its first axis (any shape
            where the model has no batch dimension). They must not change until the call is done.
        rows
            How many rows there are; without any, no request is made.
        deadline_s
            After so many seconds the call fails.

        Raises
        ------
        InputError
            The tensors are not those of the model, or have another number of rows.
        """
        _check(model, tensors, rows)
        scope = current_scope()
        parts = parts_of(model, tensors, rows)
        call = Call(Ledger(model, rows, len(parts)), str(scope.chunk) if scope.chunk else None)
        if not parts:
            scope.add(call)
            call.finish(empty(model.outputs))
            return call
        job = Job(call, dict(tensors), parts, deadline=time.monotonic() + deadline_s)
        call.add_done_callback(
            lambda _: self._post(lambda: self._dispatcher.discard(job)) if call.cancelled() else None
        )
        scope.add(call)
        self._ensure_running()
        self._post(lambda: self._dispatcher.add(job))
        return call

    @property
    def table(self) -> ServerTable | None:
        """The last table; None before the first one."""
        return self._table

    def close(self) -> None:
        """End the session: pending calls fail, the thread and all connections end."""
        with self._lock:
            self._closed = True
            self._stop_thread()
        self._on_lost(_closed())
        self._drain_inbox()

    # Forks ------------------------------------------------------------------------

    def before_fork(self) -> None:
        """End the thread and close all connections: gRPC does not survive a fork with them. Calls are kept."""
        self._lock.acquire()
        self._resume = self._loop is not None
        self._stop_thread()
        if self._resume:
            wait_for_grpc_threads()

    def after_fork_in_parent(self) -> None:
        """Go on where :meth:`before_fork` ended."""
        self._lock.release()
        if self._resume:
            self._ensure_running()

    def after_fork_in_child(self) -> None:
        """Drop the parent's calls and locks; the first call here starts a thread."""
        self._dispatcher.forget()
        self._inbox.clear()
        self._new_locks()

    # Thread and loop -----------------------------------------------------------

    def _new_locks(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition()

    def _ensure_running(self) -> None:
        if self._loop is not None:
            return
        with self._lock:
            if self._closed:
                raise _closed()
            if self._loop is None:
                self._start_thread()

    def _start_thread(self) -> None:
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name="sonic-parsl-session", daemon=True
        )
        self._thread.start()
        started.wait()

    def _stop_thread(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    async def _main(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        started.set()
        self._dispatcher.start()
        self._drain_inbox()
        follower = asyncio.create_task(follow(self.ref, self._on_table, self._on_lost, grace_s=self._grace_s))
        follower.add_done_callback(self._follower_ended)
        await self._stop.wait()
        follower.cancel()
        await asyncio.wait((follower,))
        await self._dispatcher.stop()

    def _follower_ended(self, follower: asyncio.Task[None]) -> None:
        error = None if follower.cancelled() else follower.exception()
        if error is not None:
            self._on_lost(PoolError(f"Following the pool failed: {error!r}.", hint="Please report this."))

    def _post(self, action: Callable[[], None]) -> None:
        """Let the loop do something: now, or when there is one again."""
        self._inbox.append(action)
        loop = self._loop
        if loop is not None and not self._woken:
            self._woken = True  # once for all that comes until it reads
            # A loop that has just ended raises; the next one begins by reading the inbox.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._drain_inbox)
        if self._closed:
            self._drain_inbox()

    def _drain_inbox(self) -> None:
        self._woken = False
        while True:
            try:
                action = self._inbox.popleft()
            except IndexError:
                return
            action()

    def _on_table(self, table: ServerTable) -> None:
        if table.lost is not None:
            self._table = table
            self._on_lost(PoolLostError(f"The pool is lost: {table.lost}"))
            return
        self._dispatcher.update(table)
        with self._changed:
            self._table, self._problem = table, None
            self._changed.notify_all()

    def _on_lost(self, problem: PoolError) -> None:
        self._dispatcher.lose(problem)
        with self._changed:
            self._problem = problem
            self._changed.notify_all()


def _closed() -> PoolError:
    return PoolError("The session with the pool was closed.")


def _check(model: ServedModel, tensors: Mapping[str, Array], rows: int) -> None:
    names = [spec.name for spec in model.inputs]
    if sorted(tensors) != sorted(names):
        raise InputError(f"The model's inputs are {names}, given were {list(tensors)}.", model=model.name)
    for name, array in tensors.items():
        if model.max_batch_size and array.shape[:1] != (rows,):
            raise InputError(f"Input '{name}' has shape {array.shape}, expected were {rows} rows.", model=model.name)


# One session for each pool -------------------------------------------------

_sessions: dict[str, Session] = {}
_lock = threading.Lock()


def session(ref: PoolRef | None = None) -> Session:
    """Return this process's session with a pool: that of the scope, if none is named.

    Raises
    ------
    PoolNotFoundError
        This process was not told of a pool.
    """
    ref = ref or current_pool()
    with _lock:
        if ref.run_id not in _sessions:
            _sessions[ref.run_id] = Session(ref)
        return _sessions[ref.run_id]


def close_session(ref: PoolRef) -> None:
    """Close this process's session with a pool, if there is one."""
    with _lock:
        found = _sessions.pop(ref.run_id, None)
    if found:
        found.close()


def _close_all() -> None:
    with _lock:
        found = tuple(_sessions.values())
        _sessions.clear()
    for one in found:
        one.close()


def _before_fork() -> None:
    _lock.acquire()
    for one in _sessions.values():
        one.before_fork()


def _after_fork_in_parent() -> None:
    for one in _sessions.values():
        one.after_fork_in_parent()
    _lock.release()


def _after_fork_in_child() -> None:
    for one in _sessions.values():
        one.after_fork_in_child()
    _lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_close_all)
