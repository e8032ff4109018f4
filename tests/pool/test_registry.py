"""The registry's promises, kept by a real child process over real gRPC."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio
import pytest

from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.pool.registry import HEARTBEAT_S
from sonic_parsl.protocol import Ack, Drain, Renew, ServerLoad, ServerTable
from sonic_parsl.rpc import SERVICE, open_channel
from tests.pool.conftest import MODEL, agents_of, departure_of, entry_of, joining, leaving, table_when, talking_to

AT_ONCE_S = 4.0
"""Far below a heartbeat, far above what a busy machine needs."""


def test_a_server_that_joins_is_seen_with_all_that_it_serves(pool: ServerPool) -> None:
    async def scenario() -> None:
        async with talking_to(agents_of(pool)) as registry:
            assert await registry.call(joining("joins", "starting", models=0)) == Ack(known=True)
            starting = await table_when(registry.follow(), lambda table: entry_of(table, "joins") is not None)
            await registry.call(joining("joins"))
            ready = await table_when(registry.follow(), lambda table: "joins" in {one.info.id for one in table.ready})
        entry = entry_of(starting, "joins")
        assert entry is not None
        assert (entry.state, entry.info.models) == ("starting", ())
        assert entry_of(ready, "joins") == type(entry)(info=joining("joins").info, state="ready")
        assert ready.generation == starting.generation + 1
        assert ready.ready[-1].info.models == (MODEL,)

    asyncio.run(scenario())


def test_followers_and_owner_hear_of_every_change_at_once(pool: ServerPool) -> None:
    async def scenario() -> list[ServerTable]:
        async with talking_to(agents_of(pool)) as agent, talking_to(pool.ref) as client:
            tables = client.follow()
            seen = [await anext(tables)]
            for message in (joining("news", "starting"), joining("news"), Drain("news", "why not"), leaving("news")):
                await agent.call(message)
                seen.append(await asyncio.wait_for(anext(tables), AT_ONCE_S))
            return seen

    first, *rest = asyncio.run(scenario())
    assert [table.generation - first.generation for table in rest] == [1, 2, 3, 4]
    states = [entry.state if (entry := entry_of(table, "news")) else None for table in rest]
    assert states == ["starting", "ready", "draining", None]
    assert pool.wait_for(lambda table: table.generation >= rest[-1].generation, AT_ONCE_S)
    assert pool.table == rest[-1]


def test_a_lease_that_nobody_renews_ends_and_everybody_hears_of_it(pool: ServerPool) -> None:
    async def scenario() -> tuple[ServerTable, ServerTable, float]:
        async with talking_to(agents_of(pool)) as registry:
            tables = registry.follow()
            await registry.call(joining("silent", lease_s=1.0))
            start = time.monotonic()
            before = await table_when(tables, lambda table: entry_of(table, "silent") is not None)
            after = await table_when(tables, lambda table: entry_of(table, "silent") is None)
            return before, after, time.monotonic() - start

    before, after, lasted_s = asyncio.run(scenario())
    assert after.generation == before.generation + 1
    assert 0.9 < lasted_s < 1.0 + AT_ONCE_S
    departure = departure_of(pool, "silent")
    assert (departure.failed, departure.block_id, departure.group) == (True, "7", "cpu")
    assert departure.reason == "nothing was heard of it for 1 s"


def test_a_lease_that_is_renewed_does_not_end_and_is_no_news(pool: ServerPool) -> None:
    load = ServerLoad(rows=64, requests=2, queue_ms=1.5)

    async def scenario() -> tuple[ServerTable, ServerTable]:
        async with talking_to(agents_of(pool)) as registry:
            await registry.call(joining("alive", lease_s=1.0))
            before = await anext(registry.follow())
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert await registry.call(Renew("alive", load)) == Ack(known=True, drain=False)
                await asyncio.sleep(0.2)
            after = await anext(registry.follow())
            await registry.call(leaving("alive"))
            return before, after

    before, after = asyncio.run(scenario())
    assert after.generation == before.generation
    entry = entry_of(after, "alive")
    assert entry is not None
    assert entry.load == load


def test_a_server_the_table_does_not_hold_is_told_to_join_again(pool: ServerPool) -> None:
    async def scenario() -> None:
        async with talking_to(agents_of(pool)) as registry:
            before = await anext(registry.follow())
            assert await registry.call(Renew("stranger", ServerLoad())) == Ack(known=False, drain=False)
            assert await anext(registry.follow()) == before
            assert (await registry.call(joining("stranger"))).known
            assert (await registry.call(Renew("stranger", ServerLoad()))).known

    asyncio.run(scenario())


def test_a_server_that_leaves_is_gone_and_the_owner_knows_why_and_what_it_did(pool: ServerPool) -> None:
    load = ServerLoad(rows=1000, requests=10)

    async def scenario() -> ServerTable:
        async with talking_to(agents_of(pool)) as registry:
            await registry.call(joining("leaves"))
            assert await registry.call(leaving("leaves", failed=True, stderr="no device", load=load)) == Ack(False)
            return await anext(registry.follow())

    assert entry_of(asyncio.run(scenario()), "leaves") is None
    departure = departure_of(pool, "leaves")
    assert (departure.failed, departure.reason, departure.stderr) == (True, "it was tired", "no device")
    assert departure.entry is not None
    assert departure.entry.load == load
    assert departure.entry in pool.servers


def test_the_owners_wish_to_drain_reaches_followers_at_once_and_the_agent_with_its_next_renewal(
    pool: ServerPool,
) -> None:
    async def scenario() -> None:
        async with talking_to(agents_of(pool)) as registry:
            await registry.call(joining("surplus"))
            tables = registry.follow()
            await anext(tables)
            pool.drain("surplus", "there are enough")
            table = await asyncio.wait_for(anext(tables), AT_ONCE_S)
            entry = entry_of(table, "surplus")
            assert entry is not None
            assert entry.state == "draining"
            assert await registry.call(Renew("surplus", ServerLoad())) == Ack(known=True, drain=True)
            await registry.call(leaving("surplus"))

    asyncio.run(scenario())


def test_followers_hear_the_loads_now_and_then_although_nothing_changes(pool: ServerPool) -> None:
    async def scenario() -> tuple[ServerTable, ServerTable]:
        async with talking_to(agents_of(pool)) as registry:
            tables = registry.follow()
            return await anext(tables), await asyncio.wait_for(anext(tables), HEARTBEAT_S + AT_ONCE_S)

    first, second = asyncio.run(scenario())
    assert first == second


@pytest.mark.parametrize("method", ["Join", "Renew", "Drain", "Leave", "Follow"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"null", b'{"server_id": 3}', b"{" * 5000])
def test_a_malformed_message_is_refused_and_the_registry_goes_on(pool: ServerPool, method: str, data: bytes) -> None:
    async def scenario() -> tuple[grpc.StatusCode, ServerTable]:
        async with open_channel(agents_of(pool).registry) as channel:
            code = await _refused(channel, method, data)
        async with talking_to(agents_of(pool)) as registry:
            return code, await anext(registry.follow())

    code, table = asyncio.run(scenario())
    versioned = method in {"Join", "Follow"}
    assert code == (grpc.StatusCode.FAILED_PRECONDITION if versioned else grpc.StatusCode.INVALID_ARGUMENT)
    assert table.run_id == pool.run_id


def test_a_message_of_our_version_that_cannot_be_read_is_refused_without_quoting_it(pool: ServerPool) -> None:
    data = b'{"version": "%s", "info": "secret"}' % joining("x").version.encode()

    async def scenario() -> Any:
        async with open_channel(agents_of(pool).registry) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _call(channel, "Join", data)
            return caught.value

    error = asyncio.run(scenario())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "info" in error.details()
    assert "secret" not in error.details()


def test_a_follower_that_goes_away_disturbs_nobody(pool: ServerPool) -> None:
    async def scenario() -> ServerTable:
        async with talking_to(pool.ref) as staying:
            tables = staying.follow()
            await anext(tables)
            for _ in range(5):
                async with talking_to(pool.ref) as leaving_client:
                    await anext(leaving_client.follow())
            async with talking_to(agents_of(pool)) as agent:
                await agent.call(joining("late"))
            return await asyncio.wait_for(table_when(tables, lambda table: bool(entry_of(table, "late"))), AT_ONCE_S)

    assert entry_of(asyncio.run(scenario()), "late") is not None


async def _call(channel: Any, method: str, data: bytes) -> None:
    path = f"/{SERVICE}/{method}"
    if method == "Follow":
        async for _ in channel.unary_stream(path)(data):
            return
    else:
        await channel.unary_unary(path)(data)


async def _refused(channel: Any, method: str, data: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _call(channel, method, data)
    return caught.value.code()
