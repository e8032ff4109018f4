"""The registry's process as its owner sees it: a child, and the pipe to it."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from sonic_parsl.errors import PoolError
from sonic_parsl.pool.pipe import from_line, to_line
from sonic_parsl.pool.spec import RegistrySpec
from sonic_parsl.protocol import Blocks, Departure, Drain, Listening, Lose, ServerTable

logger = logging.getLogger(__name__)

STOP_S = 5.0

Event = Listening | ServerTable | Departure


class RegistryProcess:
    """A running registry.

    Parameters
    ----------
    spec
        What it is started with; it travels over the pipe, for it holds a key.
    on_event
        Takes what it says, in a thread of this object's own.
    on_end
        Called there with its exit code if it ends and nobody stopped it.
    """

    def __init__(self, spec: RegistrySpec, on_event: Callable[[Event], None], on_end: Callable[[int], None]) -> None:
        self._on_event, self._on_end = on_event, on_end
        self._stopped = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sonic_parsl.pool.registry"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # gRPC writes a line for each stranger that it does not let in: not onto the driver's terminal.
            env={"GRPC_VERBOSITY": "ERROR", **os.environ},
            # Ctrl-C in a terminal is for the driver; the registry ends when the pipe closes.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="sonic-parsl-pool", daemon=True)
        self._reader.start()
        self.send(spec)

    def send(self, message: RegistrySpec | Drain | Blocks | Lose) -> None:
        """Tell it something; one that has just ended is not told."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(to_line(message))
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            logger.warning("The registry is gone; it was not told: %s", type(message).__name__)

    def stop(self) -> None:
        """End it and wait until it is gone."""
        self._stopped = True
        process: Any = self._process
        with contextlib.suppress(BrokenPipeError):  # what it could not be told
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not threading.current_thread():
            self._reader.join()
        process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if line.endswith(b"\n"):  # the last words of one that was killed may be cut
                    self._on_event(from_line(line, Listening, ServerTable, Departure))
        except PoolError:
            logger.exception("The registry says what cannot be understood; it is ended.")
            self._process.kill()
        if not self._stopped:
            self._on_end(self._process.wait())
