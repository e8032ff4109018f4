"""One Triton process: started, watched, stopped. Its owner is the agent."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

from sonic_parsl.errors import ServerStartError
from sonic_parsl.kserve import KServe
from sonic_parsl.ports import PortRange, free_port
from sonic_parsl.server.leash import leashed
from sonic_parsl.server.runtimes import Runtime, TritonOptions, remove_shared_memory

STDERR_LINES = 30
POLL_S = 0.05
PORT_ATTEMPTS = 5
EXIT_SLACK_S = 5.0
"""Beyond its own exit time-out: Triton counts in whole seconds and unloads models afterwards."""


class Triton:
    """A running ``tritonserver``.

    It lives in a session of its own, so that a signal for the job's process group reaches the agent
    only, and on a leash, so that it does not outlive an agent that was killed.
    """

    def __init__(self, runtime: Runtime, options: TritonOptions, log: Path) -> None:
        self.address = f"{options.address}:{options.port}"
        self.stub = KServe(self.address)
        self._options = options
        self._log = log
        command = runtime.command(options)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                leashed(command.argv),
                env=command.env,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def stderr_tail(self) -> str:
        """Return the last lines it wrote."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-STDERR_LINES:])

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
        """Let it finish what is in flight, for at most `timeout_s` seconds, and end it."""
        await self.stub.close()
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wait_exit(), timeout_s + EXIT_SLACK_S)
        if self.exit_code is None:
            self._process.kill()
        self._process.wait()
        remove_shared_memory(self._options.shm_prefix)


async def start(
    runtime: Runtime,
    options: TritonOptions,
    *,
    port_range: PortRange | None,
    log: Path,
) -> Triton:
    """Start a Triton on a free port and wait until it is ready.

    Another process may take a port between choosing and using it: then another one is tried.

    Raises
    ------
    ServerStartError
        It ended instead; the message holds the last lines of its stderr.
    """
    for _ in range(PORT_ATTEMPTS):
        port = free_port(options.address, port_range)
        triton = Triton(runtime, replace(options, port=port), log)
        try:
            await triton.wait_ready()
        except ServerStartError as error:
            tail = triton.stderr_tail()
            await triton.stop(0.0)
            if "Address already in use" in tail:
                continue
            raise ServerStartError(f"{error.message}\n{tail}") from None
        except BaseException:
            await triton.stop(0.0)
            raise
        return triton
    raise ServerStartError(f"Triton found no free port in {PORT_ATTEMPTS} attempts.")
