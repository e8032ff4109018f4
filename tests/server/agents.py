"""A real agent with a real Triton, started as the pool's owner does, and models to serve."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sonic_parsl.credentials import Peer
from sonic_parsl.kserve import Array, KServe
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import POOL_ENV, PoolRef
from sonic_parsl.protocol import Departure, ServerEntry, ServerState
from sonic_parsl.server.runtimes import SHARED_MEMORY
from sonic_parsl.server.spec import ServerSpec
from tests.leaks import wait_until

MODELS = Path(__file__).parent.parent / "models"
LEASE_S = 3.0
START_S = 60.0
GONE_S = 8.0
"""What a killed server may need to be gone: seconds, on a busy machine."""


@dataclass(frozen=True)
class RunningAgent:
    """An agent that was started for a test; its group's name is its own."""

    process: psutil.Popen
    group: str
    pool: ServerPool
    log: Path

    @property
    def entry(self) -> ServerEntry | None:
        """Its line in the table."""
        return next((one for one in self.pool.table.servers if one.info.group == self.group), None)

    def wait_for(self, state: ServerState) -> ServerEntry:
        """Wait until the pool's owner sees it in this state."""

        def reached() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.entry is not None and self.entry.state == state

        wait_until(reached, START_S, what=self.log.read_text)
        entry = self.entry
        assert entry is not None
        return entry

    def ready_peer(self) -> Peer:
        """Wait until it is ready; return how a client of the pool reaches its Triton."""
        return self.pool.ref.server(self.wait_for("ready").info)

    def departure(self) -> Departure:
        """Wait until the pool's owner hears of its end; return what it heard first."""
        wait_until(self._departures, START_S, what=self.log.read_text)
        return self._departures()[0]

    def exit_code(self, timeout_s: float = 30.0) -> int:
        """Wait until it ends."""
        try:
            return int(self.process.wait(timeout_s))
        except psutil.TimeoutExpired:
            raise AssertionError(self.log.read_text()) from None

    def family(self) -> list[psutil.Process]:
        """Return it and every process it has started."""
        return [psutil.Process(self.process.pid), *self.process.children(recursive=True)]

    def triton(self) -> psutil.Process:
        """Wait until its Triton runs; return it."""
        return self._wait_for("tritonserver")

    def stub(self) -> psutil.Process:
        """Wait until Triton has started a process for a model; return it."""
        return self._wait_for("triton_python_backend_stub")

    def _departures(self) -> list[Departure]:
        return [one for one in self.pool.departures if one.group == self.group]

    def _wait_for(self, name: str) -> psutil.Process:
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = self._named(name)
            return bool(found)

        wait_until(is_there, START_S, what=self.log.read_text)
        return found[0]

    def _named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                # What is on a leash is still the leash until it is the command.
                if process.cmdline()[:1] and process.cmdline()[0].endswith(name):
                    found.append(process)
        return found


def start_agent(
    pool: ServerPool, folder: Path, repository: Path, *models: str, ref: PoolRef | None = None, **spec: Any
) -> RunningAgent:
    """Start an agent, let in by `ref` if that is given; what `spec` does not say is short and small."""
    group = f"g{uuid.uuid4().hex[:8]}"
    settings = {"lease_s": LEASE_S, "start_timeout_s": START_S, "drain_s": 10.0, **spec}
    path, log = folder / f"{group}.json", folder / f"{group}.log"
    ServerSpec(group=group, repository=repository, models=models, **settings).write(path)
    command = [sys.executable, "-m", "sonic_parsl.server.agent", "--spec", str(path), "--block", "0"]
    ref_path = folder / f"{group}-block.json"
    (ref or pool.admit(group, "0")).write(ref_path)
    with log.open("wb") as output:
        process = psutil.Popen(["env", f"{POOL_ENV}={ref_path}", *command], stdout=output, stderr=subprocess.STDOUT)
    return RunningAgent(process, group, pool, log)


