"""The sessions of this process: one for each pool, made when first needed; they end before a fork and go on after it."""

from __future__ import annotations

import atexit
import os
import threading

from sonic_parsl.client.scope import current_pool
from sonic_parsl.client.session import Session
from sonic_parsl.poolref import PoolRef

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


def raise_if_lost(ref: PoolRef) -> None:
    """Raise why this process has lost the pool, if it has and cannot do without; contacts nobody.

    Raises
    ------
    PoolError
        The pool is lost.
    """
    found = _sessions.get(ref.run_id)
    if found is not None and found.problem is not None and not found.falls_back:
        raise found.problem.at()


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
