"""A pool's life: what it starts, what it leaves, and how it ends when something is killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import pytest

from sonic_parsl.client.scope import current_pool, current_scope
from sonic_parsl.errors import ConfigError, ModelMismatchError, PoolError, PoolLostError
from sonic_parsl.pool import pool as pool_module
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import POOL_ENV, PoolRef, StaticServer
from sonic_parsl.ports import free_port
from sonic_parsl.protocol import Ack, Renew, ServerLoad
from tests.leaks import wait_until
from tests.pool.conftest import (
    BLOCK,
    GROUP,
    agents_of,
    departure_of,
    entry_of,
    is_listening,
    joining,
    leaving,
    registry_of,
    secrets_of,
    table_when,
    talking_to,
)

T = TypeVar("T")

GONE_S = 4.0
"""A registry looks after its owner every half second; the rest is a busy machine's."""

DRIVER = """
import ctypes, os, sys
from pathlib import Path
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import POOL_ENV, PoolRef, StaticServer

def hold_the_gil():
    sys.stdin.readline()
    print("holding", flush=True)
    ctypes.PyDLL(None).sleep(4)
    print("done", flush=True)

def fork_a_child_that_holds_the_pipe():
    child = os.fork()
    if child == 0:
        os.read(0, 1)
        os._exit(0)

with ServerPool(run_dir=Path(sys.argv[1])) as pool:
    if sys.argv[2] == "fork":
        fork_a_child_that_holds_the_pipe()
    path = pool.run_dir / "agents.json"
    pool.admit(sys.argv[3], sys.argv[4]).write(path)
    print(path, flush=True)
    if sys.argv[2] == "gil":
        hold_the_gil()
    for line in sys.stdin:
        pool.wait_for(lambda table: len(table.servers) == int(line), 20)
        print(len(pool.table.servers), flush=True)
"""


@contextmanager
def driver(folder: Path, what: str = "") -> Iterator[tuple[subprocess.Popen[str], PoolRef, psutil.Process]]:
    """Start another process that owns a pool; yield it, how agents find the pool, and the pool's registry."""
    argv = [sys.executable, "-c", DRIVER, str(folder / "run"), what, GROUP, BLOCK]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    registry: psutil.Process | None = None
    try:
        path = process.stdout.readline().strip()
        ref = PoolRef.read(Path(path))
        registry = registry_of(ref)
        yield process, ref, registry
    finally:
        process.kill()
        process.communicate()
        if registry is not None:
            with suppress(psutil.NoSuchProcess):
                registry.kill()  # it would wait for leases of a minute before it sees to the keys


def longest_answer_s(ref: PoolRef, servers: int) -> float:
    """Let so many servers join and renew, and return how long the registry needed at most, in seconds."""

    async def scenario() -> float:
        worst = 0.0
        async with talking_to(ref) as registry:
            for number in range(servers):
                for message in (joining(f"s{number}", models=5), Renew(f"s{number}", ServerLoad(rows=number))):
                    start = time.monotonic()
                    assert (await registry.call(message)).known
                    worst = max(worst, time.monotonic() - start)
        return worst

    return asyncio.run(scenario())


# Start and end -----------------------------------------------------------------


