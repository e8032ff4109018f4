"""Pools with a name: a folder of the user's for each, by which runs and notebooks find them."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sonic_parsl.errors import ConfigError, PoolError
from sonic_parsl.folders import STATE, make_folder
from sonic_parsl.protocol import decode, encode

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
STOP_S = 120.0
"""For servers to finish what they have, and for a batch system to cancel their jobs."""
POLL_S = 0.1


@dataclass(frozen=True)
class PoolRecord:
    """A named pool, as others see it.

    Attributes
    ----------
    site
        Path of the site file it was started with.
    host, pid
        Where its owner runs.
    started_at
        In seconds since the epoch.
    """

    name: str
    site: str
    host: str
    pid: int
    started_at: float

    @property
    def ref_path(self) -> Path:
        """The 0600 file that lets processes attach."""
        return run_dir(self.name) / "pool.json"

    @property
    def is_up(self) -> bool:
        """Whether others can attach."""
        return self.ref_path.is_file()


def root() -> Path:
    """Return the folder of this user's named pools."""
    return platformdirs.user_state_path("sonic-parsl") / "pools"


def runs_root() -> Path:
    """Return the folder of this user's runs, whose pools have no name."""
    return platformdirs.user_state_path("sonic-parsl") / "runs"


def run_dir(name: str) -> Path:
    """Return the folder of the run that owns a pool."""
    return root() / name / "run"


def log_path(name: str) -> Path:
    """Return where a pool in the background writes to."""
    return root() / name / "pool.log"


def check_name(name: str) -> None:
    """Refuse what could be no folder's name.

    Raises
    ------
    ConfigError
        It is such a name.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"A pool cannot be named {name!r}.", hint="Use letters, digits, - and _.")


@contextmanager
def owning(name: str, *, site: Path) -> Iterator[None]:
    """Own a name in the ``with`` block: others see the pool while this process lives.

    Raises
    ------
    ConfigError
        A pool of this name runs already, or its folder cannot be made.
    """
    check_name(name)
    folder = root() / name
    make_folder(folder, hint=STATE, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"A pool named {name} runs already.",
                hint=f"Use it with `--pool {name}`, stop it with `sonic-parsl pool stop {name}`, or give yours a --name.",
            ) from None
        record = PoolRecord(name, str(site), socket.gethostname(), os.getpid(), time.time())
        try:
            (folder / "record.json").write_bytes(encode(record))
            yield
        finally:
            (folder / "record.json").unlink(missing_ok=True)


def running() -> list[PoolRecord]:
    """Return this user's pools whose owner lives, by name."""
    found = (_record(folder) for folder in sorted(root().glob("*")))
    return [record for record in found if record is not None]


def find(name: str) -> PoolRecord:
    """Return a pool that runs.

    Raises
    ------
    ConfigError
        There is none of this name, or it is no name.
    """
    check_name(name)
    known = {record.name: record for record in running()}
    if name in known:
        return known[name]
    hint = f"Running are: {', '.join(known)}." if known else f"Start it: `sonic-parsl pool start --name {name}`."
    if os.access(root() / name, os.R_OK):  # another user's is none
        raise ConfigError(f"The pool {name} has ended.", hint=f"{hint} Its log is {log_path(name)}.")
    raise ConfigError(f"There is no pool named {name}.", hint=hint)


def stop(name: str) -> None:
    """End a pool and wait until it is gone.

    Raises
    ------
    ConfigError
        There is none of this name, or its owner runs on another machine.
    PoolError
        It does not end.
    """
    record = find(name)
    if record.host != socket.gethostname():
        raise ConfigError(f"The pool {name} was started on {record.host}.", hint="Stop it there.")
    os.kill(record.pid, signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while _record(root() / name) is not None:
        if time.monotonic() > end:
            raise PoolError(f"The pool {name} (process {record.pid}) has not ended after {STOP_S:g} s.")
        time.sleep(POLL_S)


def _record(folder: Path) -> PoolRecord | None:
    """Return a pool's record, if a living process holds its lock."""
    try:
        with (folder / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody owns it
    except BlockingIOError:
        pass
    except OSError:
        return None
    try:
        return decode(PoolRecord, (folder / "record.json").read_bytes())
    except (OSError, PoolError):
        return None  # it starts or ends at this moment
