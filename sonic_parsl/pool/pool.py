"""``ServerPool``: the owner's handle on a pool of servers."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from typing_extensions import Self, override

from sonic_parsl.credentials import Credentials, block_name, client_name, registry_name
from sonic_parsl.errors import ConfigError, PoolError
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.pool.claims import check_one_kind, check_one_version, fallback_of
from sonic_parsl.pool.folder import make_private
from sonic_parsl.pool.process import Event, RegistryProcess
from sonic_parsl.pool.prospects import Prospects
from sonic_parsl.pool.spec import RegistrySpec, seen_of
from sonic_parsl.pool.view import PoolView
from sonic_parsl.poolref import Fallback, PoolRef, StaticServer
from sonic_parsl.ports import PortRange, is_loopback
from sonic_parsl.protocol import (
    BlockEntry,
    Blocks,
    Departure,
    Drain,
    Listening,
    Lose,
    ServerEntry,
    ServerTable,
)
from sonic_parsl.repository import ModelFolder

logger = logging.getLogger(__name__)

Security = Literal["tls", "none"]

REGISTRY_START_S = 30.0
"""Long enough to import gRPC from a cold, shared file system."""
MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0
"""A registry that ends again and again has a reason that starting it once more does not mend."""


class ServerPool(PoolView):
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
    security
        ``tls``: an authority made for this run signs a certificate for each block and one for the workers,
        and registry and servers let in nobody else. ``none``, on the loopback address only: everybody on
        this machine gets in.
    static
        Servers that somebody else runs.
    fallback
        ``cpu``: once the pool is lost, processes that ask it compute ONNX models themselves, with ONNX Runtime on
        one core each, and say so in their records. None: their calls fail.
    mix_numerics
        Whether one model may count in several ways in one run, such as ``fp16`` on servers and ``fp32`` without.

    Attributes
    ----------
    departures
        Servers that left, and why.
    trusted_until
        When the run's certificates expire, in seconds since the epoch; None where there are none.

    Raises
    ------
    ConfigError
        `security` is ``none``, and `address` can be reached from other machines.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port_range: PortRange | None = None,
        run_dir: Path | None = None,
        security: Security = "tls",
        static: Sequence[StaticServer] = (),
        fallback: Literal["cpu"] | None = None,
        mix_numerics: bool = False,
    ) -> None:
        super().__init__()
        self.address = address
        self.port_range = port_range
        self.security = security
        self.static = tuple(static)
        self.fallback = fallback
        self.mix_numerics = mix_numerics
        self.run_id = uuid.uuid4().hex[:12]
        self.run_dir = Path(run_dir or Path(tempfile.gettempdir()) / f"sonic-parsl-{self.run_id}").absolute()
        self.departures: list[Departure] = []
        self.prospects = Prospects()
        self._table = ServerTable(run_id=self.run_id, generation=0)
        self._seen: dict[str, ServerEntry] = {}
        self._blocks: dict[str, tuple[BlockEntry, ...]] = {}
        self._ref: PoolRef | None = None
        self._registry: RegistryProcess | None = None
        self._authority: CertificateAuthority | None = None
        self.trusted_until: float | None = None
        self._dismissed = False
        self._restarts: list[float] = []
        self._news = threading.Condition(threading.RLock())
        self._members: set[object] = set()
        self._claims: dict[str, tuple[ModelFolder, ...]] = {}
        self.check_address(address)

    @override
    def __repr__(self) -> str:
        return f"ServerPool(run_id={self.run_id!r}, address={self.address!r}, servers={len(self._table.servers)})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_address(self, address: str | None) -> None:
        """Refuse to listen at an address that others can reach, where the pool has no security.

        Raises
        ------
        ConfigError
            It is such an address.
        """
        if self.security == "none" and address is not None and not is_loopback(address):
            raise ConfigError(
                f"A pool without security cannot listen at {address}: other machines reach that address.",
                hint="Leave out `security: none`, or use the address 127.0.0.1.",
            )

    # What it knows ------------------------------------------------------------

    @property
    @override
    def table(self) -> ServerTable:
        return self._table

    @property
    @override
    def servers(self) -> tuple[ServerEntry, ...]:
        return tuple(self._seen.values())

    @property
    @override
    def ref(self) -> PoolRef:
        """How workers find the pool.

        Raises
        ------
        PoolError
            The pool was not started.
        """
        if self._ref is None:
            raise PoolError("The pool was not started.", hint="Load a Parsl Config that holds a ServerExecutor.")
        return self._ref

    @property
    @override
    def ref_path(self) -> Path:
        return self.run_dir / "pool.json"

    @override
    def wait_for(self, condition: Callable[[ServerTable], bool], timeout_s: float) -> bool:
        return self._wait(lambda: condition(self._table), timeout_s)

    # Its life -----------------------------------------------------------------

    @override
    def start(self) -> None:
        """Start the registry; does nothing when it runs.

        Raises
        ------
        ConfigError
            Others can write to the pool's folder.
        PoolError
            The registry does not come up.
        """
        if self._registry is not None:
            return
        self._table = ServerTable(run_id=self.run_id, generation=0)  # what an earlier registry said is no longer true
        self._blocks, self.departures = {}, []
        make_private(self.run_dir)
        self._authority = CertificateAuthority(self.run_id) if self.security == "tls" else None
        self.trusted_until = None if self._authority is None else self._authority.valid_until
        with self._news:
            self._launch(port=None, table=None)
        if not self._wait(lambda: self._ref is not None or self._table.lost is not None, REGISTRY_START_S):
            self.lose(f"the registry did not start within {REGISTRY_START_S:g} s")
        if self._ref is None:
            self.close()
            raise PoolError(f"The pool's registry did not start: {self._table.lost}.")
        try:
            self._ref.write(self.ref_path)
        except PoolError:
            self.close()
            raise
        self._tell_this_process()

    def join(self, member: object) -> None:
        """Note that `member` needs the pool; starts it."""
        self._members.add(member)
        self.start()

    def leave(self, member: object) -> None:
        """Note that `member` is done with the pool; the last one closes it."""
        self._members.discard(member)
        if not self._members:
            self.close()

    @override
    def close(self) -> None:
        """End the registry and remove the pool's files; may be called twice."""
        with self._news:
            registry, self._registry = self._registry, None
        if registry is None:
            return
        ref, self._ref = self._ref, None
        self._untell_this_process(ref)
        try:
            for path in self.run_dir.glob("*.json"):
                path.unlink()
        finally:
            registry.stop()  # it would see to those that it finds
            self._authority = None
        with contextlib.suppress(OSError):  # others may keep logs beside ours
            self.run_dir.rmdir()

    # What it does -------------------------------------------------------------

    def claim(self, group: str, models: Sequence[ModelFolder]) -> None:
        """Note what a group is to serve.

        Raises
        ------
        ConfigError
            A model of it has another newest version than elsewhere in this pool, or counts in another way and the
            pool may not mix them.
        """
        claims = {**self._claims, group: tuple(models)}
        check_one_version(claims)
        if not self.mix_numerics:
            check_one_kind(claims, fallback=self.fallback is not None)
        self._claims = claims
        if self._ref is not None and self.fallback is not None:
            self._ref = replace(self._ref, fallback=self._fallback())
            self._ref.write(self.ref_path)

    def admit(self, group: str, block_id: str) -> PoolRef:
        """Return how a new block's agents find the pool, with a certificate in the block's name."""
        return replace(
            self.ref, credentials=self._credentials(block_name(self.run_id, group, block_id)), static=(), fallback=None
        )

    def drain(self, server_id: str, reason: str) -> None:
        """Let a server finish what it has and end."""
        self._send(Drain(server_id=server_id, reason=reason))

    @override
    def give_up(self, reason: str) -> None:
        self.lose(reason.rstrip("."))

    def tell_blocks(self, group: str, entries: tuple[BlockEntry, ...]) -> None:
        """Let others see which blocks of a group have no server in the table, in place of what was told before."""
        with self._news:
            if self._blocks.get(group, ()) != entries:
                self._blocks[group] = entries
                self._send(Blocks(group, entries))

    def lose(self, reason: str) -> None:
        """Give the pool up: everything that waits for it fails now."""
        self._send(Lose(reason=reason))
        with self._news:
            self._set_lost(reason)

    def dismiss(self, reason: str) -> None:
        """Tell everyone else that the pool is about to end, and why; to its owner it is not lost."""
        self._dismissed = True
        self._send(Lose(reason=reason))

    def _fallback(self) -> Fallback | None:
        if self.fallback is None:
            return None
        starts_servers = bool(self._claims.keys() - {one.group for one in self.static})
        return fallback_of(self._claims, mix_numerics=self.mix_numerics, patient=starts_servers)

    @override
    def _last_failure(self) -> str:
        failed = [one for one in self.departures if one.failed and not one.block_id]  # blocks have `failures`
        return f" {failed[-1].server_id} failed: {failed[-1].reason}." if failed else ""

    def _credentials(self, name: str) -> Credentials | None:
        return None if self._authority is None else self._authority.issue(name)

    def _send(self, message: Drain | Blocks | Lose) -> None:
        registry = self._registry
        if registry is not None:
            registry.send(message)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(condition, timeout_s)

    # The registry -------------------------------------------------------------

    def _launch(self, *, port: int | None, table: ServerTable | None) -> None:
        spec = RegistrySpec(
            run_id=self.run_id,
            address=self.address,
            credentials=self._credentials(registry_name(self.run_id)),
            port_range=self.port_range,
            port=port,
            static=self.static,
            table=table,
            seen=seen_of(self.servers),
            run_dir=self.run_dir,
        )
        self._registry = RegistryProcess(spec, self._hear, self._ended)

    def _hear(self, message: Event) -> None:
        with self._news:
            if isinstance(message, Listening):
                self._listening(message)
            elif isinstance(message, ServerTable):
                self._take_table(message)
            else:
                self._take_departure(message)
            self._news.notify_all()

    def _listening(self, message: Listening) -> None:
        if self._ref is None:
            credentials = self._credentials(client_name(self.run_id))
            self._ref = PoolRef(self.run_id, (message.address,), credentials, self.static, self._fallback())
        elif self._table.lost is not None:
            self._send(Lose(reason=self._table.lost))

    def _take_table(self, table: ServerTable) -> None:
        table = replace(table, lost=None) if self._dismissed else table
        lost = self._table.lost
        self._table = replace(table, lost=lost) if lost else table
        self._seen.update({entry.info.id: entry for entry in table.servers})
        if table.lost and not lost:
            self._say_lost(table.lost)

    def _take_departure(self, departure: Departure) -> None:
        self.departures.append(departure)
        if departure.entry is not None:
            self._seen[departure.server_id] = departure.entry
        level = logging.WARNING if departure.failed else logging.INFO
        where = f"block {departure.block_id}" if departure.block_id else "not of this run"
        logger.log(level, "Server %s (%s) left: %s", departure.server_id, where, departure.reason)
        if departure.stderr:
            logger.info("Last lines of its stderr:\n%s", departure.stderr)  # a lost pool's error says them

    def _ended(self, exit_code: int) -> None:
        """Start the registry again where it was: servers and clients go on knocking there for a lease."""
        with self._news:
            ended = self._registry
            if ended is None:
                return  # the pool was closed meanwhile
            ended.stop()
            now = time.monotonic()
            self._restarts = [*(at for at in self._restarts if now - at < RESTART_WINDOW_S), now]
            if self._ref is None or self._table.lost is not None or len(self._restarts) > MAX_RESTARTS:
                self._set_lost(f"the registry ended by itself (exit code {exit_code})")
                return
            logger.warning("The registry ended (exit code %d); it is started again.", exit_code)
            port = int(self._ref.registries[0].rpartition(":")[2])
            # What it was told last, it may not have read.
            blocks = tuple(entry for group in self._blocks.values() for entry in group)
            self._launch(port=port, table=replace(self._table, blocks=blocks))

    def _set_lost(self, reason: str) -> None:
        """Note why the pool is lost, and say so once; the first reason stays."""
        if self._table.lost is None:
            self._say_lost(reason)
            self._table = replace(self._table, generation=self._table.generation + 1, lost=reason)
        self._news.notify_all()

    def _say_lost(self, reason: str) -> None:
        # No error in the log: everything that waits for the pool raises one, which says the same.
        goes_on = "" if self.fallback is None else " Whoever asks it goes on with ONNX Runtime."
        logger.warning("The pool is lost: %s%s", reason.partition("\n")[0], goes_on)
