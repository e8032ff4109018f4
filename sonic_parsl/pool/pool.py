"""``ServerPool``: the owner's handle on a pool of servers."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Self, override

from sonic_parsl.client.scope import Scope, set_default_pool
from sonic_parsl.client.session import close_session
from sonic_parsl.errors import PoolError, PoolLostError
from sonic_parsl.pool.pipe import from_line, to_line
from sonic_parsl.ports import PortRange
from sonic_parsl.protocol import (
    POOL_ENV,
    Credentials,
    Departure,
    Drain,
    Listening,
    Lose,
    PoolRef,
    RegistrySpec,
    ServerEntry,
    ServerTable,
)

logger = logging.getLogger(__name__)

REGISTRY_START_S = 30.0
"""Long enough to import gRPC from a cold, shared file system."""
REGISTRY_STOP_S = 5.0


class ServerPool:
    """A pool of inference servers: this process decides, a registry process beside it knows who serves.

    Server groups come in as :class:`~sonic_parsl.executors.ServerExecutor` of a Parsl configuration.
    The pool starts with the first of them and ends with the last.

    Parameters
    ----------
    address
        IPv4 address the registry listens on; workers and servers must reach it.
    port_range
        First and last port the registry may use; any free one by default.
    run_dir
        Folder for the pool's files, seen by all nodes, made with mode 0700;
        a new one in the user's temporary folder by default.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port_range: PortRange | None = None,
        run_dir: Path | None = None,
    ) -> None:
        self.address = address
        self.port_range = port_range
        self.run_id = uuid.uuid4().hex[:12]
        self.run_dir = Path(run_dir or Path(tempfile.gettempdir()) / f"sonic-parsl-{self.run_id}").absolute()
        self.departures: list[Departure] = []
        self.own_calls = Scope()
        self._table = ServerTable(run_id=self.run_id, generation=0)
        self._seen: dict[str, ServerEntry] = {}
        self._ref: PoolRef | None = None
        self._registry: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._news = threading.Condition()
        self._members: set[object] = set()

    @override
    def __repr__(self) -> str:
        return f"ServerPool(run_id={self.run_id!r}, address={self.address!r}, servers={len(self._table.servers)})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it knows ------------------------------------------------------------

    @property
    def table(self) -> ServerTable:
        """Who serves now."""
        return self._table

    @property
    def servers(self) -> tuple[ServerEntry, ...]:
        """Every server there was, as last seen."""
        return tuple(self._seen.values())

    @property
    def ref(self) -> PoolRef:
        """How workers and agents find the pool.

        Raises
        ------
        PoolError
            The pool was not started.
        """
        if self._ref is None:
            raise PoolError("The pool was not started.", hint="Load a Parsl Config that holds a ServerExecutor.")
        return self._ref

    @property
    def ref_path(self) -> Path:
        """The 0600 file that holds :attr:`ref` while the pool is up."""
        return self.run_dir / "pool.json"

    @property
    def worker_init(self) -> str:
        """Shell line that tells workers of the pool, for a provider's ``worker_init``."""
        return f"export {POOL_ENV}={self.ref_path}"

    # Its life -----------------------------------------------------------------

    def start(self) -> None:
        """Start the registry; does nothing when it runs.

        Raises
        ------
        PoolError
            The registry does not come up.
        """
        if self._registry is not None:
            return
        # What an earlier registry said is no longer true.
        self._table, self.departures = ServerTable(run_id=self.run_id, generation=0), []
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        credentials = Credentials.new()
        self._registry = subprocess.Popen(
            [sys.executable, "-m", "sonic_parsl.pool.registry"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal is for the driver; the registry ends when the pipe closes.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._listen, args=(credentials,), name="sonic-parsl-pool", daemon=True)
        self._reader.start()
        self._send(
            RegistrySpec(
                run_id=self.run_id,
                address=self.address,
                credentials=credentials,
                port_range=self.port_range,
            )
        )
        if not self._wait(lambda: self._ref is not None or self._table.lost is not None, REGISTRY_START_S):
            self.lose(f"the registry did not start within {REGISTRY_START_S:g} s")
        if self._ref is None:
            reason = self._table.lost
            self.close()
            raise PoolError(f"The pool's registry did not start: {reason}.")
        os.environ[POOL_ENV] = str(self.ref_path)
        self.own_calls = set_default_pool(self._ref)

    def join(self, member: object) -> None:
        """Note that `member` needs the pool; starts it."""
        self._members.add(member)
        self.start()

    def leave(self, member: object) -> None:
        """Note that `member` is done with the pool; the last one closes it."""
        self._members.discard(member)
        if not self._members:
            self.close()

    def close(self) -> None:
        """End the registry and remove the pool's files; may be called twice."""
        registry, self._registry = self._registry, None
        if registry is None:
            return
        set_default_pool(None)
        ref, self._ref = self._ref, None
        if ref is not None:
            close_session(ref)
        if os.environ.get(POOL_ENV) == str(self.ref_path):
            del os.environ[POOL_ENV]
        assert registry.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it could not be told
            registry.stdin.close()
        try:
            registry.wait(REGISTRY_STOP_S)
        except subprocess.TimeoutExpired:
            registry.kill()
            registry.wait()
        if self._reader is not None:
            self._reader.join()
        assert registry.stdout is not None
        registry.stdout.close()
        self._remove_files()

    # What it does -------------------------------------------------------------

    def wait_ready(self, servers: int = 1, *, timeout_s: float) -> ServerTable:
        """Wait until at least `servers` servers are ready.

        Raises
        ------
        PoolLostError
            The pool was lost meanwhile, or the time is over.
        """
        ready = self._wait(lambda: len(self._table.ready) >= servers or self._table.lost is not None, timeout_s)
        if self._table.lost is not None:
            raise PoolLostError(f"The pool is lost: {self._table.lost}.")
        if not ready:
            states = [f"{entry.info.id} {entry.state}" for entry in self._table.servers] or ["none joined"]
            raise PoolLostError(
                f"{len(self._table.ready)} of {servers} servers are ready after {timeout_s:g} s: {', '.join(states)}.",
                hint="Raise start-timeout, or look at the batch system's queue.",
            )
        return self._table

    def drain(self, server_id: str, reason: str) -> None:
        """Let a server finish what it has and end."""
        self._send(Drain(server_id=server_id, reason=reason))

    def lose(self, reason: str) -> None:
        """Give the pool up: everything that waits for it fails now."""
        logger.error("The pool is lost: %s", reason)
        self._send(Lose(reason=reason))
        with self._news:
            self._set_lost(reason)
            self._news.notify_all()

    def wait_for(self, condition: Callable[[ServerTable], bool], timeout_s: float) -> bool:
        """Wait until the table fulfils `condition`; return whether it does."""
        return self._wait(lambda: condition(self._table), timeout_s)

    def _remove_files(self) -> None:
        for path in self.run_dir.glob("*.json"):
            path.unlink()
        with contextlib.suppress(OSError):  # others may keep logs beside ours
            self.run_dir.rmdir()

    # The pipe -----------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(condition, timeout_s)

    def _send(self, message: Any) -> None:
        registry = self._registry
        if registry is None or registry.stdin is None:
            return
        try:
            registry.stdin.write(to_line(message))
            registry.stdin.flush()
        except (BrokenPipeError, ValueError):
            logger.warning("The registry is gone; it was not told: %s", type(message).__name__)

    def _listen(self, credentials: Credentials) -> None:
        """Reader thread: take what the registry says until it ends."""
        registry = self._registry
        assert registry is not None
        assert registry.stdout is not None
        for line in registry.stdout:
            message = from_line(line, Listening, ServerTable, Departure)
            with self._news:
                self._take(message, credentials)
                self._news.notify_all()
        with self._news:
            if self._registry is not None:  # nobody closed it
                self._set_lost(f"the registry ended by itself (exit code {registry.wait()})")
                logger.error("The pool is lost: %s", self._table.lost)
            self._news.notify_all()

    def _set_lost(self, reason: str) -> None:
        table = self._table
        self._table = replace(table, generation=table.generation + 1, lost=table.lost or reason)

    def _take(self, message: Listening | ServerTable | Departure, credentials: Credentials) -> None:
        if isinstance(message, Listening):
            self._ref = PoolRef(run_id=self.run_id, registries=(message.address,), credentials=credentials)
            self._ref.write(self.ref_path)
        elif isinstance(message, ServerTable):
            self._table = message
            self._seen.update({entry.info.id: entry for entry in message.servers})
        else:
            self.departures.append(message)
            if message.entry is not None:
                self._seen[message.server_id] = message.entry
            _log(message)


def _log(departure: Departure) -> None:
    level = logging.ERROR if departure.failed else logging.INFO
    logger.log(level, "Server %s (block %s) left: %s", departure.server_id, departure.block_id, departure.reason)
    if departure.stderr:
        logger.log(level, "Last lines of its stderr:\n%s", departure.stderr)
