"""The workers' executor can be shut down at any time, also while tasks are launched."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zmq
from parsl.executors.high_throughput.zmq_pipes import TasksOutgoing

from sonic_parsl.errors import PoolError
from sonic_parsl.executors.worker_executor import TaskPipe
from tests.leaks import wait_until

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
