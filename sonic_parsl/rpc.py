"""The registry's gRPC service: its methods, the stub that calls them, the handler that answers.

Generic methods carry the dataclasses of :mod:`sonic_parsl.protocol` as JSON: no generated code.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

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
    ServerTable,
    decode,
    encode,
)

SERVICE = "sonic_parsl.Pool"
CALL_TIMEOUT_S = 5.0
"""A registry on the same site answers in milliseconds; one that needs this long counts as unreachable."""

T = TypeVar("T")
Context = Any
"""``grpc.aio.ServicerContext``: gRPC ships no types."""
AgentMessage = Join | Renew | Drain | Leave
_CALLS: dict[str, type[AgentMessage]] = {cls.__name__: cls for cls in (Join, Renew, Drain, Leave)}

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Servers and registry are named by their address: a site's web proxy must not come between.
    ("grpc.enable_http_proxy", 0),
    # A server that comes back, or a port used again, should be tried at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""For every channel. No keep-alive: Triton takes it for an attack and ends requests longer than 50 s."""

STUB_OPTIONS = (
    *CHANNEL_OPTIONS,
    # A driver's node that lost its power sends no FIN: only keep-alive finds out.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
SERVER_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.http2.max_ping_strikes", 0),
    # Else two registries on one port would each get some of the messages.
    ("grpc.so_reuseport", 0),
)


class RegistryStub:
    """Calls a pool's registry; made and used inside one event loop."""

    def __init__(self, ref: PoolRef) -> None:
        hosts = ref.registries
        self._channel = grpc.aio.insecure_channel(
            hosts[0] if len(hosts) == 1 else "ipv4:" + ",".join(hosts), options=STUB_OPTIONS
        )
        self._metadata = (("authorization", f"Bearer {ref.credentials.token}"),)

    async def call(self, message: AgentMessage) -> Ack:
        """Send an agent's message.

        Raises
        ------
        PoolLostError
            The registry cannot be reached now.
        VersionMismatchError, PoolError
            It refuses the message.
        """
        method = self._channel.unary_unary(f"/{SERVICE}/{type(message).__name__}")
        try:
            return decode(Ack, await method(encode(message), timeout=CALL_TIMEOUT_S, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from None

    async def follow(self) -> AsyncIterator[ServerTable]:
        """Yield the table now and at each change, and every few seconds in between.

        Raises
        ------
        PoolLostError
            The registry cannot be reached now.
        VersionMismatchError, PoolError
            It refuses the client.
        """
        method = self._channel.unary_stream(f"/{SERVICE}/Follow")
        try:
            async for data in method(encode(Follow(version=VERSION)), metadata=self._metadata):
                yield decode(ServerTable, data)
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from None

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def _translate(error: grpc.aio.AioRpcError) -> PoolError:
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return VersionMismatchError(details, hint="Install the same version of sonic-parsl everywhere.")
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return PoolLostError(f"The pool's registry cannot be reached: {details}.", hint="Is the driver still running?")
    return PoolError(f"The pool's registry refused: {code.name}: {details}.")


class Registry(Protocol):
    """What answers the service."""

    def answer(self, message: AgentMessage) -> Ack:
        """Answer an agent."""

    def follow(self) -> AsyncIterator[ServerTable]:
        """Yield the table for a client."""


def handler(registry: Registry, credentials: Credentials) -> grpc.GenericRpcHandler:
    """Return the gRPC handler that lets `registry` answer calls which carry `credentials`."""
    door = _Door(credentials)

    def unary(cls: type[AgentMessage]) -> grpc.RpcMethodHandler:
        async def serve(data: bytes, context: Context) -> bytes:
            if cls is Join:
                await door.check_version("an agent", data, context)
            return encode(registry.answer(await door.read(cls, data, context)))

        return grpc.unary_unary_rpc_method_handler(serve)

    async def follow(data: bytes, context: Context) -> AsyncIterator[bytes]:
        await door.check_version("this worker", data, context)
        await door.read(Follow, data, context)
        async for table in registry.follow():
            yield encode(table)

    methods = {name: unary(cls) for name, cls in _CALLS.items()}
    return grpc.method_handlers_generic_handler(
        SERVICE, {**methods, "Follow": grpc.unary_stream_rpc_method_handler(follow)}
    )


@dataclass(frozen=True)
class _Door:
    """Lets in who has the run's credentials, speaks the protocol and is of our version."""

    credentials: Credentials

    async def read(self, cls: type[T], data: bytes, context: Context) -> T:
        await self._check_credentials(context)
        try:
            return decode(cls, data)
        except PoolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise  # abort() raises; this tells readers so

    async def check_version(self, who: str, data: bytes, context: Context) -> None:
        """Refuse another version, before reading what it sends as if it were ours."""
        await self._check_credentials(context)
        try:
            theirs = json.loads(data)["version"]
        except (ValueError, KeyError, TypeError):
            theirs = "an unknown version"
        if theirs != VERSION:
            text = f"The pool's driver runs sonic-parsl {VERSION}, {who} runs {theirs}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)

    async def _check_credentials(self, context: Context) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), f"Bearer {self.credentials.token}".encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid credentials of this run")
