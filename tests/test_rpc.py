"""Who is let in by a registry's service, who is refused and how the stub says so."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

import grpc.aio
import pytest

from sonic_parsl import rpc
from sonic_parsl.errors import PoolError, PoolLostError, VersionMismatchError
from sonic_parsl.protocol import (
    VERSION,
    Ack,
    Credentials,
    Drain,
    Follow,
    Join,
    Leave,
    PoolRef,
    Renew,
    ServerInfo,
    ServerLoad,
    ServerTable,
    encode,
)
from sonic_parsl.rpc import AgentMessage, RegistryStub

INFO = ServerInfo("a-0-1", "a", "cpu", "hardware", "here", "127.0.0.1:1", "0", "", ())
MESSAGES = (
    Join(VERSION, INFO, "ready"),
    Renew("a-0-1", ServerLoad(rows=3)),
    Drain("a-0-1", "why not"),
    Leave("a-0-1", "0", "a", failed=True, reason="it was tired"),
)
TABLES = tuple(ServerTable(run_id="run", generation=number) for number in range(3))


@dataclass
class Diary:
    """A registry that notes what it is told, and has a few tables for who follows."""

    heard: list[AgentMessage] = field(default_factory=list)

    def answer(self, message: AgentMessage) -> Ack:
        self.heard.append(message)
        return Ack(known=len(self.heard) % 2 == 0, drain=True)

    async def follow(self) -> AsyncIterator[ServerTable]:
        for table in TABLES:
            yield table


@dataclass(frozen=True)
class Service:
    """A running service: what it heard and how to find it."""

    diary: Diary
    ref: PoolRef


def with_service(scenario: Callable[[Service], Awaitable[None]]) -> None:
    """Run `scenario` beside a service."""

    async def run() -> None:
        diary, credentials = Diary(), Credentials.new()
        server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
        server.add_generic_rpc_handlers((rpc.handler(diary, credentials),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await scenario(Service(diary, PoolRef("run", (f"127.0.0.1:{port}",), credentials)))
        finally:
            await server.stop(grace=None)

    asyncio.run(run())


async def follow(stub: RegistryStub) -> list[ServerTable]:
    return [table async for table in stub.follow()]


def test_every_message_arrives_as_it_was_sent_and_the_answer_comes_back() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(service.ref)
        acks = [await stub.call(message) for message in MESSAGES]
        assert await follow(stub) == list(TABLES)
        await stub.close()
        assert service.diary.heard == list(MESSAGES)
        assert acks == [Ack(known, drain=True) for known in (False, True, False, True)]

    with_service(scenario)


@pytest.mark.parametrize("token", ["", "wrong", "b\u00e4d"])
def test_wrong_credentials_are_refused_for_every_message(token: str) -> None:
    async def scenario(service: Service) -> None:
        channel = grpc.aio.insecure_channel(service.ref.registries[0])
        metadata = (("authorization", f"Bearer {token}".encode("ascii", "replace").decode()),)
        for message in MESSAGES:
            call = channel.unary_unary(f"/{rpc.SERVICE}/{type(message).__name__}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(encode(message), metadata=metadata)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in channel.unary_stream(f"/{rpc.SERVICE}/Follow")(encode(Follow(VERSION)), metadata=metadata):
                pass
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        await channel.close()
        assert service.diary.heard == []

    with_service(scenario)


def test_no_credentials_at_all_are_refused() -> None:
    async def scenario(service: Service) -> None:
        channel = grpc.aio.insecure_channel(service.ref.registries[0])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{rpc.SERVICE}/Join")(encode(MESSAGES[0]))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        await channel.close()

    with_service(scenario)


def test_credentials_of_another_run_are_an_error_that_says_so_and_shows_none() -> None:
    async def scenario(service: Service) -> None:
        stub = RegistryStub(replace(service.ref, credentials=Credentials(token="of-another-run")))
        with pytest.raises(PoolError, match="UNAUTHENTICATED: no valid credentials of this run") as caught:
            await stub.call(MESSAGES[0])
        assert not isinstance(caught.value, PoolLostError)
        assert "of-another-run" not in str(caught.value)
        with pytest.raises(PoolError, match="UNAUTHENTICATED"):
            await follow(stub)
        await stub.close()

    with_service(scenario)


@pytest.mark.parametrize(("theirs", "said"), [('"0.0.9"', r"0\.0\.9"), ("null", "None"), ('["x"]', "x")])
def test_another_version_is_refused_by_name_before_anything_else_is_read(theirs: str, said: str) -> None:
    async def scenario(service: Service) -> None:
        metadata = (("authorization", f"Bearer {service.ref.credentials.token}"),)
        data = f'{{"version": {theirs}, "of_another_shape": []}}'.encode()
        channel = grpc.aio.insecure_channel(service.ref.registries[0])
        with pytest.raises(grpc.aio.AioRpcError, match=f"driver runs sonic-parsl {VERSION}, an agent runs .*{said}"):
            await channel.unary_unary(f"/{rpc.SERVICE}/Join")(data, metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError, match=f"driver runs sonic-parsl {VERSION}, this worker runs .*{said}"):
            async for _ in channel.unary_stream(f"/{rpc.SERVICE}/Follow")(data, metadata=metadata):
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
        metadata = (("authorization", f"Bearer {service.ref.credentials.token}"),)
        fields = json.loads(encode(message))
        wrong = [
            {key: value for key, value in fields.items() if key == "version"},
            {**fields, "server_id": 3, "info": 3},
        ]
        channel = grpc.aio.insecure_channel(service.ref.registries[0])
        call = channel.unary_unary(f"/{rpc.SERVICE}/{type(message).__name__}")
        for data in wrong:
            with pytest.raises(grpc.aio.AioRpcError, match=f"{type(message).__name__} message could not be read"):
                await call(json.dumps(data).encode(), metadata=metadata)
        await call(encode(message), metadata=metadata)
        await channel.close()
        assert service.diary.heard == [message]

    with_service(scenario)


def test_a_registry_that_is_not_there_is_lost_at_once() -> None:
    async def scenario() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # and does not listen
            stub = RegistryStub(PoolRef("run", (f"127.0.0.1:{bound.getsockname()[1]}",), Credentials.new()))
            with pytest.raises(PoolLostError, match=r"cannot be reached: .*Is the driver still running\?"):
                await asyncio.wait_for(stub.call(MESSAGES[1]), 3.0)
            with pytest.raises(PoolLostError, match="cannot be reached"):
                await asyncio.wait_for(follow(stub), 3.0)
            await stub.close()

    asyncio.run(scenario())


def test_a_registry_that_does_not_answer_is_lost_after_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "CALL_TIMEOUT_S", 0.5)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            stub = RegistryStub(PoolRef("run", (f"127.0.0.1:{mute.getsockname()[1]}",), Credentials.new()))
            with pytest.raises(PoolLostError, match="cannot be reached"):
                await asyncio.wait_for(stub.call(MESSAGES[1]), 3.0)
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
            server.add_insecure_port(service.ref.registries[0])
        await server.stop(grace=None)

    with_service(scenario)


def test_a_channel_to_a_server_sends_no_pings_for_triton_ends_requests_because_of_them() -> None:
    assert not [name for name, _ in rpc.CHANNEL_OPTIONS if "keepalive" in name]
    assert dict(rpc.STUB_OPTIONS)["grpc.keepalive_time_ms"] > 0