def test_it_starts_a_registry_and_says_where_in_a_file_only_its_owner_can_read(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool:
        assert pool.ref_path.stat().st_mode & 0o777 == 0o600
        assert pool.run_dir.stat().st_mode & 0o777 == 0o700
        assert PoolRef.read(pool.ref_path) == PoolRef.from_environment() == pool.ref
        assert os.environ[POOL_ENV] == str(pool.ref_path)
        assert pool.worker_init == f"export {POOL_ENV}={pool.ref_path}"
        assert is_listening(pool.ref.registries[0])


def test_it_ends_within_seconds_and_leaves_nothing(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run")
    with pool:
        registry, address = registry_of(pool.ref), pool.ref.registries[0]
        start = time.monotonic()
    assert time.monotonic() - start < GONE_S
    assert not registry.is_running()
    assert not is_listening(address)
    assert os.environ.get(POOL_ENV) != str(pool.ref_path)
    assert not pool.run_dir.exists()
    assert pool.table.lost is None
    pool.close()
    with pytest.raises(PoolError, match="The pool was not started"):
        _ = pool.ref


def test_it_leaves_alone_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool:
        log = pool.run_dir / "parsl.log"
        log.write_text("kept")
        monkeypatch.setenv(POOL_ENV, "another pool's")
    assert os.environ[POOL_ENV] == "another pool's"
    assert [path.name for path in pool.run_dir.iterdir()] == ["parsl.log"]


def test_it_can_be_started_again_with_new_credentials(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run")
    with pool:
        first = pool.ref
        longest_answer_s(agents_of(pool), servers=2)
        pool.lose("a test says so")
    with pool:
        assert pool.ref.credentials != first.credentials
        assert (pool.table.servers, pool.table.lost, pool.departures) == ((), None, [])
        longest_answer_s(agents_of(pool), servers=1)
        pool.wait_ready(timeout_s=5.0)


def test_it_lives_from_its_first_member_to_its_last(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run")
    pool.join("cpu")
    ref = pool.ref
    pool.join("gpu")
    pool.leave("cpu")
    assert pool.ref == ref
    assert is_listening(ref.registries[0])
    pool.leave("gpu")
    assert not is_listening(ref.registries[0])


def test_its_secret_is_in_no_argument_no_environment_and_no_text(
    pool: ServerPool, caplog: pytest.LogCaptureFixture
) -> None:
    registry, block = registry_of(pool.ref), agents_of(pool)
    pool.drain("nobody", "a test says so")
    shown = [*registry.cmdline(), *registry.environ().values(), repr(pool), repr(pool.ref), repr(block), caplog.text]
    for secret in secrets_of(pool.ref, block):
        assert not [text for text in shown if secret in text]


def test_ctrl_c_in_the_drivers_terminal_does_not_reach_the_registry(pool: ServerPool) -> None:
    assert os.getpgid(registry_of(pool.ref).pid) != os.getpgid(0)


# Ports ------------------------------------------------------------------------


def test_the_registry_listens_inside_the_port_range(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    with ServerPool(run_dir=tmp_path / "run", port_range=(port, port)) as pool:
        assert pool.ref.registries == (f"127.0.0.1:{port}",)


def test_a_second_pool_on_the_only_port_is_refused_with_a_sentence(pool: ServerPool, tmp_path: Path) -> None:
    port = int(pool.ref.registries[0].rpartition(":")[2])
    other = ServerPool(run_dir=tmp_path / "run", port_range=(port, port))
    with pytest.raises(PoolError, match=rf"did not start: There is no port from {port} to {port} to listen on at 127"):
        other.start()
    assert not other.run_dir.exists()


def test_an_address_of_another_machine_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"no port to listen on at 192\.0\.2\.1: Cannot assign requested address"):
        ServerPool(run_dir=tmp_path / "run", address="192.0.2.1").start()


# What it is told and says -------------------------------------------------------


def test_waiting_for_servers_ends_when_they_are_ready_and_says_what_there_is_when_they_are_not(
    pool: ServerPool,
) -> None:
    async def scenario() -> None:
        async with talking_to(agents_of(pool)) as registry:
            with pytest.raises(PoolLostError, match=r"0 of 1 servers are ready after 0\.1 s: none joined"):
                pool.wait_ready(timeout_s=0.1)
            await registry.call(joining("slow", "starting"))
            with pytest.raises(PoolLostError, match=r"0 of 1 servers are ready after 0\.5 s: slow starting"):
                pool.wait_ready(timeout_s=0.5)
            await registry.call(joining("slow"))
            assert entry_of(pool.wait_ready(timeout_s=30.0), "slow") is not None
            await registry.call(leaving("slow"))

    asyncio.run(scenario())


def test_a_failed_server_and_its_last_words_are_in_the_owners_log(
    pool: ServerPool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with talking_to(agents_of(pool)) as registry:
            await registry.call(leaving("broken", failed=True, stderr="no such device"))

    caplog.set_level(logging.INFO, "sonic_parsl")
    asyncio.run(scenario())
    departure_of(pool, "broken")
    wait_until(lambda: "no such device" in caplog.text, 5.0, lambda: caplog.text)
    (record,) = [one for one in caplog.records if "Server broken (block 7) left: it was tired" in one.getMessage()]
    assert record.levelno == logging.WARNING


def test_a_pool_given_up_is_lost_for_everybody_and_agents_are_asked_to_end(tmp_path: Path) -> None:
    async def scenario(pool: ServerPool) -> None:
        async with talking_to(agents_of(pool)) as registry:
            await registry.call(joining("a"))
            tables = registry.follow()
            await anext(tables)
            pool.lose("three servers in a row failed to start")
            table = await asyncio.wait_for(table_when(tables, lambda table: table.lost is not None), 5.0)
            assert table.lost == "three servers in a row failed to start"
            assert (await registry.call(Renew("a", ServerLoad()))).drain
        with pytest.raises(PoolLostError, match="lost: three servers in a row failed to start"):
            pool.wait_ready(2, timeout_s=60.0)

    with ServerPool(run_dir=tmp_path / "run") as opened:
        asyncio.run(scenario(opened))


# Something is killed, or busy -----------------------------------------------------


def test_a_registry_that_is_killed_is_started_again_and_servers_and_clients_stay(tmp_path: Path) -> None:
    async def scenario(pool: ServerPool) -> None:
        async with talking_to(agents_of(pool)) as agent, talking_to(pool.ref) as client:
            await agent.call(joining("stays"))
            before = await anext(client.follow())
            old = registry_of(pool.ref)
            old.kill()
            old.wait(5.0)
            await again(lambda: agent.call(Renew("stays", ServerLoad(rows=3))))
            after = await again(lambda: anext(client.follow()))
            assert [entry.info for entry in after.servers] == [entry.info for entry in before.servers]
            assert after.generation > before.generation
            with pytest.raises(ModelMismatchError, match="digest"):
                await agent.call(joining("changed", digest="cd" * 32))
        assert pool.wait_for(lambda table: table.generation >= after.generation, 30.0)

    with ServerPool(run_dir=tmp_path / "run") as opened:
        ref = opened.ref
        asyncio.run(scenario(opened))
        assert opened.ref == ref
        assert opened.table.lost is None


def test_a_registry_that_ends_again_and_again_is_the_end_of_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MAX_RESTARTS", 1)
    with ServerPool(run_dir=tmp_path / "run") as pool:
        first = registry_of(pool.ref)
        first.kill()
        first.wait(5.0)
        wait_until(lambda: is_listening(pool.ref.registries[0]), 10.0)
        registry_of(pool.ref).kill()
        assert pool.wait_for(lambda table: table.lost is not None, 30.0)
        with pytest.raises(PoolLostError, match=r"The pool is lost: the registry ended by itself \(exit code -9\)"):
            pool.wait_ready(timeout_s=60.0)
        pool.drain("anybody", "it hears nothing any more")
    assert os.environ.get(POOL_ENV) != str(pool.ref_path)
    assert not pool.run_dir.exists()


async def again(ask: Callable[[], Awaitable[T]], timeout_s: float = 10.0) -> T:
    """Ask until the registry is there."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return await ask()
        except PoolLostError:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("what", ["", "fork"])
def test_a_registry_whose_owner_is_killed_ends(tmp_path: Path, what: str) -> None:
    with driver(tmp_path, what) as (process, ref, registry):
        process.kill()
        assert not psutil.wait_procs([registry], timeout=GONE_S)[1]
        assert not is_listening(ref.registries[0])


def test_a_driver_that_holds_the_gil_does_not_stall_the_registry(tmp_path: Path) -> None:
    with driver(tmp_path, "gil") as (process, ref, _):
        assert process.stdin is not None
        assert process.stdout is not None
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "holding\n"
        start = time.monotonic()
        assert longest_answer_s(ref, servers=20) < 1.0
        assert time.monotonic() - start < 4.0, "the driver was not busy all the time"
        assert process.stdout.readline() == "done\n"


def test_a_driver_that_reads_nothing_does_not_stall_the_registry_and_catches_up_later(tmp_path: Path) -> None:
    servers = 40  # a table for each, and renewals: much more than a pipe holds
    with driver(tmp_path) as (process, ref, _):
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGSTOP)
        assert longest_answer_s(ref, servers) < 1.0
        process.send_signal(signal.SIGCONT)
        print(servers, file=process.stdin, flush=True)
        assert process.stdout.readline() == f"{servers}\n"


def test_a_command_that_is_none_ends_the_registry_and_another_takes_over(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool:
        first = registry_of(pool.ref)
        process = pool._registry
        assert process is not None
        process.send(cast("Any", Ack()))  # which no owner says
        first.wait(5.0)
        wait_until(lambda: is_listening(pool.ref.registries[0]), 10.0)
        assert pool.table.lost is None


# Security ---------------------------------------------------------------------------


def test_each_block_gets_a_certificate_in_its_own_name_and_no_secret_of_others(tmp_path: Path) -> None:
    gateway = StaticServer("gate-static-0", "gate", "gpu", "127.0.0.1:9", ("m",), token="hunter2")
    with ServerPool(run_dir=tmp_path / "run", static=(gateway,)) as pool:
        refs = [pool.admit("cpu", "0"), pool.admit("cpu", "1"), pool.ref]
        assert len(set(secrets_of(*refs))) == 3
        assert refs[0].static == refs[1].static == ()
        assert refs[2].static == (gateway,)
        assert "hunter2" not in f"{pool!r} {pool.ref!r}"


def test_a_pool_without_security_needs_no_certificate_on_this_machine(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run", security="none") as pool:
        assert pool.ref.credentials is pool.admit(GROUP, BLOCK).credentials is None
        longest_answer_s(pool.ref, servers=1)
        assert pool.wait_ready(timeout_s=5.0).ready


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "node7"])
def test_a_pool_without_security_that_others_could_reach_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=rf"without security cannot listen at {address}: .*Leave out `security: no"):
        ServerPool(address=address, security="none")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"open can be written to by others.*chmod go-w"):
        ServerPool(run_dir=folder).start()
    folder.chmod(0o755)
    with ServerPool(run_dir=folder) as pool:
        assert pool.ref_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("first", [0, 1], ids=["the first", "the second"])
def test_of_two_pools_the_one_that_is_left_is_asked_and_counts_its_calls(first: int, tmp_path: Path) -> None:
    before = os.environ.get(POOL_ENV)
    pools = [ServerPool(run_dir=tmp_path / name) for name in ("one", "two")]
    for pool in pools:
        pool.start()
    refs = [pool.ref for pool in pools]
    assert (current_pool(), current_scope()) == (refs[1], pools[1].own_calls)
    pools[first].close()
    left = 1 - first
    assert (current_pool(), current_scope()) == (refs[left], pools[left].own_calls)
    assert os.environ[POOL_ENV] == str(pools[left].ref_path)
    pools[left].close()
    assert os.environ.get(POOL_ENV) == before
