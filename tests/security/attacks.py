"""Attacks on a registry, each a process of its own: what a broken or hostile process of a run could send.

The attack's name is the argument, what it needs comes as JSON by standard input, what came of it goes to
standard output. With the same seed the messages are the same.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import string
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio

from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import (
    VERSION,
    Drain,
    Follow,
    Join,
    Leave,
    Renew,
    ServedModel,
    ServerInfo,
    ServerLoad,
    TensorSpec,
    decode,
    encode,
)
from sonic_parsl.rpc import MAX_MESSAGE_BYTES, SERVICE, STUB_OPTIONS, open_channel

TIMEOUT_S = 20.0
AT_ONCE = 64
SEED = 20240917
SPEC = TensorSpec("INPUT0", "FP32", (32,))
MODEL = ServedModel("identity", "1", 64, (SPEC,), (SPEC,), source_digest="ab" * 32)


async def call(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    """Send a message; return the name of the status."""
    path = f"/{SERVICE}/{method}"
    try:
        if method == "Follow":
            stream = channel.unary_stream(path)(data, timeout=TIMEOUT_S)
            await stream.read()
            stream.cancel()
        else:
            await channel.unary_unary(path)(data, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


def joining(group: str, server_id: str, *, models: int = 1, lease_s: float = 5.0) -> Join:
    """Return what an agent of block 0 of a group says."""
    served = tuple(replace(MODEL, version=str(number)) for number in range(models))
    info = ServerInfo(server_id, group, "cpu", "hardware", "n", "127.0.0.1:1", "0", "", served, lease_s=lease_s)
    return Join(VERSION, info, "ready")


async def in_parallel(work: Sequence[Callable[[], Awaitable[str]]]) -> Counter[str]:
    """Do it all, some at once; count the outcomes."""
    turn, counts = asyncio.Semaphore(AT_ONCE), Counter[str]()

    async def one(what: Callable[[], Awaitable[str]]) -> None:
        async with turn:
            counts[await what()] += 1

    await asyncio.gather(*map(one, work))
    return counts


# Messages that make no sense --------------------------------------------------


def valid(rng: random.Random, group: str) -> tuple[str, dict[str, Any]]:
    """Return a method and a message that could be meant."""
    name = f"{group}-{rng.randrange(20)}"
    message = rng.choice(
        [
            joining(group, name, models=rng.randrange(3)),
            Renew(name, ServerLoad(rows=3)),
            Drain(name, "why not"),
            Leave(name, "0", group, failed=True, reason="told to", stderr="line"),
            Follow(VERSION),
        ]
    )
    return type(message).__name__, json.loads(encode(message))


def nonsense(rng: random.Random) -> Any:
    """Return a value that hardly any field has room for."""
    deep: Any = "x"
    for _ in range(rng.choice([5, 300])):
        deep = [deep] if rng.random() < 0.5 else {"info": deep}
    return rng.choice(
        [
            *(None, True, -1, 0, 2**63, 2**64, -(2**200), 1e308, float("nan"), float("inf"), "", [], {}, [[]]),
            *("\ud800", "\u0000\u001b[31m", "x" * rng.choice([10, 257, 20_000]), "é" * 300, deep),
            *("unix:/etc/passwd", "127.0.0.1:99999", "../../etc/passwd", "client", VERSION, [MODEL.name] * 2_000),
        ]
    )


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to each value in a message."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def changed(rng: random.Random, data: Any) -> Any:
    """Return a message with a value that is wrong, missing or new."""
    *outer, last = rng.choice(places(data)[1:] or [("version",)])
    inner = data
    for key in outer:
        inner = inner[key]
    what = rng.random()
    if what < 0.7:
        inner[last] = nonsense(rng)
    elif what < 0.85 and isinstance(inner, dict):
        inner.pop(last, None)
    elif isinstance(inner, dict):
        inner["".join(rng.choices(string.printable, k=8))] = nonsense(rng)
    return data


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return bytes that are no longer what they were."""
    what = rng.randrange(6)
    at = rng.randrange(len(data) + 1)
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    if what == 2:
        return data[:-1] + b', "version": 3, "server_id": {}, ' + data[1:]  # keys that come twice
    if what == 3:
        return b"[" * rng.choice([100, 100_000]) + data
    if what == 4:
        return b'{"version": ' + b"9" * rng.choice([30, 5_000, 500_000]) + b"}"
    return rng.randbytes(rng.randrange(300))


def message(rng: random.Random, group: str) -> tuple[str, bytes]:
    """Return a method and what to send it, wrong in one way or another, or in none."""
    method, data = valid(rng, group)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        data = changed(rng, data)
    if rng.random() < 0.05:
        method = rng.choice(["Join", "Renew", "Drain", "Leave", "Follow"])
    text = json.dumps(data).encode()
    return method, damaged(rng, text) if rng.random() < 0.25 else text


