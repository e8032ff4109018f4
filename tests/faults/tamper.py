"""A KServe v2 server that passes everything on to a real Triton, and changes its answers as a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from sonic_parsl.kserve import SERVICE
from sonic_parsl.rpc import CHANNEL_OPTIONS

Response = Any
"""``ModelInferResponse``: protobuf's classes are made at run time."""
Change = Callable[[Response], Coroutine[Any, Any, list[Response]]]
"""Turns an answer into those that are sent: none, one or several."""


async def as_it_is(response: Response) -> list[Response]:
    """Change nothing."""
    return [response]


class TamperingServer:
    """A server in front of a Triton.

    Parameters
    ----------
    target
        ``host:port`` of the Triton.

    Attributes
    ----------
    change
        What happens to each answer; may be set at any time.
    tampered
        Answers that were changed.
    """

    def __init__(self, target: str) -> None:
        self.change: Change = as_it_is
        self.tampered = 0
        self._changing: set[asyncio.Task[list[Response]]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{asyncio.run_coroutine_threadsafe(self._start(target), self._loop).result()}"

    def stop(self) -> None:
        """End it."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, target: str) -> int:
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        self._server.add_generic_rpc_handlers((_Handler(self, self._channel),))
        port: int = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def _stop(self) -> None:
        for task in self._changing:
            task.cancel()  # an answer that a test holds back
        await self._server.stop(0)
        await self._channel.close()

    async def changed(self, answer: bytes) -> list[bytes]:
        """Return what to send for an answer of Triton's."""
        if self.change is as_it_is:
            return [answer]
        self.tampered += 1
        change = self.change(service_pb2.ModelInferResponse.FromString(answer))
        task = asyncio.ensure_future(change)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        responses = await task
        return [response.SerializeToString() for response in responses]


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes every method on as bytes."""

    def __init__(self, server: TamperingServer, channel: Any) -> None:
        self._server = server
        self._channel = channel

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def pass_on(data: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                answer = await self._channel.unary_unary(method)(data)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())
            answers = await self._server.changed(answer) if method == f"/{SERVICE}/ModelInfer" else [answer]
            for one in answers:
                yield one

        # On the wire a stream of one answer is an answer.
        return grpc.unary_stream_rpc_method_handler(pass_on)
