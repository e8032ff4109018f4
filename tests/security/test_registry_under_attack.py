"""Whatever a process of a run or a stranger sends, the registry goes on, stays small, and answers all others in time."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sonic_parsl.errors import PoolError
from sonic_parsl.pool.limits import MAX_BLOCK_SERVERS
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import Drain, Join, Leave, Renew, ServerLoad, encode
from sonic_parsl.rpc import RegistryStub
from tests.leaks import wait_until
from tests.pool.conftest import BLOCK, agents_of, entry_of, joining, leaving, registry_of, talking_to

ATTACKS = Path(__file__).parent / "attacks.py"
ATTACK_S = 120.0
ANSWER_S = 5.0
"""What an agent and a client may have to wait on a busy machine: after five, a registry counts as unreachable."""
PAUSE_S = 0.1
CROWD = 300
"""Connections, each of them counted for itself: as many workers, who show one certificate."""
LET_GO_S = 25.0
"""Beyond the ten seconds that a handshake may take, what a busy machine needs."""
MAX_GROWTH_BYTES = 150 * 2**20
"""Of the registry's memory: a table as large as it may be, some copies of it, and what reading takes."""
REFUSALS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS"}
"""How nonsense is refused; anything else would be a fault of the registry's own."""


@dataclass
class Watch:
    """A healthy agent and a client, who go on during an attack.

    Attributes
    ----------
    renewals_s, tables_s
        How long they had to wait for each answer.
    wrong
        What they were told that is not right.
    """

    pool: ServerPool
    renewals_s: list[float] = field(default_factory=list)
    tables_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        async with talking_to(agents_of(self.pool)) as agent, talking_to(self.pool.ref) as client:
            while not self.over.is_set():
                try:
                    await self._ask(agent, client)
                except PoolError as error:
                    self.wrong.append(str(error))
                await asyncio.sleep(PAUSE_S)

    async def _ask(self, agent: RegistryStub, client: RegistryStub) -> None:
        start = time.monotonic()
        if not (await agent.call(Renew("healthy", ServerLoad(rows=1)))).known:
            self.wrong.append("the healthy server is not known")
        told = time.monotonic()
        tables = client.follow()
        if entry_of(await anext(tables), "healthy") is None:
            self.wrong.append("the healthy server is not in the table")
        await tables.aclose()  # type: ignore[attr-defined]
        self.renewals_s.append(told - start)
        self.tables_s.append(time.monotonic() - told)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """A pool with a healthy server."""

    async def join(opened: ServerPool) -> None:
        async with talking_to(agents_of(opened)) as agent:
            await agent.call(joining("healthy", lease_s=600.0))

    with ServerPool(run_dir=tmp_path_factory.mktemp("pool") / "run") as opened:
        asyncio.run(join(opened))
        yield opened


@contextmanager
def unharmed(pool: ServerPool) -> Iterator[Watch]:
    """Check before, during and after an attack that the registry is what it was."""
    registry, before = registry_of(pool.ref), registry_of(pool.ref).memory_info().rss
    watch = Watch(pool)
    thread = threading.Thread(target=lambda: asyncio.run(watch.run()))
    thread.start()
    try:
        yield watch
    finally:
        watch.over.set()
        thread.join()
    assert not watch.wrong, watch.wrong[:3]
    assert max(watch.renewals_s) < ANSWER_S
    assert max(watch.tables_s) < ANSWER_S
    assert registry_of(pool.ref) == registry
    assert registry.memory_info().rss - before < MAX_GROWTH_BYTES
    wait_until(
        lambda: [one.info.id for one in pool.table.servers] == ["healthy"], 30.0, lambda: len(pool.table.servers)
    )
    assert pool.table.lost is None


@contextmanager
def attacker(what: str, refs: list[PoolRef], **plan: Any) -> Iterator[subprocess.Popen[str]]:
    """Start an attack in another process."""
    data = {"refs": [json.loads(encode(ref)) for ref in refs], **plan}
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, str(ATTACKS), what]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(data) + "\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def wait_for_word(process: subprocess.Popen[str]) -> None:
    """Wait until an attack that lasts until it is told to end is under way."""
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"


