"""The workers' executor can be shut down at any time, also while tasks are launched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import parsl
import pytest
import zmq
from parsl.config import Config
from parsl.executors.high_throughput.zmq_pipes import TasksOutgoing
from parsl.providers import LocalProvider, SlurmProvider

from sonic_parsl.errors import PoolError
from sonic_parsl.executors.workers.pipes import TaskPipe
from sonic_parsl.executors.workers.worker_executor import OWN_TMPDIR, WORKERS, WorkerExecutor, workers_of
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.site import Driver, Workers
from tests.leaks import assert_nothing_is_left, wait_until

LAUNCHERS = 4


class Launchers:
    """Threads that launch tasks until they are told not to."""

    def __init__(self, pipe: TaskPipe) -> None:
        self.launched = 0
        self.told: list[PoolError] = []
        self._pipe = pipe
        self._threads = [threading.Thread(target=self._launch, daemon=True) for _ in range(LAUNCHERS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)

    def _launch(self) -> None:
        try:
            while True:
                self._pipe.put({"task": bytes(1000)})
                self.launched += 1
        except PoolError as error:
            self.told.append(error)


@pytest.fixture
def outgoing() -> TasksOutgoing:
    return TasksOutgoing("127.0.0.1", (40_000, 49_000))


@pytest.fixture
def interchange(outgoing: TasksOutgoing) -> Iterator[zmq.Socket[bytes]]:
    """One that takes nothing."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://127.0.0.1:{outgoing.port}")
        yield socket


def close(pipe: TaskPipe) -> None:
    closing = threading.Thread(target=pipe.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_it_is_closed_while_threads_launch_tasks(outgoing: TasksOutgoing, interchange: zmq.Socket[bytes]) -> None:
    pipe = TaskPipe(outgoing)
    launchers = Launchers(pipe)
    wait_until(lambda: launchers.launched > 1000, 30)
    close(pipe)
    launchers.join()
    assert len(launchers.told) == LAUNCHERS
    assert "take no more tasks" in str(launchers.told[0])


def test_it_is_closed_while_threads_wait_for_an_interchange_that_is_dead(outgoing: TasksOutgoing) -> None:
    pipe = TaskPipe(outgoing)
    launchers = Launchers(pipe)
    close(pipe)
    launchers.join()
    assert (launchers.launched, len(launchers.told)) == (0, LAUNCHERS)


def test_tasks_arrive_whole_and_in_order(outgoing: TasksOutgoing, interchange: zmq.Socket[bytes]) -> None:
    pipe = TaskPipe(outgoing)
    for number in range(100):
        pipe.put({"task": number})
    assert [interchange.recv_pyobj() for _ in range(100)] == [{"task": number} for number in range(100)]
    close(pipe)


# The end of their jobs --------------------------------------------------------


def chunk(number: int) -> tuple[int, str]:
    import os
    import time

    time.sleep(1.0)
    return number, os.environ["PARSL_WORKER_BLOCK_ID"]


def test_work_that_outlives_its_workers_jobs_goes_on_in_new_ones_and_loses_no_chunk(tmp_path: Path) -> None:
    workers = Workers.model_validate({"walltime": "00:00:08", "workers-per-node": 2})
    executor = workers_of(workers, Driver(), ServerPool(run_dir=tmp_path / "pool"))
    # Without retries a chunk that a pool takes along, when it leaves, is an error.
    with parsl.load(
        Config(
            [executor], run_dir=str(tmp_path), strategy_period=1, retries=0, usage_tracking=0, initialize_logging=False
        )
    ):
        app = parsl.python_app(chunk, executors=[WORKERS])
        done = [future.result(120) for future in [app(number) for number in range(16)]]
    assert [number for number, _ in done] == list(range(16))
    assert len({block for _, block in done}) >= 2
    assert_nothing_is_left()


@pytest.mark.parametrize(
    ("workers", "drain_s"),
    [
        ({"provider": "slurm", "partition": "cpu", "walltime": "04:00:00"}, 4 * 3600 - 600),
        ({"provider": "slurm", "partition": "cpu", "walltime": "00:30:00"}, 0.9 * 1800),
        ({"provider": "htcondor", "request": "allowed_job_duration = 1800"}, 0.9 * 1800),
        ({"provider": "slurm", "partition": "cpu", "request": "--time=04:00:00"}, None),
        ({"provider": "htcondor"}, None),
        ({}, None),
    ],
)
def test_workers_whose_walltime_the_site_file_says_leave_before_its_end(
    workers: dict[str, object], drain_s: float | None
) -> None:
    assert workers_of(Workers.model_validate(workers), Driver(), ServerPool()).drain_period == drain_s


# As Parsl's own executor --------------------------------------------------------


def test_what_workers_need_comes_after_the_providers_own_lines() -> None:
    pool = ServerPool()
    provider = SlurmProvider(worker_init="module load python")
    for _ in range(2):  # a notebook's cell may be run again
        WorkerExecutor(pool=pool, address="h", provider=provider)
    lines = ["module load python", *OWN_TMPDIR.splitlines(), pool.worker_init]
    assert provider.worker_init == "".join(f"{line}\n" for line in lines), "Parsl adds lines of its own to it"


def test_it_takes_what_parsls_takes() -> None:
    pool, provider = ServerPool(), LocalProvider()
    executor = WorkerExecutor("mine", pool=pool, address="h", provider=provider, cores_per_worker=2, encrypted=False)
    assert (executor.label, executor.cores_per_worker, executor.encrypted) == ("mine", 2, False)
    with pytest.raises(TypeError, match="cores_per_wroker"):
        WorkerExecutor(pool=pool, address="h", provider=provider, cores_per_wroker=2)
