"""What the pool's owner knows of a server group's blocks, from the provider and from the registry."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from parsl.jobs.states import JobState, JobStatus

from sonic_parsl.pool.scaler import Block, Demand
from sonic_parsl.protocol import MAX_REASON, BlockEntry, BlockState, Departure, ServerEntry, ServerTable

ENDED = {
    JobState.COMPLETED,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.TIMEOUT,
    JobState.MISSING,
    JobState.SCALED_IN,
}
LOST_SHOWN = 5
"""So many of the blocks that were lost are told to others: a long run on an opportunistic pool loses hundreds."""


class BlockBook:
    """The blocks of one group, oldest first.

    Parameters
    ----------
    group
        Label of the group.
    last_words
        Returns the end of what a block's job wrote to its stderr, or nothing.
    """

    def __init__(self, group: str, last_words: Callable[[str], str]) -> None:
        self._group = group
        self._last_words = last_words
        self._blocks: dict[str, Block] = {}
        self._departures_read = 0
        self._departed: set[str] = set()
        self._totals = (0, 0.0)
        self._queue_ms = 0.0
        self._active_at: float | None = None
        self._served_at: float | None = None

    @property
    def blocks(self) -> list[Block]:
        """Every block there was."""
        return list(self._blocks.values())

    def submitted(self, block_id: str, *, now: float) -> None:
        """Enter a new block."""
        self._blocks[block_id] = Block(id=block_id, submitted_at=now)

    def cancelled(self, block_id: str) -> None:
        """Note that the pool cancelled a block."""
        self._update(block_id, cancelled=True)

    def replaced(self, block_id: str) -> None:
        """Note that another block takes its place."""
        self._update(block_id, replaced=True)

    def fail(self, block_id: str, reason: str) -> None:
        """Note why a block failed and what its job said last, unless that is known already."""
        if block_id in self._blocks and self._blocks[block_id].failure is None:
            self._update(block_id, failure=f"{reason}\n{self._last_words(block_id)}".strip())

    def has_ended(self, block_id: str) -> bool:
        """Return whether the provider has said that the block's job is over."""
        return block_id in self._blocks and self._blocks[block_id].job_ended

    def servers_of(self, block_id: str, table: ServerTable) -> list[str]:
        """Return the ids of a block's servers."""
        return [entry.info.id for entry in self._entries(table) if entry.info.block_id == block_id]

    def hear_provider(self, status: Mapping[str, JobStatus], *, now: float) -> None:
        """Take the provider's word on the jobs; a job once called finished stays so."""
        for block_id, job in status.items():
            block = self._blocks.get(block_id)
            if block is None or block.job_ended:
                continue
            if job.state == JobState.RUNNING and block.running_at is None:
                self._update(block_id, running_at=now)
            if job.state in ENDED:
                self._update(block_id, job_ended=True)
                if not block.was_ready and not block.cancelled:
                    self.fail(block_id, _describe(job))

    def hear_registry(self, table: ServerTable, departures: Sequence[Departure], *, now: float) -> None:
        """Take the registry's word on the servers."""
        new, self._departures_read = departures[self._departures_read :], len(departures)
        for departure in new:
            if departure.group == self._group:
                self._depart(departure)
        if table.ready:
            self._served_at = now
        entries = self._entries(table)
        for block in self.blocks:
            self._count(block, [entry for entry in entries if entry.info.block_id == block.id], now)
        self._measure(entries, now)

    def without_servers(self, job_ids: Mapping[str, str]) -> tuple[BlockEntry, ...]:
        """Return the blocks that have no server in the table: what is on its way, and what was lost last.

        Parameters
        ----------
        job_ids
            The batch system's job of each block.
        """
        entries = list(self._without_servers(job_ids))
        old = [entry for entry in entries if entry.state == "lost"][:-LOST_SHOWN]
        return tuple(entry for entry in entries if entry not in old)

    def _without_servers(self, job_ids: Mapping[str, str]) -> Iterator[BlockEntry]:
        states: dict[str, BlockState] = {"queued": "queued", "starting": "starting"}
        for block in self.blocks:
            state = "lost" if block.phase == "ended" and block.failure is not None else states.get(block.phase)
            if state is not None and not block.servers_starting:
                reason = (block.failure or "").partition("\n")[0][:MAX_REASON]
                yield BlockEntry(self._group, block.id, str(job_ids.get(block.id, "")), state, reason)

    def demand(self, now: float) -> Demand:
        """Return what the servers reported lately."""
        idle_s = 0.0 if self._active_at is None else now - self._active_at
        unserved_s = math.inf if self._served_at is None else now - self._served_at
        return Demand(queue_ms=self._queue_ms, idle_s=idle_s, unserved_s=unserved_s)

    def _entries(self, table: ServerTable) -> list[ServerEntry]:
        return [entry for entry in table.servers if entry.info.group == self._group]

    def _depart(self, departure: Departure) -> None:
        """Note that a server left; why it failed tells more than that its job ended, whichever is heard first."""
        self._departed.add(departure.block_id)
        block = self._blocks.get(departure.block_id)
        if departure.failed and block is not None and not block.cancelled:
            text = f"{departure.reason}\n{departure.stderr}" if departure.stderr else departure.reason
            self._update(block.id, failure=text)

    def _count(self, block: Block, entries: Sequence[ServerEntry], now: float) -> None:
        states = [entry.state for entry in entries]
        gone_at = now if block.gone_at is None and block.id in self._departed else block.gone_at
        self._update(
            block.id,
            servers_ready=states.count("ready"),
            servers_starting=states.count("starting"),
            servers_leaving=states.count("draining"),
            ready_at=now if block.ready_at is None and "ready" in states else block.ready_at,
            ends_at=_ends_at(block, entries, now),
            running_at=block.running_at if block.running_at is not None or not states else now,
            gone_at=None if states else gone_at,
        )

    def _measure(self, entries: Sequence[ServerEntry], now: float) -> None:
        """Turn the servers' running totals into what happened since the last look."""
        requests = sum(entry.load.requests for entry in entries)
        queue_ms = sum(entry.load.queue_ms for entry in entries)
        before_requests, before_queue_ms = self._totals
        self._totals = (requests, queue_ms)
        if requests > before_requests:
            self._queue_ms = max(0.0, queue_ms - before_queue_ms) / (requests - before_requests)
            self._active_at = now
        elif self._active_at is None:
            self._active_at = now
        else:
            self._queue_ms = 0.0

    def _update(self, block_id: str, **changes: object) -> None:
        if block_id in self._blocks:
            self._blocks[block_id] = replace(self._blocks[block_id], **changes)  # type: ignore[arg-type]


def _ends_at(block: Block, entries: Sequence[ServerEntry], now: float) -> float | None:
    """Return when the walltime of the block's job ends, by the clock of `now`; None where no server says it.

    Servers say it in seconds since the epoch. It is turned around once, when it is first heard, for that clock may be set.
    """
    told = [entry.info.ends_at for entry in entries if entry.info.ends_at is not None]
    if not told or block.ends_at is not None:
        return block.ends_at if told else None
    return now + min(told) - time.time()


def _describe(job: JobStatus) -> str:
    parts = [f"its job ended as {job.state.name}"]
    if job.exit_code is not None:
        parts.append(f"exit code {job.exit_code}")
    text = ", ".join(parts)
    return f"{text}\n{job.message.strip()}" if job.message else text
