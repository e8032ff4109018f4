"""``CoffeaExecutor``: coffea's ParslExecutor whose chunks know their pool and bring their numbers home."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import coffea.processor.parsl.timeout
from coffea.processor import ParslExecutor
from typing_extensions import override

from sonic_parsl.client.scope import Chunk, chunk_scope, current_pool
from sonic_parsl.client.sessions import raise_if_lost
from sonic_parsl.errors import SonicError, find_ours
from sonic_parsl.executors.batch.carried import WhereItLies
from sonic_parsl.executors.chunks.explain import Explained, explain, parsl_explained
from sonic_parsl.executors.chunks.own_thread import OwnThread
from sonic_parsl.poolref import PoolRef
from sonic_parsl.report import ChunkRecord, RunLog

RECORDS = "sonic_parsl"
"""Key under which chunk records travel home beside coffea's own ``out`` and ``processed``."""


@dataclass
class CoffeaExecutor(ParslExecutor):  # type: ignore[misc]
    """coffea's ParslExecutor, with all its fields, for processors that hold a :class:`sonic_parsl.Model`.

    Chunks go to the executor with workers and never to the servers, are told of the pool, and
    results are merged on the workers by default.

    Parameters
    ----------
    pool_ref
        The pool that chunks ask; the one of this process by default.
    log
        Takes what the chunks report.
    """

    merging: bool | tuple[int, int, int] | None = True
    jobs_executors: str | list[str] = field(default_factory=lambda: ["workers"])
    merges_executors: str | list[str] = field(default_factory=lambda: ["workers"])
    pool_ref: PoolRef | None = None
    log: RunLog | None = field(default=None, repr=False)

    @override
    def __call__(self, items: Sequence[Any], function: Callable[..., Any], accumulator: Any) -> Any:
        run = OwnThread(lambda: self._run(items, function, accumulator))
        token = _running.set(run)
        try:
            return run.result()
        finally:
            _running.reset(token)

    def _run(self, items: Sequence[Any], function: Callable[..., Any], accumulator: Any) -> Any:
        with _apps_of_runs, parsl_explained():
            if self.function_name == "get_metadata":
                return super().__call__(items, Explained(_within_retries(function, WhereItLies)), accumulator)
            work = WithPool(_within_retries(function, _on_a_chunk), self.pool_ref or current_pool())
            log = self.log if self.log is not None else RunLog()
            with log.running(items):
                merged, error = super().__call__(items, work, accumulator)
                records = merged.pop(RECORDS, []) if isinstance(merged, dict) else []
                log.take(records, merged)
        # Every chunk may have been skipped: then coffea expects nothing rather than an empty mapping.
        return (merged or None), error


@dataclass(frozen=True)
class WithPool:
    """Runs coffea's work on one chunk, within the chunk's scope."""

    function: Callable[..., Any]
    pool_ref: PoolRef

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", "chunk")

    def __call__(self, item: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the work returns, with the chunk's records beside it.

        Raises
        ------
        SonicError
            What went wrong: coffea wraps it in a text, and pickling loses what it wraps.
            Once the pool is lost it comes at once, before the chunk's file is opened.
        """
        raise_if_lost(self.pool_ref)
        chunk = Chunk(
            fileuuid=str(uuid.UUID(bytes=item.fileuuid)) if item.fileuuid else "",
            entrystart=item.entrystart,
            entrystop=item.entrystop,
        )
        with chunk_scope(self.pool_ref, chunk) as scope:
            try:
                out = self.function(item, *args, **kwargs)
            except _Aside as aside:
                raise aside.error.at(file=item.filename, chunk=chunk) from None
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
                raise explain(error, file=item.filename, tree=item.treename).at(chunk=chunk) from None
            # What nobody has read yet may still be read: coffea pickles the output after this.
            scope.wait()
            records = [ChunkRecord.of(chunk, record) for record in scope.records()]
        if not isinstance(out, dict):
            return {RECORDS: records} if out is None and records else out
        return {**out, RECORDS: records}


class _Aside(BaseException):
    """Carries an error of ours past coffea's retries, which catch every ``Exception``.

    The client has asked as often as makes sense. Once a pool is dead, each further attempt would open the
    file again for nothing, and ``skipbadfiles`` would look at the error.
    """

    def __init__(self, error: SonicError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class _OursAside:
    """Does coffea's work on a chunk once, and raises errors of ours as :class:`_Aside`."""

    work: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.work(*args, **kwargs)
        except Exception as error:
            ours = find_ours(error)
            if ours is None:
                raise
            raise _Aside(ours) from None


def _on_a_chunk(work: Callable[..., Any]) -> Callable[..., Any]:
    return _OursAside(WhereItLies(work))


def _within_retries(
    function: Callable[..., Any], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """Return what coffea's Runner gives an executor, with the work that it may try again wrapped."""
    if not (isinstance(function, partial) and getattr(function.func, "__name__", "") == "automatic_retries"):
        return function
    retries, skipbadfiles, work = function.args
    return partial(function.func, retries, skipbadfiles, wrap(work), **function.keywords)


class _AppsOfRuns:
    """Lets the apps of coffea's ParslExecutor be those of the run that makes them, in as many threads as run one.

    coffea wraps them in an alarm that it never sets; but it installs its own handler, which fails outside of the
    main thread, and stops whatever alarm somebody else has set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._original: Any = None

    def __enter__(self) -> None:
        module = coffea.processor.parsl.timeout
        with self._lock:
            if self._runs == 0:
                self._original, module.timeout = module.timeout, lambda app: _running.get().launching(app)
            self._runs += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                coffea.processor.parsl.timeout.timeout = self._original


_apps_of_runs = _AppsOfRuns()
_running: ContextVar[OwnThread[Any]] = ContextVar("_running")