async def fuzz(refs: list[PoolRef], *, groups: list[str], count: int) -> dict[str, int]:
    """Send wrong messages by the certificate of each block and of a client; count the answers."""
    rng = random.Random(SEED)
    channels = [open_channel(ref.registry, STUB_OPTIONS) for ref in refs]
    work = []
    for number in range(count):
        group = groups[number % len(groups)]
        method, data = message(rng, group)
        channel = channels[number % len(channels)]
        work.append(partial(call, channel, method, data))
    counts = await in_parallel(work)
    for channel in channels:
        await channel.close()
    return counts


# Too much -----------------------------------------------------------------------


async def flood(refs: list[PoolRef], *, group: str, count: int, models: int) -> dict[str, int]:
    """Let thousands of servers of one block join, as fast as possible."""
    async with open_channel(refs[0].registry, STUB_OPTIONS) as channel:
        data = [encode(joining(group, f"{group}-{number}", models=models)) for number in range(count)]
        return await in_parallel([partial(call, channel, "Join", one) for one in data])


async def oversize(refs: list[PoolRef], *, count: int) -> dict[str, int]:
    """Send messages that are longer than any may be."""
    async with open_channel(refs[0].registry, STUB_OPTIONS) as channel:
        data = encode(Leave("a", "0", "g", failed=True, reason="x" * (4 * MAX_MESSAGE_BYTES)))
        return await in_parallel([partial(call, channel, "Leave", data)] * count)


async def unread(refs: list[PoolRef], *, count: int) -> dict[str, int]:
    """Follow many times and read nothing, until told to end; count who was let in."""
    channels = [open_channel(refs[0].registry, STUB_OPTIONS) for _ in range(CONNECTIONS)]
    follow = encode(Follow(VERSION))
    streams = [channels[number % CONNECTIONS].unary_stream(f"/{SERVICE}/Follow")(follow) for number in range(count)]
    let_in = await asyncio.gather(*(stream.initial_metadata() for stream in streams), return_exceptions=True)
    await _until_told()
    for channel in channels:
        await channel.close()
    return Counter("refused" if isinstance(one, BaseException) else "OK" for one in let_in)


async def crowd(refs: list[PoolRef], *, count: int, rounds: int) -> dict[str, int]:
    """Follow at once by as many connections, some times over; the last time read until told to end.

    Counts who heard of more than the first table then.
    """
    # Channels to one address share a connection, unless each has its own pool of them.
    options = (*STUB_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    channels = [open_channel(refs[0].registry, options) for _ in range(count)]
    follow = encode(Follow(VERSION))

    async def ask(channel: grpc.aio.Channel) -> Any:
        for _ in range(rounds):
            stream = channel.unary_stream(f"/{SERVICE}/Follow")(follow)
            await stream.read()
            stream.cancel()
        return channel.unary_stream(f"/{SERVICE}/Follow")(follow)

    streams = await asyncio.gather(*map(ask, channels))
    heard = [0] * count

    async def read(number: int) -> None:
        async for _ in streams[number]:
            heard[number] += 1

    reading = [asyncio.ensure_future(read(number)) for number in range(count)]
    await asyncio.gather(*(stream.initial_metadata() for stream in streams))
    await _until_told()
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    for channel in channels:
        await channel.close()
    return Counter("heard the news" if number > 1 else "heard nothing" for number in heard)


CONNECTIONS = 8
HELLO = bytes.fromhex("160301020001000001fc0303")
"""How a TLS hello begins: of 512 bytes, of which these are twelve."""
OPENINGS = (b"", HELLO, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 100)


async def half_open(refs: list[PoolRef], *, count: int) -> dict[str, int]:
    """Connect and say nothing, half of something, or something else, until told to end; count who was let go."""
    host, _, port = refs[0].registries[0].rpartition(":")
    sockets = []
    for number in range(count):
        sockets.append(socket.create_connection((host, int(port)), timeout=TIMEOUT_S))
        with suppress(ConnectionError):
            sockets[-1].sendall(OPENINGS[number % len(OPENINGS)])
    await _until_told()
    return Counter("let go" if _is_closed(one) else "still there" for one in sockets)


def _is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        while one.recv(2**16):
            continue
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


async def _until_told() -> None:
    sys.stdout.write("there\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


ATTACKS: dict[str, Callable[..., Coroutine[Any, Any, dict[str, int]]]] = {
    "fuzz": fuzz,
    "flood": flood,
    "oversize": oversize,
    "unread": unread,
    "half_open": half_open,
    "crowd": crowd,
}


def main() -> None:
    """Attack."""
    attack = ATTACKS[sys.argv[1]]
    plan = json.loads(sys.stdin.readline())
    refs = [decode(PoolRef, json.dumps(ref).encode()) for ref in plan.pop("refs")]
    sys.stdout.write(json.dumps(asyncio.run(attack(refs, **plan))) + "\n")


if __name__ == "__main__":
    main()
