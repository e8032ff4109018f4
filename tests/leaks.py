"""What a run may leave behind: processes, temporary folders, shared memory."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

MARK = "SONIC_PARSL_TEST_RUN"
"""Environment variable that every process started by this test run inherits."""


def mark_this_run(folder: Path | None = None) -> None:
    """Let whatever is started from here on be recognised, also by what it writes into pytest's `folder`."""
    global _folder  # noqa: PLW0603
    os.environ[MARK] = uuid.uuid4().hex
    _folder = folder
    _there_before.update(left_files())


def our_processes(*words: str) -> list[psutil.Process]:
    """Processes started by this test run, but this one, whose command line holds one of `words`, or any."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            line = " ".join(process.cmdline())
            if not (_is_ours(process) or (TITLE in line and _is_titled_and_ours(process))):
                continue
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if not words or any(word in line for word in words):
            found.append(process)
    return found


def told(processes: Iterable[psutil.Process], question: Callable[[psutil.Process], T]) -> list[T]:
    """Return what each process says of itself, but for those that have ended meanwhile."""
    answers = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            answers.append(question(process))
    return answers


def all_said(process: psutil.Process) -> str:
    """Return its arguments and its environment."""
    return "\n".join((*process.cmdline(), *process.environ().values()))


TITLE = "HTEX interchange"
_folder: Path | None = None


def _is_ours(process: psutil.Process) -> bool:
    return process.environ().get(MARK) == os.environ[MARK]


def _is_titled_and_ours(process: psutil.Process) -> bool:
    """Judge a process that has set its title, which takes the place of its environment."""
    parent = process.parent()
    if parent is None or parent.pid == 1:
        # Of another process of tests, which has its folder beside ours, it is not.
        written = [Path(file.path) for file in process.open_files()]
        others = _folder is not None and any(
            _folder.parent in path.parents and _folder not in path.parents for path in written
        )
        return process.create_time() > psutil.Process().create_time() and not others
    return parent.pid == os.getpid() or _is_ours(parent)


POOL_OWNER = "from sonic_parsl.cli import main"
"""A pool of its own, in the background."""
POOL_WORDS = (
    POOL_OWNER,
    "tritonserver",
    "triton_python_backend_stub",
    "sonic_parsl.server",
    "sonic_parsl.pool",
    "server/guard.py",
    "executors/batch/undertaker.py",
)
"""Command lines of what a pool consists of."""
PARSL_WORDS = (TITLE, "executors.workers.interchange", "worker_pool", "multiprocessing.spawn")


def left_processes() -> list[psutil.Process]:
    """Processes of pools and workers that this test run started."""
    return our_processes(*POOL_WORDS, *PARSL_WORDS)


def leftovers() -> list[str]:
    """Describe what is left of pools and workers that this test run started."""
    return [*told(left_processes(), lambda process: " ".join(process.cmdline())), *map(str, left_files())]


def left_files() -> set[Path]:
    """Temporary folders and shared memory with our names, and folders of Tritons, that no living process uses."""
    found = {*Path(tempfile.gettempdir()).glob("sonic-parsl-*"), *Path("/dev/shm").glob("sonic-*")}
    found |= {path for path in Path("/tmp").glob("python_env_*") if _is_own(path)}
    found -= _there_before
    names = _names_in_use() if found else set()
    a_triton_lives = any(name.endswith("/libtriton_python.so") for name in names)
    return {
        path
        for path in found
        if not (
            a_triton_lives if path.match("/tmp/python_env_*") else any(name.startswith(str(path)) for name in names)
        )
    }


_there_before: set[Path] = set()
"""What others, or an earlier run that was killed, had left already."""


def _is_own(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_uid == os.geteuid()
    return False


def _names_in_use() -> set[str]:
    """Return what living processes have in their command lines, have open, or have in memory."""
    names: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            names.update(process.cmdline())  # a server's guard
            names.update(file.path for file in process.open_files())
            names.update(area.path for area in process.memory_maps())
    return names


def wait_until(condition: Callable[[], object], timeout_s: float, what: Callable[[], object] | str = "") -> None:
    """Wait until `condition` holds.

    Raises
    ------
    AssertionError
        It does not within `timeout_s` seconds; says what `what` returns then.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what() if callable(what) else what or condition}")
        time.sleep(0.05)


def assert_nothing_is_left(timeout_s: float = 20.0) -> None:
    """Wait until nothing of a pool or its workers is left.

    Files and shared memory count if they are there when the processes have gone, and stay: another process of
    tests has its own, which come and go. What then is left is put away, so that one test fails for it and not all
    that follow.
    """
    stay: set[Path] | None = None

    def is_gone() -> bool:
        nonlocal stay
        if left_processes():
            stay = None
            return False
        stay = left_files() if stay is None else stay & left_files()
        return not stay

    try:
        wait_until(is_gone, timeout_s, what=leftovers)
    except AssertionError:
        # Drivers first: they would start again what is killed.
        for process in [*our_processes("bin/sonic-parsl", POOL_OWNER), *left_processes()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _there_before.update(left_files())
        raise
