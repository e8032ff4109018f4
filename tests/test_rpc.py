"""Who is let in by a registry's service, who is refused and how the stub says so."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest

from sonic_parsl import rpc
from sonic_parsl.credentials import Peer, block_name, client_name, registry_name
from sonic_parsl.errors import PoolError, PoolLostError, VersionMismatchError
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import (
    VERSION,
    Ack,
    Drain,
    Follow,
    Join,
    Leave,
    Renew,
    ServerEntry,
    ServerInfo,
    ServerLoad,
    ServerTable,
    encode,
)
from sonic_parsl.rpc import AgentMessage, RefusalError, RegistryStub

INFO = ServerInfo("a-0-1", "a", "cpu", "hardware", "here", "127.0.0.1:1", "0", "", ())
MESSAGES = (
    Join(VERSION, INFO, "ready"),
    Renew("a-0-1", ServerLoad(rows=3)),
    Drain("a-0-1", "why not"),
    Leave("a-0-1", "0", "a", failed=True, reason="it was tired"),
)
REFUSED = Renew("refused", ServerLoad())
AGENT = block_name("run", "a", "0")
TABLES = tuple(ServerTable(run_id="run", generation=number) for number in range(3))


@dataclass
class Diary:
    """A registry that notes what it is told, and has a few tables for who follows."""

    heard: list[AgentMessage] = field(default_factory=list)
    senders: set[str | None] = field(default_factory=set)
    allowed: list[tuple[str, int]] = field(default_factory=list)
    limit: int = 1000
    tables: tuple[ServerTable, ...] = TABLES

    def allow(self, sender: str, size: int) -> None:
        self.allowed.append((sender, size))
        if len(self.allowed) > self.limit:
            raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages")

    def answer(self, message: AgentMessage, sender: str | None) -> Ack:
        self.heard.append(message)
        self.senders.add(sender)
        if message == REFUSED:
            raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much of this")
        return Ack(known=len(self.heard) % 2 == 0, drain=True)

    async def follow(self) -> AsyncIterator[bytes]:
        for table in self.tables:
            yield encode(table)


@dataclass(frozen=True)
class Service:
    """A running service: what it heard and how to find it."""

    diary: Diary
    authority: CertificateAuthority
    ref: PoolRef


def with_service(scenario: Callable[[Service], Awaitable[None]]) -> None:
    """Run `scenario` beside a service."""

    async def run() -> None:
        diary, authority = Diary(), CertificateAuthority("run")
        server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
        server.add_generic_rpc_handlers((rpc.handler(diary),))
        port = rpc.listen(server, "127.0.0.1:0", authority.issue(registry_name("run")))
        await server.start()
        ref = PoolRef("run", (f"127.0.0.1:{port}",), authority.issue(AGENT))
        try:
            await scenario(Service(diary, authority, ref))
        finally:
            await server.stop(grace=None)

    asyncio.run(run())


async def follow(stub: RegistryStub) -> list[ServerTable]:
    return await rest_of(stub.follow())


async def rest_of(tables: AsyncIterator[ServerTable]) -> list[ServerTable]:
    return [table async for table in tables]


def test_every_message_arrives_as_it_was_sent_and_the_answer_comes_back() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        acks = [await stub.call(message) for message in MESSAGES]
        assert await follow(stub) == list(TABLES)
        await stub.close()
        assert service.diary.heard == list(MESSAGES)
        assert acks == [Ack(known, drain=True) for known in (False, True, False, True)]
        assert service.diary.senders == {AGENT}

    with_service(scenario)


def strangers(service: Service) -> dict[str, Peer]:
    """Return ways to reach the service that are not those of its run."""
    ours, other = service.ref.registry, CertificateAuthority("run")
    expired = service.authority.issue(AGENT, valid=-timedelta(hours=1))
    forged = other.issue(AGENT)
    return {
        "plain": Peer(ours.address),
        "without a certificate": replace(ours, certificate=None, key=None),
        "with an expired certificate": replace(ours, certificate=expired.certificate, key=expired.key),
        "with one of another run": replace(ours, certificate=forged.certificate, key=forged.key),
        "with all of another run": Peer.of_run(ours.address, registry_name("run"), forged),
    }


def test_who_has_no_valid_certificate_of_the_run_is_refused_whatever_it_says() -> None:
    async def scenario(service: Service) -> None:
        for how, peer in strangers(service).items():
            channel = rpc.open_channel(peer)
            for message in MESSAGES:
                call = channel.unary_unary(f"/{rpc.SERVICE}/{type(message).__name__}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(encode(message), timeout=5.0)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, how
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in channel.unary_stream(f"/{rpc.SERVICE}/Follow")(encode(Follow(VERSION)), timeout=5.0):
                    pass
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, how
            await channel.close()
        assert service.diary.heard == []

    with_service(scenario)


def test_a_registry_of_another_run_is_an_error_that_says_so_and_shows_no_key() -> None:
    async def scenario(service: Service) -> None:
        forged = CertificateAuthority("run").issue(AGENT)
        stub = RegistryStub(replace(service.ref, credentials=forged))
        for talk in (stub.call(MESSAGES[0]), follow(stub)):
            with pytest.raises(PoolLostError, match=r"handshake failed.* shows no certificate of this run") as caught:
                await talk
            assert "PRIVATE" not in f"{caught.value!r}"
            assert forged.key not in f"{caught.value!r}"
        await stub.close()

    with_service(scenario)


def test_somebody_of_the_run_who_is_not_the_registry_is_not_taken_for_it() -> None:
    async def scenario(service: Service) -> None:
        for name in (client_name("run"), block_name("run", "a", "0"), registry_name("another")):
            server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
            server.add_generic_rpc_handlers((rpc.handler(Diary()),))
            port = rpc.listen(server, "127.0.0.1:0", service.authority.issue(name))
            await server.start()
            stub = RegistryStub(replace(service.ref, registries=(f"127.0.0.1:{port}",)))
            with pytest.raises(PoolLostError, match=r"[Vv]erification [Cc]heck failed.* no certificate of this run"):
                await stub.call(MESSAGES[0])
            await stub.close()
            await server.stop(grace=None)

    with_service(scenario)


def test_a_refusal_reaches_the_sender_with_its_reason() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        with pytest.raises(PoolError, match="registry refused: RESOURCE_EXHAUSTED: too much of this") as caught:
            await stub.call(REFUSED)
        assert not isinstance(caught.value, PoolLostError)
        await stub.close()

    with_service(scenario)


def test_a_message_that_is_too_large_is_refused_unread_and_the_service_goes_on() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        large = Leave("a-0-1", "0", "a", failed=True, reason="x" * rpc.MAX_MESSAGE_BYTES)
        with pytest.raises(PoolError, match="registry refused: RESOURCE_EXHAUSTED"):
            await stub.call(large)
        assert (await stub.call(MESSAGES[0])).drain
        await stub.close()
        assert service.diary.heard == [MESSAGES[0]]

    with_service(scenario)


def test_messages_are_counted_by_certificate_and_followers_by_connection_before_they_are_read() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        await stub.call(MESSAGES[0])
        await follow(stub)
        (agent, size), (follower, _) = service.diary.allowed
        assert (agent, size) == (AGENT, len(encode(MESSAGES[0])))
        assert re.match(r"ipv[46]:.*:\d+$", unquote(follower))
        service.diary.limit = 0
        for talk in (stub.call(MESSAGES[0]), follow(stub)):
            with pytest.raises(PoolError, match="RESOURCE_EXHAUSTED: too many messages"):
                await talk
        channel = rpc.open_channel(service.ref.registry)
        with pytest.raises(grpc.aio.AioRpcError, match="too many messages"):
            await channel.unary_unary(f"/{rpc.SERVICE}/Renew")(b"what cannot be read")
        await channel.close()
        await stub.close()

    with_service(scenario)


def test_who_follows_and_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "READ_TIMEOUT_S", 0.5)

    async def scenario(service: Service) -> None:
        large = ServerTable("run", 0, tuple(ServerEntry(replace(INFO, id=f"a-{i}"), "ready") for i in range(1000)))
        service.diary.tables = (large,) * 100
        stub = RegistryStub(service.ref)
        tables = stub.follow()
        assert await anext(tables) == large
        await asyncio.sleep(1.0)  # it does not read, longer than it may
        with pytest.raises(PoolError, match=r"ABORTED: the table was not read within 0\.5 s"):
            await rest_of(tables)
        monkeypatch.undo()  # a busy machine may need half a second for one of them
        assert await follow(stub) == list(service.diary.tables)
        await stub.close()

    with_service(scenario)


def test_without_security_a_service_is_plain_and_knows_no_senders() -> None:
    async def scenario() -> None:
        server, diary = grpc.aio.server(options=rpc.SERVER_OPTIONS), Diary()
        server.add_generic_rpc_handlers((rpc.handler(diary),))
        port = rpc.listen(server, "127.0.0.1:0", None)
        await server.start()
        stub = RegistryStub(PoolRef("run", (f"127.0.0.1:{port}",)))
        assert (await stub.call(MESSAGES[0])).drain
        await stub.close()
        await server.stop(grace=None)
        assert diary.senders == {None}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("theirs", "said"),
    [('"0.0.9"', r"0\.0\.9"), ("null", "an unknown version"), ('["x"]', "an unk"), (r'"\ud800"', "ud800")],
)
def test_another_version_is_refused_by_name_before_anything_else_is_read(theirs: str, said: str) -> None:
    async def scenario(service: Service) -> None:
        data = f'{{"version": {theirs}, "of_another_shape": []}}'.encode()
        channel = rpc.open_channel(service.ref.registry)
        with pytest.raises(grpc.aio.AioRpcError, match=f"driver runs sonic-parsl {VERSION}, an agent runs .*{said}"):
            await channel.unary_unary(f"/{rpc.SERVICE}/Join")(data)
        with pytest.raises(grpc.aio.AioRpcError, match=f"driver runs sonic-parsl {VERSION}, this worker runs .*{said}"):
            async for _ in channel.unary_stream(f"/{rpc.SERVICE}/Follow")(data):
                pass
        await channel.close()
        assert service.diary.heard == []

    with_service(scenario)


def test_an_agent_of_another_version_gets_an_error_that_names_both() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        with pytest.raises(VersionMismatchError, match=rf"sonic-parsl {VERSION}, an agent runs 9\.9\.9.*same version"):
            await stub.call(replace(MESSAGES[0], version="9.9.9"))
        await stub.close()

    with_service(scenario)


def test_a_worker_of_another_version_gets_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        with monkeypatch.context() as older:
            older.setattr(rpc, "Follow", lambda **_: Follow(version="0.0.9"))
            with pytest.raises(VersionMismatchError, match=rf"sonic-parsl {VERSION}, this worker runs 0\.0\.9.*same"):
                await follow(stub)
        await stub.close()

    with_service(scenario)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_cannot_be_read_is_refused_and_the_service_goes_on(message: AgentMessage) -> None:
    async def scenario(service: Service) -> None:
        fields = json.loads(encode(message))
        wrong = [
            {key: value for key, value in fields.items() if key == "version"},
            {**fields, "server_id": 3, "info": 3},
        ]
        channel = rpc.open_channel(service.ref.registry)
        call = channel.unary_unary(f"/{rpc.SERVICE}/{type(message).__name__}")
        for data in wrong:
            with pytest.raises(grpc.aio.AioRpcError, match=f"{type(message).__name__} message could not be read"):
                await call(json.dumps(data).encode())
        await call(encode(message))
        await channel.close()
        assert service.diary.heard == [message]

    with_service(scenario)


def test_a_registry_that_is_not_there_is_lost_at_once() -> None:
    async def scenario() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # and does not listen
            stub = RegistryStub(PoolRef("run", (f"127.0.0.1:{bound.getsockname()[1]}",)))
            with pytest.raises(PoolLostError, match=r"cannot be reached: .*Is the driver still running\?"):
                await asyncio.wait_for(stub.call(MESSAGES[1]), 30.0)
            with pytest.raises(PoolLostError, match="cannot be reached"):
                await asyncio.wait_for(follow(stub), 30.0)
            await stub.close()

    asyncio.run(scenario())


def test_a_registry_that_does_not_answer_is_lost_after_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "CALL_TIMEOUT_S", 0.5)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            stub = RegistryStub(PoolRef("run", (f"127.0.0.1:{mute.getsockname()[1]}",)))
            with pytest.raises(PoolLostError, match="cannot be reached"):
                await asyncio.wait_for(stub.call(MESSAGES[1]), 30.0)
            await stub.close()

    asyncio.run(scenario())


def test_of_two_registries_the_one_that_is_there_is_used() -> None:
    async def scenario(service: Service) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            gone = f"127.0.0.1:{bound.getsockname()[1]}"
            stub = RegistryStub(replace(service.ref, registries=(gone, *service.ref.registries)))
            assert (await stub.call(MESSAGES[0])).drain
            await stub.close()

    with_service(scenario)


def test_two_services_cannot_listen_on_one_port() -> None:
    async def scenario(service: Service) -> None:
        server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
        with pytest.raises(RuntimeError, match="Failed to bind"):
            rpc.listen(server, service.ref.registries[0], service.ref.credentials)
        await server.stop(grace=None)

    with_service(scenario)


def test_a_channel_to_a_server_sends_no_pings_for_triton_ends_requests_because_of_them() -> None:
    assert not [name for name, _ in rpc.CHANNEL_OPTIONS if "keepalive" in name]
    assert int(dict(rpc.STUB_OPTIONS)["grpc.keepalive_time_ms"]) > 0
