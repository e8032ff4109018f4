"""A facility's gateway before a Triton: TLS with its own authority, a token with each call, and a diary of who came."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sonic_parsl import rpc
from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.kserve import SERVICE

CHUNK_BYTES = 2**16


@dataclass
class Diary:
    """What a gateway saw.

    Attributes
    ----------
    certificates
        Names in the certificate that each connection showed; empty for one without.
    tokens
        The ``authorization`` of each call; None where there was none.
    methods
        What was asked.
    refused
        Methods that the gateway refuses, which a test may change.
    unknown
        Methods that it does not have: of a server that is no Triton, those that are Triton's own.
    """

    certificates: list[tuple[str, ...]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


class Forward(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes calls on to a Triton, as bytes, if they bring the token that is wanted."""

    def __init__(self, triton: grpc.aio.Channel, diary: Diary, token: str | None) -> None:
        self._triton = triton
        self._diary = diary
        self._token = token

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        """Return what answers a call."""
        method = details.method

        async def answer(data: bytes, context: Any) -> bytes:
            said = dict(context.invocation_metadata()).get("authorization")
            self._diary.methods.append(method.removeprefix(f"/{SERVICE}/"))
            self._diary.tokens.append(said)
            if self._token is not None and said != f"Bearer {self._token}":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this gateway wants its token")
            if self._diary.methods[-1] in self._diary.refused:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this gateway has no room")
            if self._diary.methods[-1] in self._diary.unknown:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
            try:
                answered: bytes = await self._triton.unary_unary(method)(data)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
                raise
            return answered

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def gateway(
    triton: str, shown: Credentials, diary: Diary, *, token: str | None, also_trusted: str
) -> AsyncIterator[str]:
    """Serve on this machine; yield the address.

    Parameters
    ----------
    triton
        Address of a Triton without TLS.
    shown
        The gateway's own certificate.
    also_trusted
        An authority whose certificates it would take, if somebody showed one, and write into its diary.
    """
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(rpc.open_channel(Peer(triton)))
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Forward(channel, diary, token),))
        inside = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        front = await asyncio.start_server(
            lambda reader, writer: _pass_on(reader, writer, inside, diary),
            "127.0.0.1",
            0,
            ssl=_tls(shown, also_trusted),
        )
        stack.callback(front.close)
        yield f"localhost:{front.sockets[0].getsockname()[1]}"


def _tls(shown: Credentials, also_trusted: str) -> ssl.SSLContext:
    """Ask for a certificate, but do not insist on one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=also_trusted)
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "pair.pem"
        pair.write_text(shown.certificate + shown.key)
        context.load_cert_chain(pair)
    return context


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, diary: Diary) -> None:
    found = writer.get_extra_info("peercert") or {}
    diary.certificates.append(tuple(name for _, name in found.get("subjectAltName", ())))
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
