"""How many servers a group should have, and what to do about it now. Pure functions of (blocks, policy, now)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sonic_parsl.pool.failures import tell

Phase = Literal["queued", "starting", "ready", "leaving", "ended"]

BACK_OFF_S = 2.0
"""First pause after a failed start; it doubles with each further one."""
MAX_BACK_OFF_S = 60.0
STARTS_LEARNT = 5
"""So many of the last starts tell how long the next one takes; the batch queue is a part of it, and it changes."""
LEAD_MARGIN = 1.5
"""The next start may take this much longer than the longest of them."""
LAST_WORDS_S = 15.0
"""A server that has joined and is late ends by itself, and says what its Triton wrote; it began later than its job."""


@dataclass(frozen=True)
class Block:
    """A block of a server group, as the pool knows it.

    Attributes
    ----------
    id
        Parsl's block id.
    submitted_at, running_at
        When it was submitted and first seen running, in seconds; None before.
    job_ended
        True once the provider has called the job finished; the first such word stays.
    servers_ready, servers_starting, servers_leaving
        Servers of this block in the table, by state.
    ready_at
        When a server of it was ready for the first time; None before.
    ends_at
        When its walltime ends; None where nobody says.
    replaced
        True once another block was submitted to take its place before it ends.
    gone_at
        When its last server left the table; None while one is in it or none ever joined.
    failure
        Why it failed; None while it did not.
    cancelled
        True once the pool cancelled it.
    """

    id: str
    submitted_at: float
    running_at: float | None = None
    job_ended: bool = False
    servers_ready: int = 0
    servers_starting: int = 0
    servers_leaving: int = 0
    ready_at: float | None = None
    ends_at: float | None = None
    replaced: bool = False
    gone_at: float | None = None
    failure: str | None = None
    cancelled: bool = False

    @property
    def phase(self) -> Phase:
        """Where the block stands. The lease decides while there is one, the provider's word before."""
        if self.servers_ready:
            return "ready"
        if self.servers_starting:
            return "starting"
        if self.servers_leaving:
            return "leaving"
        if self.cancelled or self.job_ended or self.gone_at is not None or self.failure is not None:
            return "ended"
        return "queued" if self.running_at is None else "starting"

    @property
    def was_ready(self) -> bool:
        """Whether a server of it was ever ready."""
        return self.ready_at is not None

    @property
    def is_live(self) -> bool:
        """Whether it serves, or is on its way to."""
        return not self.cancelled and self.phase in {"queued", "starting", "ready"}


@dataclass(frozen=True)
class Policy:
    """What a server group's site entry says about numbers.

    Attributes
    ----------
    min_servers, max_servers
        Blocks to hold at least and at most.
    start_timeout_s
        A block that runs this long without a ready server has failed; where none runs, those that wait in the
        queue for so long have.
    max_failed_starts
        So many in a row, with no server ready for the group's models, and the pool is lost. While one is, the
        group tries again now and then.
    queue_ms
        Requests that wait longer than this in the servers, on average, ask for one more server.
    idle_s
        Without a request for so long, the group shrinks to its minimum.
    drain_before_s
        So long before its walltime ends, a server drains.
    """

    min_servers: int = 1
    max_servers: int = 1
    start_timeout_s: float = 300.0
    max_failed_starts: int = 3
    queue_ms: float = 50.0
    idle_s: float = 120.0
    drain_before_s: float = 120.0


