"""Triton's regions of shared memory: named for one server, closed to other users, removed when it is gone."""

from __future__ import annotations

import secrets
from contextlib import suppress

from sonic_parsl.server.guard import own_regions


def new_shm_prefix() -> str:
    """Return a name no other server's shared memory begins with."""
    return f"sonic-{secrets.token_hex(8)}-"


def close_shared_memory(prefix: str) -> None:
    """Let no other user read a server's shared memory, which Triton makes readable for all whatever the umask.

    Parameters
    ----------
    prefix
        :attr:`TritonOptions.shm_prefix` of that server.
    """
    for region in own_regions(prefix):
        with suppress(FileNotFoundError):  # a stub has just ended
            region.chmod(0o600)


def remove_shared_memory(prefix: str) -> int:
    """Remove what a server that is gone left in shared memory; return how many regions.

    Triton and its python stubs remove theirs, also when Triton alone is killed;
    where all are killed at once, as batch systems do, nobody does.

    Parameters
    ----------
    prefix
        :attr:`TritonOptions.shm_prefix` of that server.

    Raises
    ------
    ValueError
        The prefix is empty: that would be everybody's.
    """
    if not prefix:
        raise ValueError("an empty prefix is no server's")
    left = own_regions(prefix)
    for region in left:
        region.unlink(missing_ok=True)
    return len(left)
