"""The registry's gRPC service: its methods, the stub that calls them, the handler that answers.

Generic methods carry the dataclasses of :mod:`sonic_parsl.protocol` as JSON: no generated code.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.errors import ModelMismatchError, PoolError, PoolLostError, VersionMismatchError
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import (
    VERSION,
    Ack,
    Drain,
    Follow,
    Join,
    Leave,
    Renew,
    ServerTable,
    decode,
    encode,
)

SERVICE = "sonic_parsl.Pool"
CALL_TIMEOUT_S = 5.0
"""A registry on the same site answers in milliseconds; one that needs this long counts as unreachable."""

READ_TIMEOUT_S = 30.0
"""Who follows and does not read is let go after so long: what it was sent takes memory."""

T = TypeVar("T")
Context = Any
"""``grpc.aio.ServicerContext``: gRPC ships no types."""
AgentMessage = Join | Renew | Drain | Leave
_CALLS: dict[str, type[AgentMessage]] = {cls.__name__: cls for cls in (Join, Renew, Drain, Leave)}

ChannelOptions = tuple[tuple[str, int | str], ...]
_COMMON_OPTIONS: ChannelOptions = (
    ("grpc.max_send_message_length", -1),
    # Servers and registry are named by their address: a site's web proxy must not come between.
    ("grpc.enable_http_proxy", 0),
    # A server that comes back, or a port used again, should be tried at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
CHANNEL_OPTIONS: ChannelOptions = (*_COMMON_OPTIONS, ("grpc.max_receive_message_length", -1))
"""For every channel. No keep-alive: Triton takes it for an attack and ends requests longer than 50 s."""

STUB_OPTIONS = (
    *CHANNEL_OPTIONS,
    # A driver's node that lost its power sends no FIN: only keep-alive finds out.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
MAX_MESSAGE_BYTES = 2**20
"""Of one message to the registry: a server of a thousand models needs a third of it."""
SERVER_OPTIONS: ChannelOptions = (
    *_COMMON_OPTIONS,  # of an option that is named twice, gRPC takes the first
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 2**14),
    ("grpc.http2.max_ping_strikes", 0),
    # Who connects and says nothing, or goes away without a word, is forgotten.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Else two registries on one port would each get some of the messages.
    ("grpc.so_reuseport", 0),
)


def open_channel(peer: Peer, options: ChannelOptions = CHANNEL_OPTIONS) -> grpc.aio.Channel:
    """Return a channel to `peer`: plain, or TLS that checks the name it should have."""
    if not peer.secure:
        return grpc.aio.insecure_channel(peer.address, options=options)
    credentials = grpc.ssl_channel_credentials(*map(_pem, (peer.authority, peer.key, peer.certificate)))
    if peer.name is not None:
        options = (*options, ("grpc.ssl_target_name_override", peer.name))
    return grpc.aio.secure_channel(peer.address, credentials, options=options)


async def answer_within(call: Awaitable[T], timeout_s: float) -> T:
    """Return the answer to a gRPC call that was made without a timeout, or give it up after `timeout_s`.

    gRPC's own timeout is an instant of the wall clock: set forward between two readings, the call is over before it
    is sent; set back, it never is.

    Raises
    ------
    grpc.aio.AioRpcError
        The call failed, or took longer (``DEADLINE_EXCEEDED``).
    """
    late = False

    def give_up() -> None:
        nonlocal late
        late = call.cancel()  # type: ignore[attr-defined] # gRPC ships no types

    timer = asyncio.get_running_loop().call_later(timeout_s, give_up)
    try:
        return await call
    except asyncio.CancelledError:
        if not late or _is_cancelled():
            raise
        nothing = grpc.aio.Metadata()
        text = f"no answer in {timeout_s:.3g} s"
        raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, nothing, nothing, text) from None
    finally:
        timer.cancel()


def _is_cancelled() -> bool:
    """Return whether somebody has cancelled the current task, which tells so since Python 3.11.

    A function of its own: the task in a variable would keep itself, and its call, alive until it is collected.
    """
    return bool(getattr(asyncio.current_task(), "cancelling", int)())


def call_metadata(peer: Peer) -> tuple[tuple[str, str], ...]:
    """Return what each call to `peer` carries beside its message."""
    return () if peer.token is None else (("authorization", f"Bearer {peer.token}"),)


def listen(server: grpc.aio.Server, address: str, credentials: Credentials | None) -> int:
    """Let `server` listen at ``host:port``, for who has a certificate of the same run; return the port.

    Raises
    ------
    RuntimeError
        The port is taken.
    """
    if credentials is None:
        return int(server.add_insecure_port(address))
    pair = (credentials.key.encode(), credentials.certificate.encode())
    authority = credentials.authority.encode()
    return int(
        server.add_secure_port(address, grpc.ssl_server_credentials([pair], authority, require_client_auth=True))
    )


def _pem(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


class RegistryStub:
    """Calls a pool's registry; made and used inside one event loop."""

    def __init__(self, ref: PoolRef) -> None:
        self._channel = open_channel(ref.registry, STUB_OPTIONS)
        self._lost: str | None = None

    async def call(self, message: AgentMessage) -> Ack:
        """Send an agent's message.

        Raises
        ------
        PoolLostError
            The registry cannot be reached now.
        VersionMismatchError, ModelMismatchError, PoolError
            It refuses the message.
        """
        method = self._channel.unary_unary(f"/{SERVICE}/{type(message).__name__}")
        try:
            return decode(Ack, await answer_within(method(encode(message)), CALL_TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from None

    async def follow(self) -> AsyncIterator[ServerTable]:
        """Yield the table now and at each change, and every few seconds in between.

        Raises
        ------
        PoolLostError
            The registry cannot be reached now, or has ended after it said why the pool is lost.
        VersionMismatchError, PoolError
            It refuses the client.
        """
        method = self._channel.unary_stream(f"/{SERVICE}/Follow")
        try:
            async for data in method(encode(Follow(version=VERSION))):
                table = decode(ServerTable, data)
                self._lost = table.lost
                yield table
        except grpc.aio.AioRpcError as error:
            problem = _translate(error)
            if self._lost is not None and isinstance(problem, PoolLostError):
                problem = PoolLostError(f"The pool is lost: {self._lost}")
            raise problem from None

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def is_distrust(details: str) -> bool:
    """Return whether a connection failed since this side does not trust the other's certificate."""
    return any(text in details.lower() for text in _DISTRUST)


_DISTRUST = ("handshake failed", "security handshaker", "verification check failed")
_STRANGER = "Who listens there shows no certificate of this run: is the pool's file that of an earlier run?"


def _translate(error: grpc.aio.AioRpcError) -> PoolError:
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return VersionMismatchError(details, hint="Install the same version of sonic-parsl everywhere.")
    if code == grpc.StatusCode.ALREADY_EXISTS:
        return ModelMismatchError(details)
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        hint = _STRANGER if is_distrust(details) else "Is the driver still running?"
        return PoolLostError(f"The pool's registry cannot be reached: {details.rstrip('.')}.", hint=hint)
    return PoolError(f"The pool's registry refused: {code.name}: {details.rstrip('.')}.")


class RefusalError(Exception):
    """A registry does not do what a message asks for.

    Attributes
    ----------
    code
        gRPC status to answer with.
    """

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Registry(Protocol):
    """What answers the service."""

    def allow(self, sender: str, size: int) -> None:
        """Count a message of `size` bytes before it is read.

        Parameters
        ----------
        sender
            Who sends it: a name in a certificate, or a connection.

        Raises
        ------
        RefusalError
            There were too many of late.
        """

    def answer(self, message: AgentMessage, sender: str | None) -> Ack:
        """Answer an agent.

        Parameters
        ----------
        sender
            The name in its certificate; None where the run has no security.

        Raises
        ------
        RefusalError
            It may not say this, or not now.
        """

    def follow(self) -> AsyncIterator[bytes]:
        """Yield the table for a client, encoded."""


def handler(registry: Registry) -> grpc.GenericRpcHandler:
    """Return the gRPC handler that lets `registry` answer."""

    def unary(cls: type[AgentMessage]) -> grpc.RpcMethodHandler:
        async def serve(data: bytes, context: Context) -> bytes:
            await _allow(registry, _sender(context) or context.peer(), data, context)
            if cls is Join:
                await _check_version("an agent", data, context)
            message = await _read(cls, data, context)
            try:
                return encode(registry.answer(message, _sender(context)))
            except RefusalError as refusal:
                await context.abort(refusal.code, str(refusal))
                raise  # abort() raises; this tells readers so

        return grpc.unary_unary_rpc_method_handler(serve)

    async def follow(data: bytes, context: Context) -> None:
        # By connection: all workers of a run have one certificate, and may all come at once.
        await _allow(registry, context.peer(), data, context)
        await _check_version("this worker", data, context)
        await _read(Follow, data, context)
        async for table in registry.follow():
            try:
                await asyncio.wait_for(context.write(table), READ_TIMEOUT_S)
            except asyncio.TimeoutError:
                await context.abort(grpc.StatusCode.ABORTED, f"the table was not read within {READ_TIMEOUT_S:g} s")

    methods = {name: unary(cls) for name, cls in _CALLS.items()}
    return grpc.method_handlers_generic_handler(
        SERVICE, {**methods, "Follow": grpc.unary_stream_rpc_method_handler(follow)}
    )


async def _allow(registry: Registry, sender: str, data: bytes, context: Context) -> None:
    try:
        registry.allow(sender, len(data))
    except RefusalError as refusal:
        await context.abort(refusal.code, str(refusal))


async def _read(cls: type[T], data: bytes, context: Context) -> T:
    try:
        return decode(cls, data)
    except PoolError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise


async def _check_version(who: str, data: bytes, context: Context) -> None:
    """Refuse another version, before reading what it sends as if it were ours."""
    try:
        theirs = json.loads(data)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        theirs = None
    if theirs != VERSION:
        theirs = ascii(theirs)[1:41].rstrip("'") if isinstance(theirs, str) else "an unknown version"
        text = f"The pool's driver runs sonic-parsl {VERSION}, {who} runs {theirs}"
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)


def _sender(context: Context) -> str | None:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return names[0].decode() if names else None
