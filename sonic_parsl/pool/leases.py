"""The lease table: who serves, until when. Pure functions of (table, now)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sonic_parsl.protocol import (
    Departure,
    Drain,
    Join,
    Leave,
    Renew,
    ServerEntry,
    ServerTable,
)


@dataclass(frozen=True)
class Lease:
    """A server's right to be in the table.

    Attributes
    ----------
    expires
        When it ends unless it is renewed, in seconds of the registry's monotonic clock.
    length_s
        What a renewal adds to now, in seconds.
    asked_to_drain
        True once the pool wants the server to end.
    """

    entry: ServerEntry
    expires: float
    length_s: float
    asked_to_drain: bool = False


@dataclass(frozen=True)
class LeaseTable:
    """The registry's state."""

    run_id: str
    generation: int = 0
    leases: Mapping[str, Lease] = field(default_factory=dict)
    lost: str | None = None

    def snapshot(self) -> ServerTable:
        """Return what clients see."""
        servers = tuple(lease.entry for lease in self.leases.values())
        return ServerTable(run_id=self.run_id, generation=self.generation, servers=servers, lost=self.lost)


def join(table: LeaseTable, message: Join, now: float) -> LeaseTable:
    """Enter a server, or note that it became ready."""
    server_id = message.info.id
    old = table.leases.get(server_id)
    lease = Lease(
        entry=ServerEntry(info=message.info, state=message.state),
        expires=now + message.lease_s,
        length_s=message.lease_s,
        asked_to_drain=old.asked_to_drain if old else False,
    )
    return _changed(table, {**table.leases, server_id: lease})


def renew(table: LeaseTable, message: Renew, now: float) -> LeaseTable:
    """Extend a lease; a server the table does not hold stays out, it has to join again."""
    lease = table.leases.get(message.server_id)
    if lease is None:
        return table
    entry = replace(lease.entry, load=message.load)
    leases = {**table.leases, message.server_id: replace(lease, entry=entry, expires=now + lease.length_s)}
    return replace(table, leases=leases)  # no new generation: load alone is no news worth sending to everyone


def drain(table: LeaseTable, message: Drain) -> LeaseTable:
    """Note that a server takes no new requests."""
    lease = table.leases.get(message.server_id)
    if lease is None or lease.entry.state == "draining":
        return table
    drained = replace(lease, entry=replace(lease.entry, state="draining"), asked_to_drain=True)
    return _changed(table, {**table.leases, message.server_id: drained})


def leave(table: LeaseTable, message: Leave) -> tuple[LeaseTable, Departure]:
    """Take a server out at its own word."""
    lease = table.leases.get(message.server_id)
    departure = Departure(
        server_id=message.server_id,
        block_id=message.block_id,
        group=message.group,
        failed=message.failed,
        reason=message.reason,
        stderr=message.stderr,
        entry=replace(lease.entry, load=message.load) if lease else None,
    )
    if lease is None:
        return table, departure
    rest = {key: value for key, value in table.leases.items() if key != message.server_id}
    return _changed(table, rest), departure


def expire(table: LeaseTable, now: float) -> tuple[LeaseTable, tuple[Departure, ...]]:
    """Take out every server whose lease has ended."""
    ended = {key: lease for key, lease in table.leases.items() if lease.expires <= now}
    if not ended:
        return table, ()
    rest = {key: lease for key, lease in table.leases.items() if key not in ended}
    departures = tuple(
        Departure(
            server_id=key,
            block_id=lease.entry.info.block_id,
            group=lease.entry.info.group,
            failed=True,
            reason=f"nothing was heard of it for {lease.length_s:g} s",
            entry=lease.entry,
        )
        for key, lease in ended.items()
    )
    return _changed(table, rest), departures


def lose(table: LeaseTable, reason: str) -> LeaseTable:
    """Give the pool up; the first reason stays."""
    return table if table.lost else _changed(replace(table, lost=reason), table.leases)


def _changed(table: LeaseTable, leases: Mapping[str, Lease]) -> LeaseTable:
    return replace(table, leases=leases, generation=table.generation + 1)
