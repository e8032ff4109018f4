"""One Triton process: started, watched, stopped. Its owner is the agent."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
from dataclasses import replace

import psutil

from sonic_parsl.errors import ServerStartError
from sonic_parsl.kserve import KServe
from sonic_parsl.ports import PortRange, free_port
from sonic_parsl.server.guard import Guard, end_group
from sonic_parsl.server.home import Home
from sonic_parsl.server.identity import Identity
from sonic_parsl.server.leash import leashed
from sonic_parsl.server.runtimes import Runtime, TritonOptions, remove_shared_memory

POLL_S = 0.05
PORT_ATTEMPTS = 5
PORT_TAKEN = "Address already in use"
EXIT_SLACK_S = 5.0
"""Beyond its own exit time-out: Triton counts in whole seconds and unloads models afterwards."""

TAIL_BYTES = 2**16
TAIL_LINES, NEWEST_LINES = 30, 5
TABLE = re.compile(r"[|+]|$")
INFORMATION = re.compile(r"I\d{4} ")
"""Triton ends with a table of its options and a report of its own end; what went wrong stands before them."""


class Triton:
    """A running ``tritonserver``.

    It lives in a session of its own, so that a signal for the job's process group reaches the agent
    only; on a leash, so that it does not outlive an agent that was killed; and under a guard, so that
    its stubs do not either.
    """

    def __init__(
        self, runtime: Runtime, options: TritonOptions, log: io.FileIO, identity: Identity, guard: Guard
    ) -> None:
        self.address = f"{options.address}:{options.port}"
        self.stub = KServe(identity.peer(self.address))
        self._shm_prefix = options.shm_prefix
        command = runtime.command(options)
        self._process = subprocess.Popen(
            leashed(command.argv),
            env=command.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._guard = guard
        guard.watch(self._process.pid)

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def has_lost_a_process(self) -> bool:
        """Return whether a process of a model has ended, and nobody has taken note of it."""
        with contextlib.suppress(psutil.NoSuchProcess):  # Triton has ended itself
            children = psutil.Process(self._process.pid).children(recursive=True)
            return any(is_dead_stub(child) for child in children)
        return False

    async def wait_exit(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        while (code := self.exit_code) is None:
            await asyncio.sleep(POLL_S)
        return code

    async def wait_ready(self) -> None:
        """Wait until it and all its models are ready.

        Raises
        ------
        ServerStartError
            It ended instead.
        """
        while not await self.stub.ready(timeout_s=1.0):
            if self.exit_code is not None:
                raise ServerStartError(f"Triton ended at its start with exit code {self.exit_code}.")
            await asyncio.sleep(POLL_S)

    async def stop(self, timeout_s: float) -> None:
        """End it and all it has started.

        After SIGTERM Triton refuses what is new and answers what it has, also what is queued.

        Parameters
        ----------
        timeout_s
            What is in flight gets so many seconds; with 0 it is killed at once.
        """
        await self.stub.close()
        if timeout_s > 0 and self.exit_code is None:
            self._process.terminate()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wait_exit(), timeout_s + EXIT_SLACK_S)
        end_group(self._process.pid)
        self._process.wait()
        self._guard.forget(self._process.pid)
        remove_shared_memory(self._shm_prefix)


async def start(
    runtime: Runtime,
    options: TritonOptions,
    *,
    identity: Identity,
    home: Home,
    port_range: PortRange | None,
    log: io.FileIO,
) -> Triton:
    """Start a Triton on a free port and wait until it is ready.

    Another process may take a port between choosing and using it: then another one is tried.

    Parameters
    ----------
    identity
        What it shows its clients.
    home
        What it leaves there goes with it.
    log
        Where its output goes; :func:`last_lines` reads it.

    Raises
    ------
    ServerStartError
        It ended instead.
    """
    for _ in range(PORT_ATTEMPTS):
        log.seek(0)
        log.truncate()
        port = free_port(options.address, port_range)
        try:
            with identity.key_files(home.folder) as keys:
                triton = Triton(runtime, replace(options, port=port, keys=keys), log, identity, home.guard)
                try:
                    await triton.wait_ready()
                except BaseException:
                    await triton.stop(0.0)
                    raise
                return triton
        except ServerStartError:
            if PORT_TAKEN not in last_lines(log):
                raise
    raise ServerStartError(f"Triton found no free port in {PORT_ATTEMPTS} attempts.")


def is_dead_stub(process: psutil.Process) -> bool:
    """Return whether a process was a python model's, and is dead."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.name().startswith("triton_python")
    except psutil.NoSuchProcess:
        return False


def last_lines(log: io.FileIO) -> str:
    """Return the end of what a Triton wrote: warnings, errors, tracebacks, and the newest lines of all."""
    size = os.fstat(log.fileno()).st_size
    # The process writes at the position that it shares with us: read without moving it.
    text = os.pread(log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
    lines = [line for line in text.splitlines() if not TABLE.match(line)]
    older, newest = lines[:-NEWEST_LINES], lines[-NEWEST_LINES:]
    telling = [line for line in older if not INFORMATION.match(line)]
    return "\n".join([*telling, *newest][-TAIL_LINES:])
