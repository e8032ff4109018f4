"""What a server leaves on its node when it is killed, and who puts it away.

The guard outlives an agent that was killed, just long enough to end what the agent had started: the leash ends
Triton, but not Triton's python stubs, of which one that was computing at that moment stays for ever. Where the
guard is killed, too, as batch systems do, the next agent of the same user on the node sweeps what is left.

Run as a script (``python -I -S guard.py PREFIX FOLDER``) this imports nothing of the project. It reads process
groups until the end of its standard input, whose other side is the agent's, then ends them.
"""

from __future__ import annotations

import fcntl
import glob
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
UUID = "-".join("?" * length for length in (8, 4, 4, 4, 12))
"""What Triton adds to the prefix of a region's name, as a glob."""
LOCK = "lock"
"""The lock of a server is in shared memory, after its prefix: each node, and no other, has that. It names the
server's folder, and agent and guard hold it for as long as either lives."""
FOLDER = "sonic-parsl-server-"
"""What the name of a server's folder begins with."""
MAKING_S = 60.0
"""A lock without a name that is older belongs to a server that was killed while it made it."""

ENVIRONMENTS = Path("/tmp"), "python_env_??????"
"""Where Triton's python backend makes a folder at its start, whatever TMPDIR says, which only it removes."""
BACKEND = b"libtriton_python.so"
CLOCK_SLACK_S = 1.0
"""File systems and processes do not count time alike."""


class Guard:
    """A process that is started before there is anything to leave behind.

    Parameters
    ----------
    shm_prefix
        What the names of the shared memory begin with that must not stay.
    folder
        A folder that must not stay; it need not be there yet.

    Raises
    ------
    OSError
        There is no room for its lock.
    """

    def __init__(self, shm_prefix: str, folder: Path) -> None:
        self._lock: int | None = _locked(shm_prefix, folder)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, shm_prefix, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock],
        )

    def watch(self, group: int) -> None:
        """Let it end a process group, too, which was started with ``start_new_session=True``."""
        self._tell(group)

    def forget(self, group: int) -> None:
        """Let it leave a group alone that is gone: its number may be another's by then."""
        with suppress(BrokenPipeError):  # it was killed, and does nothing to anybody
            self._tell(-group)

    def dismiss(self) -> None:
        """Let it do what is left to do, and wait for its end; may be called twice."""
        self._process.communicate()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _tell(self, number: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % number)
        self._process.stdin.flush()


def end_group(group: int) -> None:
    """End every process of a group that is still there."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


# What servers leave -----------------------------------------------------------


def sweep() -> list[str]:
    """Put away what servers of this user left on this node whose agent and guard are gone; return their folders."""
    found = [folder for lock in SHARED_MEMORY.glob(f"sonic-*-{LOCK}") if (folder := _sweep(lock))]
    remove_environments()
    return found


def remove_environments(ended: Collection[int] = ()) -> None:
    """Remove the empty folders that this user's Tritons made which are gone.

    A folder does not say whose it is. So none is touched that is younger than a Triton which lives.

    Parameters
    ----------
    ended
        Process groups that were just killed.
    """
    parent, pattern = ENVIRONMENTS
    folders = [path for path in parent.glob(pattern) if _is_own(path, stat.S_ISDIR)]  # before one looks who lives
    oldest = min((_started_at(pid) for pid in _tritons(ended)), default=math.inf) if folders else math.inf
    for path in folders:
        with suppress(OSError):  # it is not empty, or another guard was faster
            if path.stat().st_mtime + CLOCK_SLACK_S < oldest:
                path.rmdir()


def _locked(shm_prefix: str, folder: Path) -> int:
    """Make and take a server's lock; return its open file."""
    lock = os.open(SHARED_MEMORY / f"{shm_prefix}{LOCK}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, os.fsencode(folder))  # only later is one without a name swept: it may just be made
    return lock


def _sweep(lock: Path) -> str:
    """Put away what a server left if its lock can be taken; return its folder's name, else nothing."""
    try:
        file = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""  # another user's, or gone
    try:
        if os.fstat(file).st_uid != os.geteuid():
            return ""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.fsdecode(os.read(file, os.fstat(file).st_size))
        if folder or time.time() - os.fstat(file).st_mtime > MAKING_S:
            _remove(lock.name.removesuffix(LOCK), Path(folder))
    except OSError:
        return ""  # it lives, or cannot be judged
    finally:
        os.close(file)
    return folder


def _remove(shm_prefix: str, folder: Path) -> None:
    """Remove a server's folder and its shared memory, and last its lock."""
    if folder.name.startswith(FOLDER) and _is_own(folder, stat.S_ISDIR):  # it may never have come to be
        shutil.rmtree(folder, ignore_errors=True)
    for region in own_regions(shm_prefix):
        region.unlink(missing_ok=True)
    (SHARED_MEMORY / f"{shm_prefix}{LOCK}").unlink(missing_ok=True)


def own_regions(shm_prefix: str) -> list[Path]:
    """Return a server's regions in shared memory: others may have put files of such a name there, or links."""
    found = SHARED_MEMORY.glob(f"{glob.escape(shm_prefix)}{UUID}")
    return [path for path in found if _is_own(path, stat.S_ISREG)]


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False  # it is gone, or in a folder that lets nobody look any more
    return is_kind(found.st_mode) and found.st_uid == os.geteuid()


def _tritons(ended: Collection[int]) -> Iterator[int]:
    """Yield the processes of this user that have the python backend and are in none of the groups that ended."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or lets nobody look
            own = process.stat().st_uid == os.geteuid()
            if own and BACKEND in (process / "maps").read_bytes() and os.getpgid(int(process.name)) not in ended:
                yield int(process.name)


def _started_at(pid: int) -> float:
    """Return when a process started, in seconds since the epoch; infinity for one that has ended."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return math.inf
    ticks = int(said.rpartition(")")[2].split()[19])  # since boot, see proc(5)
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


# The guard's own process --------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Wait for the agent's end, and end what it left."""
    shm_prefix, folder = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A batch system that sends them to all of a job's processes means the agent.
        signal.signal(number, signal.SIG_IGN)
    numbers = [int(word) for word in sys.stdin.buffer.read().split()]
    killed = [group for group in numbers if group > 0 and -group not in numbers]
    for group in killed:
        end_group(group)
    _remove(shm_prefix, Path(folder))
    remove_environments(killed)


if __name__ == "__main__":
    main(sys.argv[1:])
