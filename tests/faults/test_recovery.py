"""What a pool recovers from: every event is there, every score and every histogram is as if nothing had happened."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

import sonic_parsl as sonic
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES
from tests.faults.conftest import Ground
from tests.faults.runs import LEASE_S, Analysis, agents, tritons, wait_whole, workers
from tests.leaks import our_processes, wait_until
from tests.pool.conftest import registry_of

TAGGER = sonic.Model("btag", outputs=CLASSES)
ROWS = np.ones((500, len(FEATURES)), dtype="float32")
GONE_S = 30.0
SLICE_S = 0.2
"""A server ten times slower is stopped for nine tenths of each such slice."""


def ids(ground: Ground) -> set[str]:
    return {entry.info.id for entry in ground.site.pool.table.servers}


def registry(ground: Ground) -> psutil.Process:
    return registry_of(ground.site.pool.ref)


VICTIMS: dict[str, Callable[[Ground], psutil.Process]] = {
    "Triton": lambda _: tritons()[0],
    "a model's process": lambda _: our_processes("triton_python_backend_stub")[0],
    "the agent": lambda _: agents()[0],
    "the registry": registry,
    "a worker": lambda _: workers()[0],
    "all workers, with what starts them": lambda _: our_processes(
        "python3 -m sonic_parsl.executors.workers.worker_pool"
    )[0],
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killing_costs_nothing(victim: str, ground: Ground, analysis: Analysis) -> None:
    killed: list[psutil.Process] = []

    def kill() -> None:
        killed.append(VICTIMS[victim](ground))
        killed[0].kill()

    analysis.check(analysis.run_and(kill, ground.site))
    wait_until(lambda: not killed[0].is_running() or killed[0].status() == psutil.STATUS_ZOMBIE, 10)


def test_a_server_whose_model_has_died_costs_nothing_and_is_replaced(ground: Ground, analysis: Analysis) -> None:
    before = ids(ground)
    stubs = our_processes("triton_python_backend_stub")
    next(stub for stub in stubs if any("/btag/" in word for word in stub.cmdline())).kill()

    def replaced() -> bool:
        analysis.check(analysis.run(ground.site.coffea_executor(status=False)))
        return bool(before - ids(ground))

    wait_until(replaced, 60)
    wait_whole(ground.site)


@pytest.mark.parametrize("what", ["Triton", "a model's process"])
def test_a_server_that_gets_no_more_memory_costs_nothing(what: str, ground: Ground, analysis: Analysis) -> None:
    server, starved, before = tritons()[0], [], ids(ground)

    def starve() -> None:
        process = server if what == "Triton" else server.children()[0]
        process.rlimit(psutil.RLIMIT_AS, (2**20, 2**20))  # less than it has: whatever it asks for is refused
        starved.append(process)

    try:
        analysis.check(analysis.run_and(starve, ground.site))
    finally:
        if server.is_running():
            server.kill()
    assert starved
    wait_until(lambda: before - ids(ground), 20)
    wait_whole(ground.site)


def test_what_is_in_flight_to_a_server_that_ends_is_answered(ground: Ground, analysis: Analysis) -> None:
    pool = ground.site.pool
    assert isinstance(pool, ServerPool)
    before = len(pool.departures)
    analysis.check(analysis.run_and(agents()[0].terminate, ground.site))
    wait_until(lambda: len(pool.departures) > before, 40)
    assert not [departure for departure in pool.departures[before:] if departure.failed]


def test_who_takes_a_lost_servers_place_takes_its_share(ground: Ground, analysis: Analysis) -> None:
    before = ids(ground)
    agents()[0].kill()
    wait_until(lambda: ids(ground) != before, 20)
    wait_whole(ground.site)
    analysis.check(analysis.run(ground.site.coffea_executor(status=False)))
    (newcomer,) = {entry.info.id for entry in ground.site.pool.table.ready} - before
    report = ground.site.report()
    assert next(line.rows for line in report.servers if line.id == newcomer) > 0
    assert report.events_in == report.events_out


def test_idle_workers_that_are_killed_take_no_other_with_them(ground: Ground, analysis: Analysis) -> None:
    before = workers()
    for worker in before[:2]:  # one of the two holds what the others wait for
        worker.kill()
        wait_until(lambda: len(workers()) == len(before), 20)
    analysis.check(analysis.run(ground.site.coffea_executor(status=False)))


def test_after_the_registry_was_killed_servers_keep_their_places(ground: Ground) -> None:
    pool = ground.site.pool
    before, first = {entry.info.id for entry in pool.table.ready}, registry(ground)
    first.kill()
    wait_until(lambda: first.pid != registry_pid(ground), 20)
    assert not pool.wait_for(lambda table: {entry.info.id for entry in table.ready} != before, 2 * LEASE_S)


def registry_pid(ground: Ground) -> int | None:
    try:
        return registry(ground).pid
    except ValueError:
        return None


@pytest.mark.parametrize("what", ["Triton", "the agent"])
def test_a_server_that_stops_without_a_word_costs_nothing(what: str, ground: Ground, analysis: Analysis) -> None:
    stopped: list[psutil.Process] = []
    before = ids(ground)

    def stop() -> None:
        stopped.append(VICTIMS[what](ground))
        stopped[0].suspend()

    try:
        analysis.check(analysis.run_and(stop, ground.site))
        wait_until(lambda: before - ids(ground), 30)
    finally:
        for process in stopped:
            if process.is_running():
                process.resume()
    wait_whole(ground.site)


def test_a_server_ten_times_slower_than_the_other_costs_nothing(ground: Ground, analysis: Analysis) -> None:
    slow = tritons()[0]
    with slowed(slow):
        analysis.check(analysis.run(ground.site.coffea_executor(status=False)))
        before = rows_by_server(ground)
        for _ in range(200):
            TAGGER(ROWS, lazy=False)
    asked = rows_by_server(ground) - before
    assert 4 * asked.pop(id_of(ground, slow), 0) < asked.total(), asked


def rows_by_server(ground: Ground) -> Counter[str]:
    return Counter({line.id: line.rows for line in ground.site.report().servers})


def id_of(ground: Ground, triton: psutil.Process) -> str:
    """Return by which name the pool knows a Triton."""
    ports = {str(one.laddr.port) for one in triton.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    (found,) = [
        entry.info.id for entry in ground.site.pool.table.ready if entry.info.address.rpartition(":")[2] in ports
    ]
    return found


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """Let a process run for a tenth of the time."""
    done = threading.Event()

    def pace() -> None:
        while not done.is_set():
            process.send_signal(signal.SIGSTOP)
            done.wait(0.9 * SLICE_S)
            process.send_signal(signal.SIGCONT)
            done.wait(0.1 * SLICE_S)

    thread = threading.Thread(target=pace)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_no_server_for_half_a_minute_costs_nothing_but_time(ground: Ground, analysis: Analysis) -> None:
    away: list[float] = []

    def all_gone() -> None:
        ground.gate.touch()
        for process in agents():
            process.kill()
        start = time.monotonic()
        wait_until(lambda: time.monotonic() - start > GONE_S, GONE_S + 5)
        assert not ground.site.pool.table.ready
        ground.gate.unlink()
        away.append(time.monotonic() - start)

    analysis.check(analysis.run_and(all_gone, ground.site))
    assert away