@dataclass(frozen=True)
class Demand:
    """What the servers of a group reported lately.

    Attributes
    ----------
    queue_ms
        Mean time a request waited, in ms.
    idle_s
        How long ago the last request was answered, in seconds.
    served_elsewhere
        Whether other groups serve all its models, or may still come to.
    unserved_s
        How long no server of the pool was ready, of whichever group, in seconds.
    """

    queue_ms: float = 0.0
    idle_s: float = 0.0
    served_elsewhere: bool = False
    unserved_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Attributes
    ----------
    start
        Blocks to submit.
    replaced
        Blocks whose place some of these take, since they end soon.
    cancel
        Blocks to cancel, by id, with the reason.
    drain
        Blocks whose servers should finish and end.
    lose
        Why the pool is lost; None while it is not.
    hopeless
        Whether the group itself has failed too often in a row and serves nothing.
    waiting
        Blocks that the batch system has not started, where that is why.
    """

    start: int = 0
    replaced: tuple[str, ...] = ()
    cancel: tuple[tuple[str, str], ...] = ()
    drain: tuple[str, ...] = ()
    lose: str | None = None
    hopeless: bool = False
    waiting: tuple[str, ...] = ()


def wanted(ready: int, live: int, policy: Policy, demand: Demand) -> int:
    """Return how many blocks the group should have."""
    if demand.idle_s >= policy.idle_s:
        return policy.min_servers
    if ready and ready == live and demand.queue_ms > policy.queue_ms:
        return min(live + 1, policy.max_servers)  # one at a time: a new server's effect shows late
    return min(max(live, policy.min_servers), policy.max_servers)


def decide(blocks: Sequence[Block], policy: Policy, demand: Demand, now: float) -> Decision:
    """Return what to do about a group's blocks at time `now`.

    Parameters
    ----------
    blocks
        Every block there was, oldest first.
    now
        Time of the clock that stamped the blocks, in seconds.
    """
    late = {block.id for block in late_starts(blocks, policy, now)}
    live = [block for block in blocks if block.is_live and not block.replaced and block.id not in late]
    ready = [block for block in live if block.phase == "ready"]
    failures = _failed_starts(blocks, late)
    cancel = _cancel(blocks, late, policy)
    hopeless = len(failures) >= policy.max_failed_starts and not ready
    if hopeless and not demand.served_elsewhere:
        return Decision(lose=_verdict(failures, late, policy), cancel=cancel, hopeless=True)
    if waiting := _held_back(live, policy, demand, now):
        return Decision(lose=f"the batch system started no server within {policy.start_timeout_s:g} s", waiting=waiting)
    target = wanted(len(ready), len(live), policy, demand)
    ends_from = now + policy.drain_before_s + lead_s(blocks)
    # Those that last come first: what ends soon by itself is the first that is not needed.
    kept = sorted(live, key=lambda block: _ends_by(block, ends_from))[:target]
    surplus = tuple(block.id for block in reversed(live) if block not in kept)
    if not _may_start(failures, now):
        return Decision(cancel=cancel, drain=surplus, hopeless=hopeless)
    replaced = tuple(block.id for block in kept if _ends_by(block, ends_from))
    start = target - len(kept) + len(replaced)
    return Decision(start=start, replaced=replaced, cancel=cancel, drain=surplus, hopeless=hopeless)


def late_starts(blocks: Sequence[Block], policy: Policy, now: float) -> list[Block]:
    """Return the blocks that have run for too long without a ready server."""
    return [block for block in blocks if _is_late(block, policy, now)]


def too_late(policy: Policy) -> str:
    """Return why such a block counts as failed."""
    return f"no server was ready {policy.start_timeout_s:g} s after it started"


def lead_s(blocks: Sequence[Block]) -> float:
    """Return how long it takes from submitting a block to its ready server, in seconds; 0 where none ever was."""
    took = [block.ready_at - block.submitted_at for block in blocks if block.ready_at is not None]
    return LEAD_MARGIN * max(took[-STARTS_LEARNT:], default=0.0)


def _ends_by(block: Block, when: float) -> bool:
    return block.ends_at is not None and block.ends_at <= when


def _held_back(live: Sequence[Block], policy: Policy, demand: Demand, now: float) -> tuple[str, ...]:
    """Return the blocks that have been in the queue for too long, where nothing serves or is about to."""
    if any(block.phase != "queued" for block in live):
        return ()
    limit_s = policy.start_timeout_s
    return tuple(block.id for block in live if min(now - block.submitted_at, demand.unserved_s) > limit_s)


def _is_late(block: Block, policy: Policy, now: float) -> bool:
    if block.phase != "starting" or block.running_at is None:
        return False
    last_words_s = LAST_WORDS_S if block.servers_starting else 0.0
    return now - block.running_at > policy.start_timeout_s + last_words_s


def _cancel(blocks: Sequence[Block], late: set[str], policy: Policy) -> tuple[tuple[str, str], ...]:
    """Blocks that hold resources for nothing: late ones, and jobs whose servers are gone."""
    return tuple(
        (block.id, too_late(policy) if block.id in late else "its servers are gone")
        for block in blocks
        if not (block.job_ended or block.cancelled) and (block.id in late or block.phase == "ended")
    )


def _failed_starts(blocks: Sequence[Block], late: set[str]) -> list[Block]:
    """Return the newest blocks that ended, or are late, without ever having been ready: a row of failures."""
    row: list[Block] = []
    for block in reversed(blocks):
        if block.was_ready:
            break
        if block.id in late or (block.phase == "ended" and (block.failure is not None or not block.cancelled)):
            row.append(block)
    return row


def _may_start(failures: Sequence[Block], now: float) -> bool:
    if not failures:
        return True
    newest = max(block.submitted_at for block in failures)
    return bool(now - newest >= min(MAX_BACK_OFF_S, BACK_OFF_S * 2 ** (len(failures) - 1)))


def _verdict(failures: Sequence[Block], late: set[str], policy: Policy) -> str:
    silent = "its job ended before a server was ready"
    whys = [(one.id, one.failure or (too_late(policy) if one.id in late else silent)) for one in reversed(failures)]
    return f"{policy.max_failed_starts} servers in a row failed to start. Mend what they say:\n{tell(whys)}"
