"""The registry: a process of its own that knows who serves, child of the pool's owner.

It is apart so that a busy driver cannot stall it. The pipe it was started with is its lifeline:
commands come in by it, events go out by it, and when it closes the owner is gone and the registry ends.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from typing_extensions import assert_never

from sonic_parsl import rpc
from sonic_parsl.credentials import block_name
from sonic_parsl.errors import ConfigError, ModelMismatchError
from sonic_parsl.pool import folder, leases
from sonic_parsl.pool.leases import LeaseTable
from sonic_parsl.pool.limits import NEWCOMERS, NEWCOMERS_PER_S, RateLimit, Shares, cost
from sonic_parsl.pool.pipe import from_line, to_line
from sonic_parsl.pool.spec import RegistrySpec
from sonic_parsl.pool.static import keep
from sonic_parsl.ports import free_port, listen_addresses
from sonic_parsl.protocol import (
    Ack,
    Blocks,
    Departure,
    Drain,
    Join,
    Leave,
    Listening,
    Lose,
    Renew,
    ServerInfo,
    ServerTable,
    encode,
)
from sonic_parsl.rpc import AgentMessage, RefusalError

EXPIRY_PERIOD_S = 0.5
HEARTBEAT_S = 5.0
"""Owner and followers get the table this often when nothing changes: its loads are news, and it shows that we live."""
PUBLISH_PERIOD_S = 0.05
"""What changes within this time is told at once: else servers that come by the hundred would each be news."""
READ_BYTES_PER_S = 2**22
"""A large table is told less often: driver and workers read it beside their own work."""
FRESH_S = 0.5
"""Loads in what followers get are no older."""
REBIND_S = 10.0
"""How long a registry that takes over tries to get the port of the one that ended."""
REBIND_PERIOD_S = 0.2


class LiveRegistry:
    """The lease table behind the gRPC service and the pipe.

    Parameters
    ----------
    tell
        Takes what the owner should know; must not block, for a busy owner reads late.
    """

    def __init__(self, spec: RegistrySpec, tell: Callable[[ServerTable | Departure], None]) -> None:
        self._table = LeaseTable(run_id=spec.run_id)
        if spec.table is not None:
            self._table = leases.restored(spec.table, spec.seen, time.monotonic())
        self._changed, self._news = asyncio.Event(), asyncio.Event()
        self._limit, self._newcomers = RateLimit(), RateLimit(NEWCOMERS, NEWCOMERS_PER_S)
        self._shares = Shares()
        for lease in self._table.leases.values():
            self._take_share(lease.entry.info)
        self._tell = tell
        self._encode()

    def allow(self, sender: str, size: int) -> None:
        """Count a message before it is read.

        Raises
        ------
        RefusalError
            There were too many of late.
        """
        if not self._limit.allows(sender, time.monotonic(), cost(size)):
            raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages; send fewer")

    def answer(self, message: AgentMessage, sender: str | None) -> Ack:
        """Answer an agent.

        Raises
        ------
        RefusalError
            There is no room for it, or it is what another block's agent should say.
        """
        now = time.monotonic()
        server_id = message.info.id if isinstance(message, Join) else message.server_id
        self._check_sender(message, server_id, sender)
        self._check_room(message, server_id, now)
        try:
            with self._publishing():
                self._apply(message, now)
        except ModelMismatchError as error:
            raise RefusalError(grpc.StatusCode.ALREADY_EXISTS, str(error)) from None
        lease = self._table.leases.get(server_id)
        drain = self._table.lost is not None or (lease is not None and lease.asked_to_drain)
        return Ack(known=lease is not None, drain=drain)

    def command(self, message: Drain | Blocks | Lose) -> None:
        """Do what the owner says."""
        with self._publishing():
            if isinstance(message, Drain):
                self._table = leases.drain(self._table, message)
            elif isinstance(message, Blocks):
                self._table = leases.tell_blocks(self._table, message)
            else:
                self._table = leases.lose(self._table, message.reason)

    def leases_s(self) -> float:
        """Return in how many seconds the last lease ends, if none is renewed."""
        return max((lease.expires - time.monotonic() for lease in self._table.leases.values()), default=0.0)

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield the table now, at each change, and at least every heartbeat."""
        while True:
            if self._news.is_set():
                await self._changed.wait()
            changed = self._changed
            yield self._fresh()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)

    async def publish_forever(self) -> None:
        """Let followers and owner know of changes, again and again."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._encode()
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            await asyncio.sleep(max(PUBLISH_PERIOD_S, len(self._encoded) / READ_BYTES_PER_S))

    async def expire_forever(self) -> None:
        """Take out servers whose lease ended, again and again."""
        while True:
            await asyncio.sleep(EXPIRY_PERIOD_S)
            with self._publishing():
                self._table, departures = leases.expire(self._table, time.monotonic())
                for departure in departures:
                    self._tell(departure)

    async def inform_forever(self, owner_listens: Callable[[], bool]) -> None:
        """Tell the owner the table at each change and each heartbeat; while it is busy that would only pile up."""
        while True:
            while not owner_listens():
                await asyncio.sleep(PUBLISH_PERIOD_S)
            changed = self._changed
            self._tell(self._table.snapshot())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)

    def _check_sender(self, message: AgentMessage, server_id: str, sender: str | None) -> None:
        if sender is None:
            return
        lease = self._table.leases.get(server_id)
        said = message.info if isinstance(message, Join) else message if isinstance(message, Leave) else None
        for block in (said, lease.entry.info if lease else None):
            if block and block_name(self._table.run_id, block.group, block.block_id) != sender:
                text = f"{sender} may not speak for server {server_id}, which is of another block"
                raise RefusalError(grpc.StatusCode.PERMISSION_DENIED, text)

    def _check_room(self, message: AgentMessage, server_id: str, now: float) -> None:
        """Refuse a server that the table has no room for, or whose coming and going is too much for the owner."""
        said = message.info if isinstance(message, Join) else message if isinstance(message, Leave) else None
        if said is None:
            return
        problem = None
        if server_id not in self._table.leases and not self._newcomers.allows(_block_of(said), now):
            problem = f"too many servers of {_block_of(said)} come and go"
        elif isinstance(message, Join):
            problem = self._shares.problem(server_id, _block_of(said), len(encode(message.info)))
        if problem is not None:
            raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)

    def _take_share(self, info: ServerInfo) -> None:
        self._shares.take(info.id, _block_of(info), len(encode(info)))

    def _apply(self, message: AgentMessage, now: float) -> None:
        if isinstance(message, Join):
            self._table = leases.join(self._table, message, now)
            self._take_share(message.info)
        elif isinstance(message, Renew):
            self._table = leases.renew(self._table, message, now)
        elif isinstance(message, Drain):
            self._table = leases.drain(self._table, message)
        elif isinstance(message, Leave):
            self._table, departure = leases.leave(self._table, message)
            self._tell(departure)
        else:
            assert_never(message)

    def _encode(self) -> None:
        """Make what followers get, once for all of them."""
        self._encoded, self._encoded_at = encode(self._table.snapshot()), time.monotonic()

    def _fresh(self) -> bytes:
        if time.monotonic() - self._encoded_at > FRESH_S:
            self._encode()
        return self._encoded

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """Tell owner and followers soon afterwards, if the table is of a new generation."""
        before = self._table.generation
        yield
        if self._table.generation != before:
            self._shares.keep(self._table.leases)
            self._news.set()


def _block_of(said: ServerInfo | Leave) -> str:
    return f"block {said.block_id} of {said.group}"


async def serve() -> None:
    """Be the registry until the owner is gone, or its end of the pipe is closed."""
    owner = os.getppid()
    _allow_many_connections()
    commands, events = await _open_pipes()
    spec = from_line(await commands.readline(), RegistrySpec)

    def tell(message: Any) -> None:
        events.write(to_line(message))

    registry = LiveRegistry(spec, tell)
    server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
    server.add_generic_rpc_handlers((rpc.handler(registry),))
    try:
        address = await _bind(server, spec)
    except ConfigError as error:
        tell(ServerTable(run_id=spec.run_id, generation=0, lost=str(error).rstrip(".")))
        return
    await server.start()
    tell(Listening(address=address))
    try:
        await _first_of(
            _obey(registry, commands),
            _outlive(owner),
            registry.expire_forever(),
            registry.publish_forever(),
            registry.inform_forever(owner_listens=lambda: events.get_write_buffer_size() == 0),
            *(keep(one, registry.answer) for one in spec.static),
        )
    finally:
        await server.stop(grace=None)
    if spec.run_dir is not None:  # an error of its own says nothing of the owner, who starts it again
        await _see_to_keys(spec.run_dir, spec.run_id, registry.leases_s())


async def _see_to_keys(run_dir: Path, run_id: str, leases_s: float) -> None:
    """Remove the keys that an owner which was killed has left, once no server needs them."""
    if folder.holds(run_dir, run_id):
        await asyncio.sleep(leases_s)
        if folder.holds(run_dir, run_id):
            folder.remove_keys(run_dir)


def _allow_many_connections() -> None:
    """Raise the soft limit on open files: each worker and agent is a connection, and so is each stranger's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # an unlimited one can be too much for the kernel
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
        registry.command(from_line(line, Drain, Blocks, Lose))


