"""What schedulers under test have in common: daemons to wait for and to end, ports, commands."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from tests.leaks import wait_until
from tests.schedulers.apt import SYSTEM_PATH

COMMAND_S = 30
END_S = 5
LOOPBACK = "127.0.0.1"


class Scheduler(Protocol):
    """A scheduler under test."""

    environ: dict[str, str]
    """By which its commands find it."""

    def boot(self) -> None:
        """Start its daemons, and wait until it takes jobs."""

    def stop(self) -> None:
        """End its daemons, and what runs as its jobs."""


Made = TypeVar("Made", bound=Scheduler)


@contextmanager
def booted(make: Callable[[Path], Made]) -> Iterator[Made]:
    """Boot a scheduler in a folder of its own, and let its commands in this process speak to it; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix=f"{make.__name__.lower()}-") as name:
        Path(name).chmod(0o755)
        scheduler = make(Path(name))
        os.environ.update(scheduler.environ)
        try:
            scheduler.boot()
            yield scheduler
        finally:
            scheduler.stop()
            for variable in scheduler.environ:
                del os.environ[variable]


def command(*argv: str, check: bool = True) -> str:
    """Run a scheduler's command and return what it writes.

    Raises
    ------
    AssertionError
        It fails.
    """
    path = f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}"
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=COMMAND_S, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0 or not check, f"{' '.join(argv)} failed: {done.stdout}{done.stderr}"
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of the loopback address."""
    with socket.socket() as trial:
        trial.settimeout(1.0)
        return trial.connect_ex((LOOPBACK, port)) == 0


def process_of(pid_file: Path) -> psutil.Process | None:
    """Return the daemon whose number is in a file; None where it does not run."""
    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        return psutil.Process(int(pid_file.read_text()))
    return None


def end(*daemons: psutil.Process | None) -> None:
    """End daemons, and wait until they are gone."""
    processes = [process for process in daemons if process is not None]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, slow = psutil.wait_procs(processes, timeout=END_S)
    for process in slow:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(slow, timeout=END_S)


def freeze(processes: Collection[psutil.Process]) -> None:
    """Stop processes, as their peers see a power cut: nothing is heard of them, and no connection is closed."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def kill(processes: Collection[psutil.Process]) -> None:
    """End processes without a word, frozen ones too, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not any(_runs(process) for process in processes), END_S)


def lost_with(processes: Collection[psutil.Process]) -> set[Path]:
    """Return what goes with a node that has no disk: shared memory and temporary folders of its processes."""
    found: set[Path] = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found |= {Path(area.path) for area in process.memory_maps() if area.path.startswith("/dev/shm/")}
            line = " ".join(process.cmdline())
            for prefix in re.findall(r"sonic-[0-9a-f]{16}", line):
                found.update(Path("/dev/shm").glob(f"{prefix}*"))  # also what nobody has open
            found.update(map(Path, re.findall(r"/[\w./-]*/sonic-parsl-server-[0-9a-f]{32}", line)))  # the guard's
            temporary = Path(process.environ().get("TMPDIR", ""))
            found |= {temporary} if temporary.name.startswith("sonic-parsl-") else set()
    return {path for path in found if path.exists()}


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
