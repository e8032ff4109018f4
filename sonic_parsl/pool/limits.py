"""How much a sender may say, and how much of the table its servers may take.

Pure but for their own counts; time is an argument.
"""

from __future__ import annotations

from collections.abc import Container

BURST = 1_000
"""Messages a sender may send at once: the agents of a block of several hundred nodes start together."""
RATE_PER_S = 100.0
"""Messages a second afterwards; an agent needs one in five seconds."""
FREE_BYTES = 2**14
"""A message longer than this counts as several: it takes as much longer to read."""
MAX_SENDERS = 10_000
"""Senders remembered; those with a full bucket need not be."""

NEWCOMERS, NEWCOMERS_PER_S = 1_000, 1.0
"""Servers of a block that join or say why they did not: each leaves a line with the pool's owner."""

MAX_SERVERS = 4_096
"""In the table, which goes to every client at every change."""
MAX_BLOCK_SERVERS = 1_000
"""Of one block: so that none takes all the room."""
MAX_BLOCK_BYTES = 2**21
"""What a block's servers are in the table: those of six hundred nodes with ten models each."""


def cost(size: int) -> float:
    """Return as how many messages one of `size` bytes counts."""
    return max(1.0, size / FREE_BYTES)


class RateLimit:
    """Counts what each sender says.

    Parameters
    ----------
    burst, rate_per_s
        Size of a sender's bucket, and how fast it fills.
    """

    def __init__(self, burst: int = BURST, rate_per_s: float = RATE_PER_S) -> None:
        self._burst = burst
        self._rate_per_s = rate_per_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, sender: str, now: float, tokens: float = 1.0) -> bool:
        """Take tokens from the sender's bucket; return False where it holds fewer.

        Parameters
        ----------
        now
            Time of a monotonic clock, in seconds.
        """
        left = self._tokens(sender, now) - tokens
        if left < 0.0:
            return False
        if len(self._buckets) >= MAX_SENDERS:
            self._forget_idle(now)
        self._buckets[sender] = (left, now)
        return True

    def _tokens(self, sender: str, now: float) -> float:
        tokens, since = self._buckets.get(sender, (float(self._burst), now))
        return min(float(self._burst), tokens + (now - since) * self._rate_per_s)

    def _forget_idle(self, now: float) -> None:
        busy = {sender: bucket for sender, bucket in self._buckets.items() if self._tokens(sender, now) < self._burst}
        self._buckets = busy


class Shares:
    """Counts how much of the table each block takes."""

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[str, int]] = {}

    def problem(self, server: str, block: str, size: int) -> str | None:
        """Return why a server of `size` bytes finds no room, or None where it does."""
        others = [taken for name, (owner, taken) in self._sizes.items() if owner == block and name != server]
        if server not in self._sizes and len(self._sizes) >= MAX_SERVERS:
            return f"the table holds {MAX_SERVERS} servers already"
        if len(others) >= MAX_BLOCK_SERVERS:
            return f"{block} has {MAX_BLOCK_SERVERS} servers already"
        if sum(others) + size > MAX_BLOCK_BYTES:
            return f"the servers of {block} have more models than fit into the table"
        return None

    def take(self, server: str, block: str, size: int) -> None:
        """Note what a server takes."""
        self._sizes[server] = (block, size)

    def keep(self, servers: Container[str]) -> None:
        """Free what servers other than these took."""
        self._sizes = {name: share for name, share in self._sizes.items() if name in servers}
