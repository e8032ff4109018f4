"""Who listens in on the network reads nothing of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import PoolRef
from sonic_parsl.rpc import RegistryStub
from tests.pool.conftest import agents_of, entry_of, joining, leaving
from tests.security.wire import APPLICATION_DATA, HANDSHAKE, TLS_1_2, Wire, listening_in, negotiated_version, records
from tests.server.agents import MODELS, agent, ask, rows_of

ROWS = rows_of(64, 32)


@contextmanager
def listened_to(pool: ServerPool, folder: Path) -> Iterator[tuple[Wire, Wire]]:
    """Let an agent and a client speak to the registry, and a client to Triton, while somebody listens in."""
    with (
        agent(pool, folder, MODELS, "identity") as server,
        listening_in(pool.ref.registries[0]) as registry,
        listening_in(server.ready_peer().address) as triton,
    ):
        asyncio.run(_talk(*(replace(ref, registries=(registry.address,)) for ref in (agents_of(pool), pool.ref))))
        answer = ask(replace(server.ready_peer(), address=triton.address), "identity", ROWS)
        np.testing.assert_array_equal(answer, ROWS)
        yield registry, triton


async def _talk(as_agent: PoolRef, as_client: PoolRef) -> None:
    speaker, follower = RegistryStub(as_agent), RegistryStub(as_client)
    try:
        await speaker.call(joining("talker", models=0))
        tables = follower.follow()
        assert entry_of(await anext(tables), "talker") is not None
        await tables.aclose()  # type: ignore[attr-defined]
        await speaker.call(leaving("talker"))
    finally:
        await speaker.close()
        await follower.close()


def read(wire: Wire) -> set[str]:
    """Return what of a run can be read there."""
    said = wire.all()
    words = {word for word in ("talker", "identity", "INPUT0", "Follow", "ModelInfer") if word.encode() in said}
    return words | ({"rows"} if ROWS[1].tobytes() in said else set())


def test_registry_and_triton_speak_tls_1_2_or_newer_and_nothing_can_be_read(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool, listened_to(pool, tmp_path) as wires:
        for wire in wires:
            assert read(wire) == set()
            for stream in (*wire.sent, *wire.received):
                kinds = [kind for kind, _ in records(bytes(stream))]
                assert kinds[0] == HANDSHAKE
                assert APPLICATION_DATA in kinds
            for stream in wire.received:
                assert negotiated_version(records(bytes(stream))[0][1]) >= TLS_1_2


def test_without_security_all_can_be_read(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run", security="none") as pool, listened_to(pool, tmp_path) as wires:
        registry, triton = map(read, wires)
    assert registry >= {"talker", "identity", "Follow"}
    assert triton >= {"identity", "INPUT0", "ModelInfer", "rows"}