@contextmanager
def agent(
    pool: ServerPool, folder: Path, repository: Path, *models: str, ref: PoolRef | None = None, **spec: Any
) -> Iterator[RunningAgent]:
    """Run an agent; at the end nothing is left of it, nor is it if the test fails."""
    started = start_agent(pool, folder, repository, *models, ref=ref, **spec)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
        with suppress(psutil.TimeoutExpired):
            started.process.wait(30.0)
        if started.process.poll() is None:
            started.process.kill()  # its guard does the rest
            started.process.wait()


def shared_memory_of(triton: psutil.Process) -> str:
    """Return what the names of a Triton's shared memory begin with."""
    (prefix,) = re.findall(r"shm-region-prefix-name=(\S+)", " ".join(triton.cmdline()))
    return str(prefix)


def environment_of(triton: psutil.Process) -> Path:
    """Return the folder that a Triton's python backend made at its start, as the process itself remembers it."""
    areas = Path(f"/proc/{triton.pid}/maps").read_text().splitlines()
    found = set()
    with Path(f"/proc/{triton.pid}/mem").open("rb") as memory:
        for area in areas:
            edges, rights, *_ = area.split()
            start, end = (int(edge, 16) for edge in edges.split("-"))
            if rights == "rw-p":
                memory.seek(start)
                found.update(re.findall(rb"/tmp/python_env_\w{6}(?=\0)", memory.read(end - start)))
    (name,) = found
    return Path(name.decode())


def assert_gone(family: list[psutil.Process], shm_prefix: str, timeout_s: float = GONE_S) -> None:
    """Wait until none of these processes and no shared memory is left."""
    _, alive = psutil.wait_procs(family, timeout=timeout_s)
    assert not alive, [process.cmdline() for process in alive if process.is_running()]
    assert not list(SHARED_MEMORY.glob(f"{shm_prefix}*"))


# Models -------------------------------------------------------------------------


def timed(folder: Path, *, t0_ms: int) -> tuple[Path, Path]:
    """Copy the models; "timed" needs so long for a request, and makes the file that is returned too when it begins.

    Each copy has a version number of its own: they differ, and one pool may see them all.
    """
    repository, begun = folder / "repository", folder / "begun"
    shutil.copytree(MODELS, repository)
    version = (repository / "timed" / "1").rename(repository / "timed" / str(next(_versions)))
    config, code = repository / "timed" / "config.pbtxt", version / "model.py"
    config.write_text(config.read_text().replace('string_value: "10"', f'string_value: "{t0_ms}"'))
    code.write_text(
        code.read_text().replace("time.sleep(", f"len(rows) > 1 and open({str(begun)!r}, 'w').close(); time.sleep(")
    )
    return repository, begun


_versions = itertools.count(2)


def initialized_by(folder: Path, *lines: str) -> Path:
    """Make a repository whose model runs these lines when it is loaded."""
    repository = folder / "repository"
    shutil.copytree(MODELS / "identity", repository / "identity")
    code = repository / "identity" / "1" / "identity.py"
    body = "".join(f"        {line}\n" for line in lines)
    code.write_text(
        code.read_text().replace("    def execute", f"    def initialize(self, args):\n{body}\n    def execute")
    )
    return repository


def ask(peer: Peer, model: str, rows: Array, *, timeout_s: float = 30.0) -> Array:
    """Send a request and return the answer."""

    async def request() -> Array:
        server = KServe(peer)
        try:
            answer = await server.infer(model, "", {"INPUT0": rows}, ["OUTPUT0"], timeout_s=timeout_s, rows=len(rows))
        finally:
            await server.close()
        return answer["OUTPUT0"]

    return asyncio.run(request())


def rows_of(count: int, width: int) -> Array:
    """Return rows that differ, float32 of shape (count, width)."""
    return np.arange(count * width, dtype=np.float32).reshape(count, width)
