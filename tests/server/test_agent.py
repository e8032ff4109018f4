"""An agent's promises, kept with a real Triton and a real registry."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sonic_parsl.client.records import CallRecord
from sonic_parsl.client.sessions import session
from sonic_parsl.credentials import Peer
from sonic_parsl.errors import InferenceError, ModelNotFoundError
from sonic_parsl.kserve import KServe
from sonic_parsl.pool import pool as pool_module
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.ports import free_port
from sonic_parsl.repository import read, served
from sonic_parsl.rpc import RegistryStub
from sonic_parsl.server.install import WheelInstallation
from sonic_parsl.server.triton import PORT_TAKEN
from tests.leaks import wait_until
from tests.pool.conftest import leaving, registry_of
from tests.server.agents import (
    GONE_S,
    LEASE_S,
    MODELS,
    agent,
    ask,
    assert_gone,
    initialized_by,
    rows_of,
    shared_memory_of,
    timed,
)

PACKAGED = Path(__file__).parents[2] / "workflows" / "models"


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A thread to wait for an answer in."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


def history_until_gone(pool: ServerPool, group: str) -> list[str]:
    """Follow as clients do; return the states a ready server goes through until it is gone."""

    async def states() -> list[str]:
        stub, seen = RegistryStub(pool.ref), ["ready"]
        async for table in stub.follow():
            found = [entry.state for entry in table.servers if entry.info.group == group]
            if not found:
                break
            seen += [state for state in found if state != seen[-1]]
        await stub.close()
        return seen

    return asyncio.run(states())


# It serves ------------------------------------------------------------------------


def test_it_joins_as_starting_then_as_ready_with_what_its_models_are(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, PACKAGED, "btag", walltime_s=3600.0) as server:
        starting = server.wait_for("starting")
        assert (starting.info.address, starting.info.models) == ("", ())
        ready = server.wait_for("ready").info
        assert ready.models == served(read(PACKAGED, ["btag"])[0])
        assert all((model.source_digest, model.artifact_digest, model.version) for model in ready.models)
        assert (ready.node, ready.block_id, ready.kind) == (socket.gethostname(), "0", "cpu")
        assert ready.ends_at is not None
        listening = [one.laddr for one in server.triton().net_connections() if one.status == psutil.CONN_LISTEN]
        assert [port for _, port in listening] == [int(ready.address.rpartition(":")[2])], "gRPC and nothing else"


def test_two_at_once_on_a_node_share_a_range_of_ports(pool: ServerPool, tmp_path: Path) -> None:
    first = free_port("127.0.0.1", (20000, 29000))
    ports = (first, first + 3)
    with (
        agent(pool, tmp_path, MODELS, "identity", port_range=ports) as one,
        agent(pool, tmp_path, MODELS, "identity", "timed", port_range=ports) as other,
    ):
        peers = [server.ready_peer() for server in (one, other)]
        found = {int(peer.address.rpartition(":")[2]) for peer in peers}
        assert len(found) == 2
        assert found <= set(range(first, first + 4))
        for peer in peers:
            np.testing.assert_array_equal(ask(peer, "identity", rows_of(5, 32)), rows_of(5, 32))
        wait_until(lambda: other.entry and other.entry.load.rows > 0, 15.0, "its load was not told")


def test_a_port_that_is_taken_meanwhile_is_not_the_end(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        first = server.triton()
        (port,) = [int(word.partition("=")[2]) for word in first.cmdline() if word.startswith("--grpc-port=")]
        with socket.create_server(("127.0.0.1", port)):
            ready = server.wait_for("ready").info
        assert ready.address != f"127.0.0.1:{port}", PORT_TAKEN
        assert not first.is_running()


def test_one_the_registry_has_forgotten_joins_again(pool: ServerPool, tmp_path: Path) -> None:
    async def forget(group: str, server_id: str) -> None:
        stub = RegistryStub(pool.admit(group, "0"))
        await stub.call(replace(leaving(server_id), group=group, block_id="0"))
        await stub.close()

    with agent(pool, tmp_path, MODELS, "identity") as server:
        before = server.wait_for("ready")
        asyncio.run(forget(server.group, before.info.id))
        assert server.departure().reason == "it was tired"  # the table without it may be gone before anyone looks
        assert server.wait_for("ready").info == before.info


def test_a_model_replaced_on_disk_does_not_come_in_where_triton_reads_it_again(
    pool: ServerPool, tmp_path: Path
) -> None:
    async def load_again(peer: Peer) -> None:
        server = KServe(peer)
        await server._ask("RepositoryModelLoad", 30.0, model_name="identity")
        await server.close()

    repository, rows = tmp_path / "repository", rows_of(4, 32)
    shutil.copytree(MODELS, repository)
    with agent(pool, tmp_path, repository, "identity") as server:
        peer = server.ready_peer()
        code = repository / "identity" / "1" / "identity.py"
        code.write_text(code.read_text().replace('"OUTPUT0", rows', '"OUTPUT0", rows + 1'))
        config = repository / "identity" / "config.pbtxt"
        config.write_text(config.read_text().replace("count: 1", "count: 2"))
        asyncio.run(load_again(peer))
        np.testing.assert_array_equal(ask(peer, "identity", rows), rows)


# It ends because it is asked to -----------------------------------------------------


def test_on_sigterm_it_says_so_first_and_answers_what_is_in_flight(
    pool: ServerPool, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    repository, begun = timed(tmp_path, t0_ms=2500)
    with agent(pool, tmp_path, repository, "timed", "identity") as server:
        peer, rows = server.ready_peer(), rows_of(3, 4)
        family, shm = server.family(), shared_memory_of(server.triton())
        answer = thread.submit(ask, peer, "timed", rows)
        wait_until(begun.exists, 10.0)
        server.process.terminate()
        server.wait_for("draining")
        assert not answer.done()
        with pytest.raises(ModelNotFoundError):  # which clients take for: ask another server
            wait_until(lambda: ask(peer, "identity", rows_of(1, 32)) is None, 15.0)
        np.testing.assert_array_equal(answer.result(), rows)
        assert server.exit_code() == 0
        departure = server.departure()
    assert (departure.failed, departure.reason, departure.stderr) == (False, "it was sent SIGTERM", "")
    assert_gone(family, shm)


def test_clients_see_it_drain_before_it_is_gone(pool: ServerPool, tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        server.wait_for("ready")
        history = thread.submit(history_until_gone, pool, server.group)
        server.process.send_signal(signal.SIGINT)
        assert server.exit_code() == 0
        assert history.result(15.0) == ["ready", "draining"]


def test_near_the_end_of_its_walltime_it_drains(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, MODELS, "identity", walltime_s=1000.0, drain_before_s=990.0) as server:
        server.wait_for("ready")
        family, shm = server.family(), shared_memory_of(server.triton())
        server.wait_for("draining")
        assert server.exit_code() == 0
        departure = server.departure()
    assert (departure.failed, departure.reason) == (False, "its walltime ends soon")
    assert_gone(family, shm)


def test_it_drains_when_the_pool_asks_it_to_and_no_call_of_a_client_fails(
    pool: ServerPool, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    def call_until(ended: threading.Event) -> list[CallRecord]:
        client, records, rows = session(pool.ref), [], rows_of(40, 32)
        model = client.served("identity", version=None, tags=(), deadline_s=30.0)
        while not ended.is_set():
            calls = [client.submit(model, {"INPUT0": rows}, rows=len(rows), deadline_s=30.0) for _ in range(8)]
            for call in calls:
                np.testing.assert_array_equal(call.result()["OUTPUT0"], rows)
                records.append(call.ledger.record())
        return records

    ended = threading.Event()
    with (
        agent(pool, tmp_path, MODELS, "identity") as leaving_server,
        agent(pool, tmp_path, MODELS, "identity") as staying_server,
    ):
        leaving_id = leaving_server.wait_for("ready").info.id
        staying_id = staying_server.wait_for("ready").info.id
        records = thread.submit(call_until, ended)
        wait_until(lambda: leaving_server.entry and leaving_server.entry.load.rows > 100, 20.0, "it had nothing to do")
        pool.drain(leaving_id, "a test says so")
        assert leaving_server.exit_code() == 0
        ended.set()
        assert {server for record in records.result(30.0) for server in record.servers} == {leaving_id, staying_id}
        departure = leaving_server.departure()
    assert (departure.failed, departure.reason) == (False, "the pool asked it to")


def test_sigterm_while_triton_starts_ends_it_quickly(pool: ServerPool, tmp_path: Path) -> None:
    repository = initialized_by(tmp_path, "import time", "time.sleep(600)")
    with agent(pool, tmp_path, repository, "identity") as server:
        server.stub()
        family, shm = server.family(), shared_memory_of(server.triton())
        server.process.terminate()
        assert server.exit_code(GONE_S) == 0
        departure = server.departure()
    assert (departure.failed, departure.reason) == (False, "it was sent SIGTERM")
    assert_gone(family, shm)


# It ends because something is wrong -------------------------------------------------


def test_a_triton_that_is_killed_is_the_end_and_its_last_lines_reach_the_owner(
    pool: ServerPool, tmp_path: Path
) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        server.wait_for("ready")
        family, shm = server.family(), shared_memory_of(server.triton())
        server.triton().kill()
        assert server.exit_code() == 1
        departure = server.departure()
        assert departure.reason in server.log.read_text()
    assert (departure.failed, departure.reason) == (True, "Triton ended by itself with exit code -9")
    assert "Started GRPCInferenceService" in departure.stderr.splitlines()[-1]
    assert_gone(family, shm)


@pytest.mark.parametrize("instances", [1, 2])
def test_a_model_whose_process_died_ends_a_server_that_still_says_it_is_ready(
    pool: ServerPool, tmp_path: Path, instances: int
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(MODELS, repository)
    config = repository / "identity" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", f"count: {instances}"))
    with agent(pool, tmp_path, repository, "identity", "timed") as server:
        peer = server.ready_peer()
        family, shm = server.family(), shared_memory_of(server.triton())

        def ended_by_requests() -> bool:
            with suppress(InferenceError):  # also later than that: clients do not know yet
                ask(peer, "identity", rows_of(1, 32))
            return server.process.poll() is not None

        assert not ended_by_requests()
        next(one for one in family if "identity_0_0" in one.cmdline()).kill()
        wait_until(ended_by_requests, 3 * LEASE_S + GONE_S)
        departure = server.departure()
    assert departure.failed
    assert re.search("no longer answers .* is not healthy|a process of one of its models has died", departure.reason)
    assert_gone(family, shm)


def test_requests_that_fail_by_their_own_fault_are_not_the_end(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, MODELS, "failing") as server:
        peer, before = server.ready_peer(), server.wait_for("ready")
        end = time.monotonic() + 3 * LEASE_S
        while time.monotonic() < end:
            with pytest.raises(InferenceError, match="this model always fails"):
                ask(peer, "failing", np.ones((1, 1), "float32"))
        assert server.wait_for("ready").info == before.info


def test_when_it_is_killed_a_busy_triton_and_its_stubs_die_and_the_lease_ends(
    pool: ServerPool, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    repository, begun = timed(tmp_path, t0_ms=3000)
    with agent(pool, tmp_path, repository, "timed") as server:
        peer = server.ready_peer()
        family, shm = server.family(), shared_memory_of(server.triton())
        answer = thread.submit(ask, peer, "timed", rows_of(2, 4))
        wait_until(begun.exists, 10.0)
        server.process.kill()
        server.process.wait()
        assert_gone(family, shm)
        assert answer.exception() is not None
        departure = server.departure()
    assert (departure.failed, departure.reason) == (True, f"nothing was heard of it for {LEASE_S:g} s")


def test_a_triton_that_hangs_loses_its_lease_and_is_ended(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        server.wait_for("ready")
        triton = server.triton()
        family, shm = server.family(), shared_memory_of(triton)
        triton.suspend()
        # Registry and agent find out at about the same time; either may be the first to say so.
        reasons = {f"nothing was heard of it for {LEASE_S:g} s", f"Triton did not answer for {LEASE_S:g} s"}
        assert server.departure().reason in reasons
        assert server.exit_code(LEASE_S + GONE_S) == 1
        assert f"Triton did not answer for {LEASE_S:g} s" in server.log.read_text()
    assert_gone(family, shm)


@pytest.fixture
def own(installed: WheelInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerPool]:
    """A pool of one test, whose registry is not started again when it is killed."""
    monkeypatch.setattr(pool_module, "MAX_RESTARTS", 0)
    with ServerPool(run_dir=tmp_path / "run") as opened:
        yield opened


def test_without_a_registry_it_ends_after_a_lease(own: ServerPool, tmp_path: Path) -> None:
    with agent(own, tmp_path, MODELS, "identity") as server:
        server.wait_for("ready")
        family, shm = server.family(), shared_memory_of(server.triton())
        registry_of(own.ref).kill()
        assert server.exit_code(LEASE_S + GONE_S) == 1
        assert f"the registry could not be reached for {LEASE_S:g} s" in server.log.read_text()
    assert_gone(family, shm)


def test_a_drain_that_the_registry_does_not_hear_of_answers_what_is_in_flight_all_the_same(
    own: ServerPool, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    repository, begun = timed(tmp_path, t0_ms=2500)
    with agent(own, tmp_path, repository, "timed") as server:
        answer = thread.submit(ask, server.ready_peer(), "timed", rows_of(2, 4))
        wait_until(begun.exists, 10.0)
        registry_of(own.ref).kill()
        server.process.terminate()
        np.testing.assert_array_equal(answer.result(), rows_of(2, 4))
        assert server.exit_code() == 0


def test_a_registry_that_is_started_again_keeps_it(installed: WheelInstallation, tmp_path: Path) -> None:
    with (
        ServerPool(run_dir=tmp_path / "run") as pool,
        agent(pool, tmp_path, MODELS, "identity", lease_s=12.0) as server,
    ):
        before = server.wait_for("ready")
        registry_of(pool.ref).kill()
        ask(pool.ref.server(before.info), "identity", rows_of(5, 32))
        wait_until(lambda: server.entry and server.entry.load.rows >= 5, 20.0, "its load was not told")
        assert server.wait_for("ready").info == before.info


def test_a_model_that_cannot_be_loaded_is_told_in_its_own_words(pool: ServerPool, tmp_path: Path) -> None:
    repository = initialized_by(tmp_path, "raise RuntimeError('the device is on fire')")
    with agent(pool, tmp_path, repository, "identity") as server:
        departure = server.departure()
        assert server.exit_code() == 1
        assert "the device is on fire" in server.log.read_text()
    assert (departure.failed, departure.reason) == (True, "Triton ended at its start with exit code 1.")
    assert "the device is on fire" in departure.stderr


def test_a_triton_that_is_not_ready_in_time_is_ended(pool: ServerPool, tmp_path: Path) -> None:
    repository = initialized_by(tmp_path, "import time", "time.sleep(600)")
    with agent(pool, tmp_path, repository, "identity", start_timeout_s=12.0) as server:
        server.stub()
        family, shm = server.family(), shared_memory_of(server.triton())
        departure = server.departure()
        assert server.exit_code(GONE_S) == 1
    assert (departure.failed, departure.reason) == (True, "Triton was not ready after 12 s")
    assert_gone(family, shm)
