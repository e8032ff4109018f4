"""The driver's ways to Parsl's interchange, which may have been killed: nobody waits for a dead one."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import zmq
from parsl.executors.high_throughput.zmq_pipes import CommandClient, TasksOutgoing

from sonic_parsl.errors import PoolError

POLL_MS = 50
"""How often a thread that waits for the interchange looks whether it should go on."""


class TaskPipe:
    """The way to the interchange, which may be closed while another thread launches tasks.

    A socket of ZeroMQ is one thread's at a time: to close it under another one aborts the process. Where the
    interchange is dead, sending waits for ever, and so does closing for what was not sent.
    """

    def __init__(self, pipe: TasksOutgoing) -> None:
        self._pipe = pipe
        self._pipe.zmq_socket.setsockopt(zmq.SNDTIMEO, POLL_MS)
        self._turn = threading.Lock()
        self._closed: PoolError | None = None

    def put(self, message: object) -> None:
        """Send a task.

        Raises
        ------
        PoolError
            The pipe is closed.
        """
        while not self._put(message):
            pass

    def close(self, why: PoolError | None = None) -> None:
        """Close it, once; what was not sent is dropped."""
        self._closed = self._closed or why or PoolError("The run has ended: its workers take no more tasks.")
        with self._turn:
            if not self._pipe.zmq_socket.closed:
                self._pipe.zmq_socket.setsockopt(zmq.LINGER, 0)
                self._pipe.close()

    def _put(self, message: object) -> bool:
        """Send a task if the interchange takes it soon; return whether it did."""
        with self._turn:
            if self._closed:
                raise self._closed.at()
            try:
                self._pipe.put(message)
            except zmq.Again:
                return False
            return True


class Commands:
    """Parsl's questions to the interchange: of a dead one, nobody is connected to it."""

    def __init__(self, client: CommandClient, interchange: subprocess.Popen[bytes]) -> None:
        self._client = client
        self._interchange = interchange
        self._turn = threading.Lock()

    def run(self, message: object) -> Any:
        """Return what the interchange answers, or an empty list once it has ended."""
        socket = self._client.zmq_socket
        with self._turn:
            if not self._comes(zmq.POLLOUT):
                return []
            socket.send_pyobj(message)
            return socket.recv_pyobj() if self._comes(zmq.POLLIN) else []

    def close(self) -> None:
        """Close it."""
        self._client.close()

    def _comes(self, event: int) -> bool:
        while not self._client.zmq_socket.poll(POLL_MS, event):
            if self._interchange.poll() is not None:
                return False
        return True
