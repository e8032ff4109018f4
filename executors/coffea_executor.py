"""``CoffeaExecutor``: coffea's ParslExecutor whose chunks know their pool and bring their numbers home."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import coffea.processor.parsl.timeout
from coffea.processor import ParslExecutor
from typing_extensions import override

from sonic_parsl.client.scope import Chunk, chunk_scope, current_pool
from sonic_parsl.errors import find_ours
from sonic_parsl.protocol import PoolRef
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
        with _any_thread():
            if self.function_name == "get_metadata":
                return super().__call__(items, function, accumulator)
            work = WithPool(function, self.pool_ref or current_pool())
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
            What went wrong on our side, as it is: coffea wraps it in a text, and pickling loses what it wraps.
        """
        chunk = Chunk(
            fileuuid=str(uuid.UUID(bytes=item.fileuuid)) if item.fileuuid else "",
            entrystart=item.entrystart,
            entrystop=item.entrystop,
        )
        with chunk_scope(self.pool_ref, chunk) as scope:
            try:
                out = self.function(item, *args, **kwargs)
            except Exception as error:
                ours = find_ours(error)
                if ours is None:
                    raise
                raise ours.at(file=item.filename, chunk=chunk) from None
            # What nobody has read yet may still be read: coffea pickles the output after this.
            scope.wait()
            records = [ChunkRecord.of(chunk, record) for record in scope.records()]
        if not isinstance(out, dict):
            return {RECORDS: records} if out is None and records else out
        return {**out, RECORDS: records}


@contextmanager
def _any_thread() -> Iterator[None]:
    """Let coffea's ParslExecutor run outside of the main thread.

    It wraps its apps in an alarm that it never sets; installing the handler alone fails in other threads.
    """
    if threading.current_thread() is threading.main_thread():
        yield
        return
    module = coffea.processor.parsl.timeout
    with _patch_lock:
        original, module.timeout = module.timeout, lambda function: function
        try:
            yield
        finally:
            module.timeout = original


_patch_lock = threading.RLock()
