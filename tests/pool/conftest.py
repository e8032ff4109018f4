"""A real registry for the tests of this room, and what agents say to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest

from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import (
    VERSION,
    Departure,
    Join,
    Leave,
    ServedModel,
    ServerEntry,
    ServerInfo,
    ServerLoad,
    ServerState,
    ServerTable,
    TensorSpec,
)
from sonic_parsl.rpc import RegistryStub
from tests.leaks import wait_until

DIGEST = "ab" * 32
ROWS = TensorSpec("INPUT0", "FP32", (32,))
GROUP, BLOCK = "cpu", "7"
"""Of all servers that join here."""
MODEL = ServedModel("identity", "1", 1024, (ROWS,), (TensorSpec("OUTPUT0", "FP32", (32,)),), source_digest=DIGEST)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """A pool whose registry runs."""
    with ServerPool(run_dir=tmp_path_factory.mktemp("pool") / "run") as opened:
        yield opened


def joining(
    server_id: str, state: ServerState = "ready", *, lease_s: float = 60.0, models: int = 1, digest: str = DIGEST
) -> Join:
    """Return what the agent of a server says first."""
    info = ServerInfo(
        id=server_id,
        group=GROUP,
        kind="cpu",
        fidelity="hardware",
        node="here",
        address="127.0.0.1:1",
        block_id=BLOCK,
        job_id="",
        models=(replace(MODEL, source_digest=digest),) * models,
        lease_s=lease_s,
    )
    return Join(version=VERSION, info=info, state=state)


def leaving(server_id: str, *, failed: bool = False, stderr: str = "", load: ServerLoad | None = None) -> Leave:
    """Return what the agent of a server says last."""
    return Leave(
        server_id=server_id,
        block_id=BLOCK,
        group=GROUP,
        failed=failed,
        reason="it was tired",
        stderr=stderr,
        load=load or ServerLoad(),
    )


def agents_of(pool: ServerPool) -> PoolRef:
    """Return how the agents of the block find the pool."""
    return pool.admit(GROUP, BLOCK)


def secrets_of(*refs: PoolRef) -> list[str]:
    """Return the line of each key that no other key has."""
    keys = [ref.credentials.key for ref in refs if ref.credentials is not None]
    assert len(keys) == len(refs)
    return [key.splitlines()[-2] for key in keys]


@asynccontextmanager
async def talking_to(ref: PoolRef) -> AsyncIterator[RegistryStub]:
    """Connect to a registry."""
    stub = RegistryStub(ref)
    try:
        yield stub
    finally:
        await stub.close()


async def table_when(tables: AsyncIterator[ServerTable], condition: Callable[[ServerTable], bool]) -> ServerTable:
    """Follow until a table fulfils `condition`; return it."""
    async for table in tables:
        if condition(table):
            return table
    raise AssertionError("the registry ended before")


def entry_of(table: ServerTable, server_id: str) -> ServerEntry | None:
    """Return a server's line."""
    return next((entry for entry in table.servers if entry.info.id == server_id), None)


def departure_of(pool: ServerPool, server_id: str) -> Departure:
    """Wait until the owner hears that a server left."""
    wait_until(lambda: any(one.server_id == server_id for one in pool.departures), 10.0, "no departure")
    return next(one for one in pool.departures if one.server_id == server_id)


def registry_of(ref: PoolRef) -> psutil.Process:
    """Return the registry's process."""
    (pid,) = [one.pid for one in _listeners(ref.registries[0])]
    return psutil.Process(pid)


def is_listening(address: str) -> bool:
    """Return whether somebody listens at `address`."""
    return bool(_listeners(address))


def _listeners(address: str) -> list[Any]:
    port = int(address.rpartition(":")[2])
    # gRPC listens on 127.0.0.1 with a socket of IPv6: the port says enough.
    return [
        one
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
    ]
