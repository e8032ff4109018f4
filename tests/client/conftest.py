"""Real Tritons and a real registry service whose table the test sets."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import psutil
import pytest

from sonic_parsl import rpc
from sonic_parsl.client.session import Session
from sonic_parsl.credentials import Peer
from sonic_parsl.kserve import KServe
from sonic_parsl.poolref import PoolRef
from sonic_parsl.ports import free_port
from sonic_parsl.protocol import (
    Ack,
    ServedModel,
    ServerEntry,
    ServerInfo,
    ServerState,
    ServerTable,
    encode,
)
from sonic_parsl.server.guard import remove_environments
from sonic_parsl.server.runtimes import TritonOptions, remove_shared_memory, runtime
from tests.client import onnx_files

HOST = "127.0.0.1"
MODELS = Path(__file__).parent.parent / "models"
START_S = 60.0
POLL_S = 0.02
SERVED = ("identity", "timed", "broken", "linear")

BROKEN = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        raise ValueError("this model breaks on every input")
"""

HALF = f"""
import numpy as np
import triton_python_backend_utils as pb_utils

WEIGHTS = np.array({onnx_files.WEIGHTS.tolist()}, np.float16)

class TritonPythonModel:
    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        scores = [(x.astype(np.float16) @ WEIGHTS).astype(np.float32) for x in rows]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for y in scores]
"""


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Wait until a condition holds; fail when it does not in time."""
    return _wait_for


def _wait_for(condition: Callable[[], object], *, timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Server:
    """A Triton that was started for a test."""

    id: str
    address: str
    process: psutil.Popen
    models: tuple[ServedModel, ...]

    def entry(
        self,
        state: ServerState = "ready",
        *,
        source_digest: str = "",
        artifact_digest: str = "",
        numeric_kind: str = "fp32",
    ) -> ServerEntry:
        """Return its line of the table."""
        models = tuple(
            replace(model, source_digest=source_digest, artifact_digest=artifact_digest, numeric_kind=numeric_kind)
            for model in self.models
            if state != "starting"
        )
        address = "" if state == "starting" else self.address
        return ServerEntry(ServerInfo(self.id, "cpu", "cpu", "hardware", "localhost", address, "0", "1", models), state)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: identity, timed, one that always fails, and one that counts in half precision."""
    folder = tmp_path_factory.mktemp("models") / "repository"
    shutil.copytree(MODELS, folder)
    config = (MODELS / "timed/config.pbtxt").read_text().replace('"timed"', '"broken"')
    (folder / "broken/1").mkdir(parents=True)
    (folder / "broken/config.pbtxt").write_text(config)
    (folder / "broken/1/model.py").write_text(BROKEN)
    (folder / "linear/1").mkdir(parents=True)
    (folder / "linear/config.pbtxt").write_text(f'backend: "python" max_batch_size: 64 {onnx_files.ROW}')
    (folder / "linear/1/model.py").write_text(HALF)
    return folder


class Servers:
    """Starts Tritons, and leaves nothing of them."""

    def __init__(self, repository: Path, logs: Path) -> None:
        self._repository = repository
        self._logs = logs
        self._stubs: list[psutil.Process] = []
        self._stack = ExitStack()

    def start(self, count: int) -> list[Server]:
        """Start several at once and wait until they are ready."""
        launched = [self._launch() for _ in range(count)]
        return [asyncio.run(self._wait_ready(*one)) for one in launched]

    def close(self) -> None:
        """End them all."""
        self._stack.close()
        for stub in self._stubs:
            with suppress(psutil.NoSuchProcess):
                stub.kill()
        psutil.wait_procs(self._stubs, timeout=10)

    def _launch(self) -> tuple[psutil.Popen, str]:
        port = free_port(HOST)
        options = TritonOptions(self._repository, SERVED, HOST, port, exit_timeout_s=5)
        command = runtime("wheel").command(options)
        log = self._stack.enter_context((self._logs / f"{port}.log").open("wb"))
        process = psutil.Popen(command.argv, env=command.env, stdout=log, stderr=subprocess.STDOUT)
        self._stack.callback(_end, process, options.shm_prefix)
        return process, f"{HOST}:{port}"

    async def _wait_ready(self, process: psutil.Popen, address: str) -> Server:
        stub = KServe(Peer(address))
        deadline = time.monotonic() + START_S
        while not await stub.ready(1.0):
            assert process.poll() is None, "Triton ended at its start"
            assert time.monotonic() < deadline, "Triton did not start in time"
            await asyncio.sleep(POLL_S)
        models = [m for name in SERVED for m in await stub.served(name, timeout_s=5.0)]
        await stub.close()
        # Once it is killed, nobody can say which its stubs were.
        self._stubs += process.children(recursive=True)
        return Server(f"cpu-{process.pid}", address, process, tuple(models))


def _end(process: psutil.Popen, shm_prefix: str) -> None:
    process.kill()
    process.wait()
    remove_shared_memory(shm_prefix)
    remove_environments()


@pytest.fixture(scope="module")
def pair(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two servers that all tests share and none harms."""
    servers = Servers(repository, tmp_path_factory.mktemp("logs"))
    try:
        yield servers.start(2)
    finally:
        servers.close()


@pytest.fixture
def servers(repository: Path, tmp_path: Path) -> Iterator[Servers]:
    """Starts servers for one test, which may do to them what it likes."""
    made = Servers(repository, tmp_path)
    yield made
    made.close()


class Registry:
    """The registry's service in a thread: its table is what the test says."""

    def __init__(self) -> None:
        self.table = ServerTable("test", 0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._changed = asyncio.Event()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.ref = PoolRef("test", (f"{HOST}:{port}",))

    def show(self, *entries: ServerEntry, lost: str | None = None) -> None:
        """Set the table."""
        table = ServerTable("test", self.table.generation + 1, entries, lost)
        asyncio.run_coroutine_threadsafe(self._set(table), self._loop).result()

    def stop(self) -> None:
        """End the service; clients see the connection close."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def allow(self, sender: str, size: int) -> None:
        """Let everybody speak."""

    def answer(self, message: rpc.AgentMessage, sender: str | None) -> Ack:
        """Answer an agent."""
        raise AssertionError(f"no agent speaks to this registry: {message}, {sender}")

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield each table."""
        while True:
            changed = self._changed
            yield encode(self.table)
            await changed.wait()

    async def _set(self, table: ServerTable) -> None:
        self.table = table
        self._changed.set()
        self._changed = asyncio.Event()

    async def _start(self) -> int:
        self._server = grpc.aio.server(options=rpc.SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((rpc.handler(self),))
        port: int = self._server.add_insecure_port(f"{HOST}:0")
        await self._server.start()
        return port


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with an empty table."""
    made = Registry()
    yield made
    made.stop()


@pytest.fixture
def session(registry: Registry) -> Iterator[Session]:
    """A session with that registry's pool."""
    made = Session(registry.ref)
    yield made
    made.close()
