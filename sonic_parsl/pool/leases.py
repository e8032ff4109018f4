"""The lease table: who serves, until when. Pure functions of (table, now)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sonic_parsl.pool.origins import Origins, remember
from sonic_parsl.protocol import (
    BlockEntry,
    Blocks,
    Departure,
    Drain,
    Join,
    Leave,
    Renew,
    ServerEntry,
    ServerInfo,
    ServerTable,
)


@dataclass(frozen=True)
class Lease:
    """A server's right to be in the table.

    Attributes
    ----------
    expires
        When it ends unless it is renewed, in seconds of the registry's monotonic clock.
    asked_to_drain
        True once the pool wants the server to end.
    """

    entry: ServerEntry
    expires: float
    asked_to_drain: bool = False


@dataclass(frozen=True)
class LeaseTable:
    """The registry's state.

    Attributes
    ----------
    origins
        Which server was the first to serve each model, and what it was made from.
    """

    run_id: str
    generation: int = 0
    leases: Mapping[str, Lease] = field(default_factory=dict)
    blocks: tuple[BlockEntry, ...] = ()
    lost: str | None = None
    origins: Origins = field(default_factory=dict)

    def snapshot(self) -> ServerTable:
        """Return what clients see."""
        servers = tuple(lease.entry for lease in self.leases.values())
        return ServerTable(self.run_id, self.generation, servers, self.lost, self.blocks)


def restored(table: ServerTable, seen: Iterable[ServerInfo], now: float) -> LeaseTable:
    """Return the state of a registry that takes over from one that ended: each lease starts anew."""
    origins: Origins = {}
    for info in seen:
        origins = remember(origins, info)
    return LeaseTable(
        run_id=table.run_id,
        generation=table.generation + 1,
        leases={
            # Which of those that drain were asked to is not in the table; asking again does no harm.
            entry.info.id: Lease(entry, now + entry.info.lease_s, asked_to_drain=entry.state == "draining")
            for entry in table.servers
        },
        blocks=table.blocks,
        lost=table.lost,
        origins=origins,
    )


def join(table: LeaseTable, message: Join, now: float) -> LeaseTable:
    """Enter a server, or note that it became ready.

    Raises
    ------
    ModelMismatchError
        It serves another model than others under the same name and version.
    """
    info = message.info
    old = table.leases.get(info.id)
    lease = Lease(
        entry=ServerEntry(info=info, state=message.state),
        expires=now + info.lease_s,
        asked_to_drain=old.asked_to_drain if old else False,
    )
    table = replace(table, origins=remember(table.origins, info))
    return _changed(table, {**table.leases, info.id: lease})


def renew(table: LeaseTable, message: Renew, now: float) -> LeaseTable:
    """Extend a lease; a server the table does not hold stays out, it has to join again."""
    lease = table.leases.get(message.server_id)
    if lease is None:
        return table
    entry = replace(lease.entry, load=message.load)
    renewed = replace(lease, entry=entry, expires=now + entry.info.lease_s)
    # No new generation: load alone is no news worth sending to everyone.
    return replace(table, leases={**table.leases, message.server_id: renewed})


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
            reason=f"nothing was heard of it for {lease.entry.info.lease_s:g} s",
            entry=lease.entry,
        )
        for key, lease in ended.items()
    )
    return _changed(table, rest), departures


def tell_blocks(table: LeaseTable, message: Blocks) -> LeaseTable:
    """Note which blocks of a group have no server here."""
    others = tuple(entry for entry in table.blocks if entry.group != message.group)
    return _changed(replace(table, blocks=(*others, *message.entries)), table.leases)


def lose(table: LeaseTable, reason: str) -> LeaseTable:
    """Give the pool up; the first reason stays."""
    return table if table.lost else _changed(replace(table, lost=reason), table.leases)


def _changed(table: LeaseTable, leases: Mapping[str, Lease]) -> LeaseTable:
    return replace(table, leases=leases, generation=table.generation + 1)
