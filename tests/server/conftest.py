"""A real Triton for the tests of this room, and ONNX models to serve."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.ports import free_port
from sonic_parsl.server.guard import remove_environments
from sonic_parsl.server.install import WheelInstallation, install
from sonic_parsl.server.runtimes import SHARED_MEMORY, TritonOptions, WheelRuntime, remove_shared_memory

START_S = 60.0
POLL_S = 0.05


def wait_for(condition: Callable[[], object], *, timeout_s: float = START_S) -> None:
    """Wait until `condition` holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(POLL_S)


@dataclass(frozen=True)
class RunningTriton:
    """A Triton that was started for a test."""

    process: psutil.Popen
    client: grpcclient.InferenceServerClient
    options: TritonOptions
    log: Path

    def regions(self) -> list[Path]:
        """Return its regions of shared memory."""
        return list(SHARED_MEMORY.glob(f"{self.options.shm_prefix}*"))

    def is_ready(self) -> bool:
        """Return whether it answers; fail where it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        with suppress(InferenceServerException):
            return bool(self.client.is_server_ready())
        return False


@contextmanager
def running_triton(repository: Path, models: tuple[str, ...], log: Path) -> Iterator[RunningTriton]:
    """Start a Triton and wait until it is ready; leave nothing of it."""
    port = free_port("127.0.0.1")
    options = TritonOptions(repository, models, "127.0.0.1", port)
    command = WheelRuntime().command(options)
    with (
        log.open("wb") as output,
        grpcclient.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        process = psutil.Popen(command.argv, env=command.env, stdout=output, stderr=subprocess.STDOUT)
        triton = RunningTriton(process, client, options, log)
        children: list[psutil.Process] = []
        try:
            wait_for(triton.is_ready)
            children = process.children(recursive=True)
            yield triton
        finally:
            with suppress(psutil.NoSuchProcess):
                process.kill()
            process.wait()
            for stub in psutil.wait_procs(children, timeout=5)[1]:
                stub.kill()  # one that was computing at that moment waits for ever; an agent's guard ends it
            remove_shared_memory(options.shm_prefix)
            remove_environments()


@pytest.fixture(scope="session")
def installed() -> WheelInstallation:
    """Triton, installed in the user's cache."""
    return install()


@pytest.fixture(scope="module")
def pool(installed: WheelInstallation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """A pool that agents may join."""
    with ServerPool(run_dir=tmp_path_factory.mktemp("pool") / "run") as opened:
        yield opened


@pytest.fixture(scope="session")
def start_triton(installed: WheelInstallation) -> Callable[..., object]:
    """A context manager that runs a Triton: ``start_triton(repository, models, log)``."""
    return running_triton
