"""How many servers a group should have, and what to do about it now. Pure functions of (blocks, policy, now)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["queued", "starting", "ready", "leaving", "ended"]

BACK_OFF_S = 2.0
"""First pause after a failed start; it doubles with each further one."""
MAX_BACK_OFF_S = 60.0


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
    was_ready
        True once a server of it was ready.
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
    was_ready: bool = False
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
        A block that runs this long without a ready server has failed.
    max_failed_starts
        So many in a row, with no server ready, and the pool is lost.
    queue_ms
        Requests that wait longer than this in the servers, on average, ask for one more server.
    idle_s
        Without a request for so long, the group shrinks to its minimum.
    """

    min_servers: int = 1
    max_servers: int = 1
    start_timeout_s: float = 300.0
    max_failed_starts: int = 3
    queue_ms: float = 50.0
    idle_s: float = 120.0


@dataclass(frozen=True)
class Demand:
    """What the servers of a group reported lately.

    Attributes
    ----------
    queue_ms
        Mean time a request waited, in ms.
    idle_s
        How long ago the last request was answered, in seconds.
    """

    queue_ms: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Attributes
    ----------
    start
        Blocks to submit.
    cancel
        Blocks to cancel, by id, with the reason.
    drain
        Blocks whose servers should finish and end.
    lose
        Why the pool is lost; None while it is not.
    """

    start: int = 0
    cancel: tuple[tuple[str, str], ...] = ()
    drain: tuple[str, ...] = ()
    lose: str | None = None


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
    late = {block.id for block in blocks if _is_late(block, policy, now)}
    live = [block for block in blocks if block.is_live and block.id not in late]
    ready = [block for block in live if block.phase == "ready"]
    failures = _failed_starts(blocks, late)
    if len(failures) >= policy.max_failed_starts:
        if not ready:
            return Decision(lose=_verdict(failures, policy), cancel=_cancel(blocks, late, policy))
        target = len(live)  # others serve: go on with them rather than try for ever
    else:
        target = wanted(len(ready), len(live), policy, demand)
    start = max(0, target - len(live)) if _may_start(failures, now) else 0
    surplus = tuple(block.id for block in live[target:][::-1])
    return Decision(start=start, cancel=_cancel(blocks, late, policy), drain=surplus)


def _is_late(block: Block, policy: Policy, now: float) -> bool:
    if block.phase != "starting" or block.running_at is None:
        return False
    return now - block.running_at > policy.start_timeout_s


def _cancel(blocks: Sequence[Block], late: set[str], policy: Policy) -> tuple[tuple[str, str], ...]:
    """Blocks that hold resources for nothing: late ones, and jobs whose servers are gone."""
    timed_out = f"no server was ready {policy.start_timeout_s:g} s after it started"
    return tuple(
        (block.id, timed_out if block.id in late else "its servers are gone")
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


def _verdict(failures: Sequence[Block], policy: Policy) -> str:
    newest = failures[0]
    why = newest.failure or "its job ended before a server was ready"
    return f"{policy.max_failed_starts} servers in a row failed to start. The last one, block {newest.id}: {why}"
