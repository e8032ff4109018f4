"""A pool that outlives its runs: kept by a process of its own until it is stopped, or nobody has asked it for long."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sonic_parsl import site as site_file
from sonic_parsl.errors import PoolError, PoolLostError
from sonic_parsl.executors.pool_line import PoolLine
from sonic_parsl.executors.site import open_pool
from sonic_parsl.folders import STATE, make_folder
from sonic_parsl.pool import named, overview
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.pool.view import PoolView
from sonic_parsl.protocol import ServerTable

LOOK_S = 1.0
POLL_S = 0.1
BEFORE_EXPIRY_S = 3600.0
"""A pool ends so long before its certificates do: after that nobody would be let in, and nobody would be told why."""
PROGRAM = "from sonic_parsl.cli import main; main()"


@dataclass
class IdleWatch:
    """Tells when nobody has asked the servers anything for long, since there was one to ask.

    Attributes
    ----------
    idle_s
        For how long, in seconds.
    """

    idle_s: float
    _requests: int = -1
    _since: float = 0.0

    def is_over(self, requests: int, now: float, *, waits: bool) -> bool:
        """Return whether it is time to end.

        Parameters
        ----------
        requests
            What all servers there were have answered so far.
        now
            Time of a monotonic clock, in seconds.
        waits
            Whether no server is ready, and some are on their way. Who is attached may wait for them, too.
        """
        if waits or requests != self._requests:
            self._requests, self._since = requests, now
        return now - self._since >= self.idle_s


def keep_pool(
    name: str, site: str, *, models: Path | None, idle_s: float, console: Console, on_up: Callable[[int], None]
) -> str:
    """Own a pool until it is idle for `idle_s` seconds, its certificates expire, or this process is told to end.

    Returns why it ended.

    Sessions that are attached and ask nothing do not keep it: a notebook that somebody forgot holds no GPU.

    Parameters
    ----------
    console
        Gets a line whenever the number of servers changes.
    on_up
        Called once others can attach, with the number of servers that are ready.

    Raises
    ------
    ConfigError
        A pool of this name runs already, or something is wrong with the site.
    PoolLostError
        The pool was lost.
    """
    watch = IdleWatch(idle_s)
    with named.owning(name, site=site_file.find(site).absolute()), open_pool(name, site, models=models) as opened:
        pool = opened.pool
        assert isinstance(pool, ServerPool)
        on_up(len(pool.table.ready))
        try:
            with PoolLine(pool, console):
                while (why := _why_over(pool, watch)) is None:
                    pool.wait_for(lambda table: table.lost is not None, LOOK_S)
                    if pool.table.lost is not None:
                        raise PoolLostError(f"The pool is lost: {pool.table.lost}.")
        except KeyboardInterrupt:
            why = "it was stopped"
        pool.dismiss(f"the pool {name} ended, for {why}. {_start_again(name, site, models)}")
        return why


def _why_over(pool: ServerPool, watch: IdleWatch) -> str | None:
    if watch.is_over(_requests(pool), time.monotonic(), waits=_waits(pool.table)):
        return f"nobody has asked it anything for {watch.idle_s:g} s"
    if pool.trusted_until is not None and time.time() > pool.trusted_until - BEFORE_EXPIRY_S:
        return "its certificates are about to expire"
    return None


def _waits(table: ServerTable) -> bool:
    on_their_way = [*table.servers, *(block for block in table.blocks if block.state != "lost")]
    return not table.ready and bool(on_their_way)


def _requests(pool: PoolView) -> int:
    """Return what servers were asked, but for the row of zeros by which each tries its models at its start."""
    return sum(max(0, entry.load.requests - len(entry.info.models)) for entry in pool.servers)


def _start_again(name: str, site: str, models: Path | None) -> str:
    """Return what its users should do when a pool has ended."""
    site = str(Path(site).absolute()) if Path(site).is_file() else site  # it is read elsewhere
    command = ["sonic-parsl", "pool", "start", "--site", site, "--name", name]
    command += [] if models is None else ["--models", str(models.absolute())]
    return f"Start it again: `{shlex.join(command)}`, where --idle says for how long it waits; then attach to it again"


def count_ready(name: str) -> int:
    """Return how many servers of a pool that is up are ready now."""
    return sum(
        server.state == "ready"
        for pool in overview.look(pool=name).pools
        for group in pool.groups
        for server in group.servers
    )


def start_in_background(name: str, arguments: list[str]) -> int:
    """Start this program again in the background, and wait until its pool is up; return its process id.

    Parameters
    ----------
    arguments
        What follows the program's name.

    Raises
    ------
    PoolError
        It ended instead, and the message has what it said; or Ctrl-C was pressed meanwhile, which ends it.
    """
    named.check_name(name)
    folder = named.log_path(name).parent
    make_folder(folder, hint=STATE, mode=0o700)
    # Its own file until it is up: the name, and the log of that name, may be another pool's.
    descriptor, path = tempfile.mkstemp(prefix="starting-", suffix=".log", dir=folder)
    log = Path(path)
    with os.fdopen(descriptor, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_up(name, process, log)
        log.replace(named.log_path(name))
    except KeyboardInterrupt:
        raise PoolError(_ended(name, process)) from None
    finally:
        log.unlink(missing_ok=True)
    return process.pid


def _wait_up(name: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while not any(record.name == name and record.pid == process.pid and record.is_up for record in named.running()):
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().removeprefix("Error:").strip()
            raise PoolError(f"The pool {name} did not start: {said or f'exit code {process.returncode}'}")
        time.sleep(POLL_S)


def _ended(name: str, process: subprocess.Popen[bytes]) -> str:
    """End a pool that was about to start; return what to say of it."""
    process.terminate()
    try:
        process.wait(named.STOP_S)
    except subprocess.TimeoutExpired:
        return f"The pool {name} (process {process.pid}) was told to stop, and has not ended after {named.STOP_S:g} s."
    return f"The pool {name} was stopped before it was up."
