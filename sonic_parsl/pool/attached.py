"""``AttachedPool``: a pool that another process of this user owns, as a driver that uses it sees it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from sonic_parsl.client.session import Session
from sonic_parsl.client.sessions import session
from sonic_parsl.errors import PoolError, PoolLostError, PoolNotFoundError
from sonic_parsl.pool.view import PoolView
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import ServerEntry, ServerTable

logger = logging.getLogger(__name__)

ATTACH_S = 15.0
"""For the first table: the owner's registry answers in milliseconds, over a slow login node in seconds."""


class AttachedPool(PoolView):
    """A pool that goes on when this driver ends.

    Parameters
    ----------
    ref_path
        The pool's file, which only its owner can read.

    Raises
    ------
    PoolError
        The file is not there, is another user's, or can be read by others.
    """

    def __init__(self, ref_path: Path) -> None:
        super().__init__()
        check_private(ref_path)
        self._path = ref_path
        self._ref = PoolRef.read(ref_path)
        self.run_id = self._ref.run_id
        self._session: Session | None = None
        self._is_open = False

    @property
    @override
    def table(self) -> ServerTable:
        return self._session.table_now() if self._session else ServerTable(run_id=self.run_id, generation=0)

    @property
    @override
    def servers(self) -> tuple[ServerEntry, ...]:
        return self._session.seen if self._session else ()

    @property
    @override
    def ref(self) -> PoolRef:
        return self._ref

    @property
    @override
    def ref_path(self) -> Path:
        return self._path

    @override
    def wait_for(self, condition: Callable[[ServerTable], bool], timeout_s: float) -> bool:
        return self._session is not None and self._session.wait_for(condition, timeout_s)

    @override
    def start(self) -> None:
        """Connect.

        Raises
        ------
        PoolLostError
            Its registry does not answer.
        """
        if self._is_open:
            return
        self._is_open = True
        self._tell_this_process()
        self._session = session(self._ref)
        if not self.wait_for(lambda table: table.generation > 0 or table.lost is not None, ATTACH_S):
            self.close()
            raise PoolLostError(
                f"The pool's registry at {', '.join(self._ref.registries)} does not answer.",
                hint="Has its owner ended? `sonic-parsl pool list` shows the pools that run.",
            )

    @override
    def give_up(self, reason: str) -> None:
        if self._ref.fallback is None or not self._ref.fallback.patient:
            raise PoolLostError(reason)
        logger.warning("%s Chunks wait until the pool's owner gives it up.", reason)

    @override
    def close(self) -> None:
        """Let go of the pool, which goes on."""
        if self._is_open:
            self._is_open = False
            self._untell_this_process(self._ref)


def check_private(path: Path) -> None:
    """Refuse a pool's file that is not this user's alone.

    Raises
    ------
    PoolNotFoundError
        It is not there.
    PoolError
        It is another user's, or others can read it.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise PoolNotFoundError(
            f"The pool's file {path} cannot be read: {error.strerror}.", hint="Has the pool ended?"
        ) from None
    if found.st_uid != os.geteuid():
        raise PoolError(f"The pool of {path} is another user's; only its owner's processes can attach.")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PoolError(
            f"The pool's file {path} holds a key and can be read by others.",
            hint="Stop the pool and start it again; somebody may have the key.",
        )
