"""The registry: a process of its own that knows who serves, child of the pool's owner.

It is apart so that a busy driver cannot stall it. The pipe it was started with is its lifeline:
commands come in by it, events go out by it, and when it closes the owner is gone and the registry ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc.aio
from typing_extensions import assert_never

from sonic_parsl import rpc
from sonic_parsl.errors import ConfigError
from sonic_parsl.pool import leases
from sonic_parsl.pool.leases import LeaseTable
from sonic_parsl.pool.pipe import from_line, to_line
from sonic_parsl.ports import free_port, listen_addresses
from sonic_parsl.protocol import (
    Ack,
    Departure,
    Drain,
    Join,
    Leave,
    Listening,
    Lose,
    RegistrySpec,
    Renew,
    ServerTable,
)

EXPIRY_PERIOD_S = 0.5
HEARTBEAT_S = 5.0
"""Owner and followers get the table this often when nothing changes: its loads are news, and it shows that we live."""


class LiveRegistry:
    """The lease table behind the gRPC service and the pipe.

    Parameters
    ----------
    tell
        Takes what the owner should know; must not block, for a busy owner reads late.
    """

    def __init__(self, spec: RegistrySpec, tell: Callable[[ServerTable | Departure], None]) -> None:
        self._table = LeaseTable(run_id=spec.run_id)
        self._changed = asyncio.Event()
        self._tell = tell

    def answer(self, message: rpc.AgentMessage) -> Ack:
        """Answer an agent."""
        with self._publishing():
            self._apply(message, time.monotonic())
        server_id = message.info.id if isinstance(message, Join) else message.server_id
        lease = self._table.leases.get(server_id)
        drain = self._table.lost is not None or (lease is not None and lease.asked_to_drain)
        return Ack(known=lease is not None, drain=drain)

    def command(self, message: Drain | Lose) -> None:
        """Do what the owner says."""
        with self._publishing():
            if isinstance(message, Drain):
                self._table = leases.drain(self._table, message)
            else:
                self._table = leases.lose(self._table, message.reason)

    async def follow(self) -> AsyncIterator[ServerTable]:
        """Yield the table now, at each change, and at least every heartbeat."""
        while True:
            changed = self._changed
            yield self._table.snapshot()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)

    async def expire_forever(self) -> None:
        """Take out servers whose lease ended, again and again."""
        while True:
            await asyncio.sleep(EXPIRY_PERIOD_S)
            with self._publishing():
                self._table, departures = leases.expire(self._table, time.monotonic())
                for departure in departures:
                    self._tell(departure)

    async def beat_forever(self, owner_listens: Callable[[], bool]) -> None:
        """Tell the owner the loads, again and again; while it is busy they would only pile up."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if owner_listens():
                self._tell(self._table.snapshot())

    def _apply(self, message: rpc.AgentMessage, now: float) -> None:
        if isinstance(message, Join):
            self._table = leases.join(self._table, message, now)
        elif isinstance(message, Renew):
            self._table = leases.renew(self._table, message, now)
        elif isinstance(message, Drain):
            self._table = leases.drain(self._table, message)
        elif isinstance(message, Leave):
            self._table, departure = leases.leave(self._table, message)
            self._tell(departure)
        else:
            assert_never(message)

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """Tell owner and followers afterwards, if the table is of a new generation."""
        before = self._table.generation
        yield
        if self._table.generation != before:
            self._tell(self._table.snapshot())
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()


async def serve() -> None:
    """Be the registry until the owner is gone, or its end of the pipe is closed."""
    owner = os.getppid()
    commands, events = await _open_pipes()
    spec = from_line(await commands.readline(), RegistrySpec)
    registry = LiveRegistry(spec, tell=lambda message: events.write(to_line(message)))
    server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
    server.add_generic_rpc_handlers((rpc.handler(registry, spec.credentials),))
    try:
        address = _bind(server, spec)
    except ConfigError as error:
        events.write(to_line(ServerTable(run_id=spec.run_id, generation=0, lost=str(error).rstrip("."))))
        return
    await server.start()
    events.write(to_line(Listening(address=address)))
    try:
        await _first_of(
            _obey(registry, commands),
            _outlive(owner),
            registry.expire_forever(),
            registry.beat_forever(owner_listens=lambda: events.get_write_buffer_size() == 0),
        )
    finally:
        await server.stop(grace=None)


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Return, or raise, when the first of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(part) for part in work]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    for task in done:
        task.result()


async def _obey(registry: LiveRegistry, commands: asyncio.StreamReader) -> None:
    """Do what the owner says until it closes the pipe."""
    while line := await commands.readline():
        registry.command(from_line(line, Drain, Lose))


async def _outlive(owner: int) -> None:
    """Return when the owner is gone: a process it forked may hold the pipe open."""
    while os.getppid() == owner:
        await asyncio.sleep(EXPIRY_PERIOD_S)


async def _open_pipes() -> tuple[asyncio.StreamReader, asyncio.WriteTransport]:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    events, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
    return commands, events


def _bind(server: Any, spec: RegistrySpec) -> str:
    for address in listen_addresses(spec.address, spec.port_range):
        try:
            port = server.add_insecure_port(address)
        except RuntimeError:  # taken
            continue
        return f"{spec.address}:{port}"
    free_port(spec.address, spec.port_range)
    raise ConfigError(f"No port of {spec.address} that was free a moment ago is so now.")


if __name__ == "__main__":
    asyncio.run(serve())
