"""A process's way to a pool, shared by all its models and threads."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from sonic_parsl.client.call import Call, Ledger
from sonic_parsl.client.dispatch import Dispatcher
from sonic_parsl.client.follow import GRACE_S, follow
from sonic_parsl.client.forks import wait_for_grpc_threads
from sonic_parsl.client.job import Job, parts_of
from sonic_parsl.client.local import Local
from sonic_parsl.client.requests import check_inputs, empty
from sonic_parsl.client.scope import current_scope
from sonic_parsl.client.table import check_same, find_model, nobody_will, server_of, states
from sonic_parsl.errors import DeadlineError, PoolError, PoolLostError
from sonic_parsl.kserve import Array
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import ServedModel, ServerEntry, ServerTable

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
        self._dispatcher = Dispatcher(ref, self._give_up)
        self._local = None if ref.fallback is None else Local(ref.fallback)
        self._table: ServerTable | None = None
        self._seen: dict[str, ServerEntry] = {}
        self._problem: PoolError | None = None
        self._closed = self._is_over = False
        self._resume = False
        self._woken = False
        self._used: dict[tuple[str, str], tuple[ServedModel, str]] = {}
        self._newest: dict[tuple[str, frozenset[str]], str] = {}
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

        Which one that is does not change while this process runs: a newer one of servers that come later would mix
        with it in one histogram.

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
        end = math.inf if self.ref.fallback and self.ref.fallback.patient else time.monotonic() + deadline_s
        key = (name, frozenset(tags))
        with self._changed:
            version = version or self._newest.get(key)
            while (problem := self._problem or self._nobody(name)) is None:
                found = find_model(self._table, name, version=version, tags=tags) if self._table else None
                if found:
                    self._check_same_as_before(found)
                    if version is None:
                        self._newest[key] = found.version
                    return found
                left_s = min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX)
                if not self._changed.wait(left_s) and time.monotonic() >= end:
                    raise DeadlineError(
                        f"No server with the model came up within {deadline_s:g} s: {states(self._table)}.",
                        hint="Look at the batch system's queue and the servers' logs.",
                        model=name,
                    )
        return self._served_here(problem, name, version, tags)

    def _nobody(self, name: str) -> PoolLostError | None:
        return nobody_will(self._table, self.ref.fallback, name)

    def _served_here(self, problem: PoolError, name: str, version: str | None, tags: Collection[str]) -> ServedModel:
        """Return what this process offers in place of a pool that is lost."""
        if self._local is None or not isinstance(problem, PoolLostError):
            raise problem.at(model=name)
        found = self._local.served(name, version=version, tags=tags, why=problem)
        before, server = self._used.setdefault((found.name, found.version), (found, ""))
        self._local.check(found, before, server)
        return found

    def _check_same_as_before(self, model: ServedModel) -> None:
        """Refuse a model that is not what this process was answered by under the same name before."""
        assert self._table is not None
        server = server_of(self._table, model)
        before, its_server = self._used.setdefault((model.name, model.version), (model, server))
        check_same(before, its_server, model, server)

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
        check_inputs(model, tensors, rows)
        scope = current_scope()
        parts = parts_of(model, tensors, rows)
        call = Call(Ledger(model, rows, len(parts)), str(scope.chunk) if scope.chunk else None)
        if not parts:
            scope.add(call)
            call.finish(empty(model.outputs))
            return call
        job = Job(call, dict(tensors), parts, deadline=time.monotonic() + deadline_s)
        alive = weakref.ref(job)  # a job and its call that held each other would keep the outputs until a collection
        call.add_done_callback(lambda _: self._ended(alive()))
        scope.add(call)
        self._ensure_running()
        self._post(lambda: self._dispatcher.add(job))
        return call

    @property
    def table(self) -> ServerTable | None:
        """The last table; None before the first one."""
        return self._table

    @property
    def seen(self) -> tuple[ServerEntry, ...]:
        """Every server there was since the session began, as last seen."""
        return tuple(self._seen.values())

    def table_now(self) -> ServerTable:
        """Return the last table; one that says why where the pool is lost, an empty one before the first."""
        table = self._table or ServerTable(run_id=self.ref.run_id, generation=0)
        return table if self._problem is None else replace(table, lost=table.lost or str(self._problem))

    def wait_for(self, condition: Callable[[ServerTable], bool], timeout_s: float) -> bool:
        """Wait until the table fulfils `condition`; return whether it does."""
        self._ensure_running()
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.table_now()), timeout_s)

    @property
    def falls_back(self) -> bool:
        """Whether calls are computed in this process: the pool is lost, and its owner allows it."""
        return self._local is not None and isinstance(self._problem, PoolLostError)

    @property
    def problem(self) -> PoolError | None:
        """Why no call can succeed now; None where one may."""
        return self._problem

    def close(self) -> None:
        """End the session: pending calls fail, the thread and all connections end."""
        with self._lock:
            self._closed = True
            self._stop_thread()
        self._on_lost(_closed())
        self._is_over = True
        self._drain_inbox()
        if self._local is not None:
            self._local.close(_closed())

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
        if self._local is not None:
            self._local.forget()
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
        if self._is_over:  # not before: while the loop runs, the inbox is its
            self._drain_inbox()

    def _ended(self, job: Job | None) -> None:
        """Drop a call that its reader cancelled; this runs in the reader's thread then, otherwise in the loop.

        A job that was given up is done before its call, which ends in another thread.
        """
        if job is None:
            return
        if job.call.cancelled():
            self._post(lambda: self._dispatcher.discard(job))
        elif not job.done and self._loop is not None and not self._woken:
            # Who gets an answer often has the next call: the loop looks for it before it sleeps, since
            # waking it costs more than sending.
            self._woken = True
            self._loop.call_soon(self._drain_inbox)

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
            self._seen.update({entry.info.id: entry for entry in table.servers})
            self._changed.notify_all()

    def _on_lost(self, problem: PoolError) -> None:
        self._dispatcher.lose(problem)
        with self._changed:
            self._problem = problem
            self._changed.notify_all()

    def _give_up(self, job: Job, problem: PoolError) -> None:
        if self._local is not None and isinstance(problem, PoolLostError):
            self._local.take(job, problem)
        else:
            job.fail(problem)


def _closed() -> PoolError:
    return PoolError("The session with the pool was closed.")