async def _outlive(owner: int) -> None:
    """Return when the owner is gone: a process it forked may hold the pipe open."""
    while os.getppid() == owner:
        await asyncio.sleep(EXPIRY_PERIOD_S)


async def _open_pipes() -> tuple[asyncio.StreamReader, asyncio.WriteTransport]:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    events, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
    return commands, events


async def _bind(server: Any, spec: RegistrySpec) -> str:
    if spec.port is not None:
        return await _bind_again(server, spec, spec.port)
    for address in listen_addresses(spec.address, spec.port_range):
        try:
            port = rpc.listen(server, address, spec.credentials)
        except RuntimeError:  # taken
            continue
        return f"{spec.address}:{port}"
    free_port(spec.address, spec.port_range)
    raise ConfigError(f"No port of {spec.address} that was free a moment ago is so now.")


async def _bind_again(server: Any, spec: RegistrySpec, port: int) -> str:
    address, end = f"{spec.address}:{port}", time.monotonic() + REBIND_S
    while True:
        try:
            rpc.listen(server, address, spec.credentials)
        except RuntimeError:
            if time.monotonic() > end:
                raise ConfigError(f"the registry's port {address} was taken when it had to start again") from None
            await asyncio.sleep(REBIND_PERIOD_S)
        else:
            return address


if __name__ == "__main__":
    asyncio.run(serve())
