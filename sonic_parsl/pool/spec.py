"""What a registry is started with, over its standard input."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sonic_parsl.credentials import Credentials
from sonic_parsl.poolref import StaticServer
from sonic_parsl.ports import PortRange
from sonic_parsl.protocol import ServerEntry, ServerInfo, ServerTable


@dataclass(frozen=True)
class RegistrySpec:
    """Where a registry listens, whom it lets in, and what it should know from an earlier one.

    Attributes
    ----------
    address
        IPv4 address or host name it listens on.
    credentials
        What it shows and checks; None where the run has no security.
    port_range
        First and last port to choose from.
    port
        The port it must have, since agents and clients know it; None for a first registry.
    static
        Servers that it looks after itself, since they have no agent.
    table
        The last table of a registry that ended: its servers keep their places.
    seen
        Every server there was, oldest first: their models' digests stay binding.
    run_dir
        Folder whose keys it removes if its owner ends without doing so.
    """

    run_id: str
    address: str
    credentials: Credentials | None = field(default=None, repr=False)
    port_range: PortRange | None = None
    port: int | None = None
    static: tuple[StaticServer, ...] = field(default=(), repr=False)
    table: ServerTable | None = None
    seen: tuple[ServerInfo, ...] = ()
    run_dir: Path | None = None


def seen_of(entries: tuple[ServerEntry, ...]) -> tuple[ServerInfo, ...]:
    """Return the servers that had models."""
    return tuple(entry.info for entry in entries if entry.info.models)
