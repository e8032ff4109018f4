from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import zmq

from sonic_parsl.executors.workers import worker_pool
from sonic_parsl.executors.workers.worker_pool import FileLock

spawning = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> str:
    found = tmp_path / "lock"
    found.touch()
    return str(found)


@contextmanager
def holder(path: str) -> Iterator[BaseProcess]:
    """A process that holds the lock."""
    here, there = spawning.Pipe()
    process = spawning.Process(target=_hold, args=(FileLock(path), there))
    process.start()
    try:
        assert here.recv() == "held"
        yield process
    finally:
        process.kill()
        process.join()


def _hold(lock: FileLock, pipe: multiprocessing.connection.Connection) -> None:
    lock.acquire()
    pipe.send("held")
    pipe.recv()


def test_a_lock_that_is_held_is_not_given_to_another_process(path: str) -> None:
    lock = FileLock(path)
    with holder(path):
        assert not lock.acquire(timeout=0.1)
        assert not lock.acquire(block=False)


def test_the_death_of_its_holder_frees_it(path: str) -> None:
    lock = FileLock(path)
    with holder(path) as process:
        process.kill()
        assert lock.acquire(timeout=10)


def test_a_released_lock_is_free(path: str) -> None:
    first, second = FileLock(path), pickle.loads(pickle.dumps(FileLock(path)))
    with first:
        assert not second.acquire(timeout=0.05)
    assert second.acquire()


@contextmanager
def starting_pool(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A pool, and what it has spawned, whose interchange has answered the first of its two probes only."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as interchange:
        interchange.linger = 0
        port = interchange.bind_to_random_port("tcp://127.0.0.1")
        words = f"-a 127.0.0.1 --port={port} -m None --drain_period None --cert_dir None --cpu-affinity none --max_workers_per_node=1"
        command = [sys.executable, "-m", worker_pool.__name__, *words.split(), f"--logdir={folder}"]
        with subprocess.Popen([*command, "--hb_threshold=3", "--hb_period=1"], stderr=subprocess.PIPE) as pool:
            try:
                assert interchange.poll(30_000)
                identity, _ = interchange.recv_multipart()
                interchange.send_multipart([identity, pickle.dumps({})])
                assert interchange.poll(30_000), "the pool has not probed again"
                spawned = [
                    one for one in psutil.Process(pool.pid).children() if "spawn_main" in " ".join(one.cmdline())
                ]
                assert len(spawned) == 2, "a worker and a helper"
                yield pool, spawned
            finally:
                pool.kill()
    _, left = psutil.wait_procs(spawned, timeout=10)
    assert not left


def test_a_pool_whose_driver_is_lost_while_it_starts_ends(tmp_path: Path) -> None:
    with starting_pool(tmp_path) as (pool, _):
        assert b"Resource temporarily unavailable" in pool.communicate(timeout=30)[1]
        assert pool.returncode == 1


def test_a_pool_that_is_killed_takes_its_workers_with_it(tmp_path: Path) -> None:
    with starting_pool(tmp_path) as (pool, spawned):
        assert all(one.is_running() for one in spawned)
        pool.kill()