def outcome(process: subprocess.Popen[str]) -> dict[str, int]:
    """Let an attack end; return what came of it."""
    said, _ = process.communicate(timeout=ATTACK_S)
    return dict(json.loads(said))


def test_ten_thousand_messages_that_make_no_sense_are_refused(pool: ServerPool) -> None:
    names = [f"fuzz{number}" for number in range(15)]
    # Each third speaks by the certificate of clients, in the name of a block.
    refs = [pool.ref if number % 3 == 2 else pool.admit(name, "0") for number, name in enumerate(names)]
    with unharmed(pool), attacker("fuzz", refs, groups=names, count=10_000) as process:
        counts = outcome(process)
    assert sum(counts.values()) == 10_000
    assert set(counts) <= REFUSALS | {"OK"}, counts
    assert min(counts[name] for name in ("OK", *REFUSALS - {"ALREADY_EXISTS"})) > 100, counts


@pytest.mark.parametrize("models", [1, 100])
def test_of_a_flood_of_servers_a_block_gets_in_what_it_may_and_others_notice_nothing(
    pool: ServerPool, models: int
) -> None:
    group = f"flood-{models}"
    with (
        unharmed(pool),
        attacker("flood", [pool.admit(group, "0")], group=group, count=4_000, models=models) as process,
    ):
        counts = outcome(process)
    assert set(counts) == {"OK", "RESOURCE_EXHAUSTED"}
    assert 0 < counts["OK"] < 1.2 * MAX_BLOCK_SERVERS  # the first have left again before the last come


def test_messages_that_are_too_long_are_refused_unread(pool: ServerPool) -> None:
    with unharmed(pool), attacker("oversize", [pool.admit("long", "0")], count=50) as process:
        assert outcome(process) == {"RESOURCE_EXHAUSTED": 50}


async def make_news(pool: ServerPool) -> None:
    """Change the table some hundred times."""
    names = [f"news-{number}" for number in range(150)]
    async with talking_to(pool.admit("news", "0")) as agent:
        for name in names:
            await agent.call(of_block(joining(name), "news"))
        for name in names:
            await agent.call(Leave(name, "0", "news", failed=False, reason="told to"))


def test_followers_that_never_read_take_neither_memory_nor_time_of_others(pool: ServerPool) -> None:
    with unharmed(pool), attacker("unread", [pool.ref], count=400) as process:
        wait_for_word(process)
        asyncio.run(make_news(pool))
        assert outcome(process) == {"OK": 400}


def test_hundreds_of_connections_of_one_client_that_follow_at_once_hold_nobody_up(pool: ServerPool) -> None:
    registry = registry_of(pool.ref)
    before = len(registry.net_connections("tcp"))
    with unharmed(pool), attacker("crowd", [pool.ref], count=CROWD, rounds=30) as process:
        wait_for_word(process)
        assert len(registry.net_connections("tcp")) >= before + CROWD
        asyncio.run(make_news(pool))
        assert outcome(process) == {"heard the news": CROWD}


def of_block(join: Join, group: str) -> Join:
    return replace(join, info=replace(join.info, group=group, block_id="0"))


def test_connections_that_say_nothing_or_something_else_are_let_go(pool: ServerPool) -> None:
    registry = registry_of(pool.ref)
    before = len(registry.net_connections("tcp"))
    with unharmed(pool), attacker("half_open", [pool.ref], count=500) as process:
        wait_for_word(process)
        wait_until(lambda: len(registry.net_connections("tcp")) < before + 20, LET_GO_S, "they are still there")
        assert outcome(process) == {"let go": 500}


def test_a_client_cannot_speak_for_a_server_nor_a_block_for_another(pool: ServerPool) -> None:
    async def scenario() -> None:
        for ref in (pool.ref, pool.admit("cpu", "8"), pool.admit("other", BLOCK)):
            async with talking_to(ref) as intruder:
                for message in (
                    joining("healthy"),
                    joining("new"),
                    Renew("healthy", ServerLoad()),
                    Drain("healthy", "why not"),
                    leaving("healthy"),
                    leaving("never-there"),
                ):
                    with pytest.raises(PoolError, match=r"PERMISSION_DENIED: .* may not speak for server"):
                        await intruder.call(message)

    with unharmed(pool):
        asyncio.run(scenario())
