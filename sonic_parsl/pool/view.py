"""What a driver sees of a pool, whether it owns it or attached to it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from sonic_parsl.client.scope import Scope, set_default_pool
from sonic_parsl.client.sessions import close_session
from sonic_parsl.errors import PoolLostError
from sonic_parsl.pool.failures import tell
from sonic_parsl.poolref import POOL_ENV, PoolRef
from sonic_parsl.protocol import ServerEntry, ServerTable


class PoolView(ABC):
    """Who serves now, and how this driver's workers find them.

    Attributes
    ----------
    run_id
        Name of the pool's run.
    own_calls
        The calls of this process.
    failures
        Blocks that failed, by server group: their ids, and why. Only the pool's owner knows them.
    """

    run_id: str

    def __init__(self) -> None:
        self.own_calls = Scope()
        self.failures: dict[str, list[tuple[str, str]]] = {}

    @property
    @abstractmethod
    def table(self) -> ServerTable:
        """Who serves now."""

    @property
    @abstractmethod
    def servers(self) -> tuple[ServerEntry, ...]:
        """Every server there was, as last seen."""

    @property
    @abstractmethod
    def ref(self) -> PoolRef:
        """How workers find the pool."""

    @property
    @abstractmethod
    def ref_path(self) -> Path:
        """The 0600 file that holds :attr:`ref`."""

    @abstractmethod
    def wait_for(self, condition: Callable[[ServerTable], bool], timeout_s: float) -> bool:
        """Wait until the table fulfils `condition`; return whether it does."""

    @abstractmethod
    def start(self) -> None:
        """Let this process use the pool; does nothing when it does."""

    @abstractmethod
    def close(self) -> None:
        """End this process's use of the pool; may be called twice."""

    @property
    def worker_init(self) -> str:
        """Shell line that tells workers of the pool, for a provider's ``worker_init``."""
        return f"export {POOL_ENV}={self.ref_path}"

    def wait_ready(self, servers: int = 1, *, timeout_s: float) -> ServerTable:
        """Wait until at least `servers` servers are ready, or the pool is lost and its users can do without.

        Raises
        ------
        PoolLostError
            The pool was lost meanwhile and has no fallback, or the time is over.
        """
        ready = self.wait_for(lambda table: len(table.ready) >= servers or table.lost is not None, timeout_s)
        table = self.table
        if table.lost is not None:
            if self.ref.fallback is not None:
                return table  # who asks it goes on without
            end = "" if "\n" in table.lost else "."
            raise PoolLostError(f"The pool is lost: {table.lost}{end}")
        if not ready:
            states = [f"{entry.info.id} {entry.state}" for entry in table.servers] or ["none joined"]
            failed = tell(failure for group in self.failures.values() for failure in group)
            raise PoolLostError(
                f"{len(table.ready)} of {servers} servers are ready after {timeout_s:g} s: "
                f"{', '.join(states)}.{self._last_failure()} Raise start-timeout, or look at the batch system's queue"
                + (f", and at what failed:\n{failed}" if failed else ".")
            )
        return table

    @abstractmethod
    def give_up(self, reason: str) -> None:
        """Let a pool that has a fallback be lost, as far as that is this driver's to say."""

    def _last_failure(self) -> str:
        """Return why the last server of others that failed did, as a sentence to append; empty where none did."""
        return ""

    def _tell_this_process(self) -> None:
        """Let models that this process calls find the pool, and processes it starts."""
        os.environ[POOL_ENV] = str(self.ref_path)
        self.own_calls = set_default_pool(self.ref)
        _told.append((self, self.ref))

    def _untell_this_process(self, ref: PoolRef | None) -> None:
        """Let what this process calls find the pool that it was told of before, if that is still there."""
        was_last = bool(_told) and _told[-1][0] is self
        _told[:] = [(pool, its) for pool, its in _told if pool is not self]
        if was_last:
            _tell_again(self)
        if ref is not None:
            close_session(ref)


_told: list[tuple[PoolView, PoolRef]] = []
"""Pools that this process was told of, the one that its calls ask last."""


def _tell_again(former: PoolView) -> None:
    is_its_own = os.environ.get(POOL_ENV) == str(former.ref_path)
    if not _told:
        set_default_pool(None)
        if is_its_own:
            del os.environ[POOL_ENV]
        return
    pool, ref = _told[-1]
    set_default_pool(ref, pool.own_calls)
    if is_its_own:
        os.environ[POOL_ENV] = str(pool.ref_path)
