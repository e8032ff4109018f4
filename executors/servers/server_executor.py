"""``ServerExecutor``: a Parsl executor whose blocks are inference servers."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import parsl
from parsl.jobs.states import JobStatus
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider
from parsl.utils import RepresentationMixin
from typing_extensions import override

from sonic_parsl.devices import BUILT_IN, NUMBERED_BY, Device
from sonic_parsl.errors import ConfigError, PoolLostError, RuntimeMissingError
from sonic_parsl.executors.batch.carried import can_carry, equip_servers, keep_scripts_private
from sonic_parsl.executors.batch.dialects import watch_jobs
from sonic_parsl.executors.batch.providers import last_words, note_beginning, walltime_of
from sonic_parsl.executors.batch.queue_word import why_waiting
from sonic_parsl.executors.batch.undertaker import Undertaker
from sonic_parsl.executors.servers.block_book import BlockBook
from sonic_parsl.executors.servers.stray_task import submit_to_one
from sonic_parsl.executors.steady_clock import SteadilyPolled
from sonic_parsl.pool.failures import tell
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.pool.scaler import Policy, decide, late_starts, too_late
from sonic_parsl.poolref import POOL_ENV
from sonic_parsl.ports import PortRange
from sonic_parsl.protocol import LEASE_S
from sonic_parsl.repository import require
from sonic_parsl.server.runtimes import runtime as find_runtime
from sonic_parsl.server.spec import Luggage, ServerSpec

logger = logging.getLogger(__name__)

LABEL = re.compile(r"[A-Za-z0-9_-]{1,64}")
SHUTDOWN_SLACK_S = 15.0
"""Beyond the drain time: for Triton to stop, and for the agent to say that it has."""


class ServerExecutor(SteadilyPolled, RepresentationMixin):  # type: ignore[misc]
    """A server group: Parsl starts its blocks through any provider, the pool says how many.

    Whatever ``strategy`` the Parsl configuration names, the group behaves the same: it holds at least
    `min_servers`, replaces what dies, grows while requests queue, and gives up after `max_failed_starts`
    failures in a row. Parsl's ``init_blocks``, ``min_blocks`` and ``max_blocks`` of the provider are not used.

    Parameters
    ----------
    label
        Name of the group.
    pool
        The pool its servers join.
    provider
        Any Parsl provider; each of its blocks is one server, or one on each of its nodes where its launcher does that.
    models
        Folder of a Triton model repository, seen by the server nodes, or taken along by jobs of HTCondor.
    serve
        Names of the models to serve; all of the repository by default.
    device
        A kind of device.
    min_servers, max_servers
        How many blocks to hold at least and at most; `max_servers` is `min_servers` by default. A block of several
        nodes that loses a server goes on with the others.
    runtime
        ``wheel``, ``host`` or ``apptainer``.
    image, binary
        The image of ``apptainer``, the binary of ``host``.
    address, port_range
        Where the servers listen; by default, on the node's address by which it reaches the registry.
    start_timeout_s
        A server must be ready so many seconds after its job started.
    lease_s
        A server of which nothing is heard for so many seconds is replaced.
    max_failed_starts
        The pool is lost after so many failed starts in a row.
    queue_ms, idle_s
        The group grows while requests wait longer than this on average, and shrinks after so long without any.
    drain_s
        A server that ends gives what is in flight so many seconds.
    walltime_s
        Length of the job, where the batch system does not tell it on the node; the provider's by default.
    drain_before_s
        So long before its walltime ends, a server takes no new requests; its replacement is asked for early
        enough to be ready by then, as far as the group's own starts tell.
    shared_filesystem
        Whether the server nodes see the pool's folder; otherwise each job carries what it needs of it.
    python
        The interpreter that runs the agent on the server nodes.
    """

    def __init__(  # noqa: PLR0913 - Parsl's convention: every setting an argument and an attribute
        self,
        label: str,
        *,
        pool: ServerPool,
        provider: ExecutionProvider,
        models: str | Path,
        serve: Sequence[str] | None = None,
        device: Device = BUILT_IN["cpu"],
        min_servers: int = 1,
        max_servers: int | None = None,
        runtime: str = "wheel",
        image: str | None = None,
        binary: str | None = None,
        address: str | None = None,
        port_range: PortRange | None = None,
        lease_s: float = LEASE_S,
        start_timeout_s: float = 300.0,
        max_failed_starts: int = 3,
        queue_ms: float = 50.0,
        idle_s: float = 120.0,
        drain_s: float = 20.0,
        walltime_s: float | None = None,
        drain_before_s: float = 120.0,
        shared_filesystem: bool = True,
        python: str = sys.executable,
    ) -> None:
        super().__init__(provider=provider, block_error_handler=False)
        self.label = label
        self.pool = pool
        self.models = models
        self.serve = serve
        self.device = device
        self.min_servers = min_servers
        self.max_servers = max_servers if max_servers is not None else min_servers
        self.runtime = runtime
        self.image = image
        self.binary = binary
        self.address = address
        self.port_range = port_range
        self.lease_s = lease_s
        self.start_timeout_s = start_timeout_s
        self.max_failed_starts = max_failed_starts
        self.queue_ms = queue_ms
        self.idle_s = idle_s
        self.drain_s = drain_s
        self.walltime_s = walltime_s if walltime_s is not None else walltime_of(provider)
        self.drain_before_s = drain_before_s
        self.shared_filesystem = shared_filesystem
        self.python = python
        if not 1 <= self.min_servers <= self.max_servers:
            raise ConfigError(
                f"Group {label} asks for at least {self.min_servers} and at most {self.max_servers} servers.",
                hint="Set 1 <= min_servers <= max_servers: without a server nobody could say that one is needed.",
            )
        if not LABEL.fullmatch(label):
            raise ConfigError(
                f"A group of servers cannot be named {label!r}: its name goes into certificates.",
                hint="Use letters, digits, - and _.",
            )
        pool.check_address(address)
        self._policy = Policy(
            min_servers=self.min_servers,
            max_servers=self.max_servers,
            start_timeout_s=start_timeout_s,
            max_failed_starts=max_failed_starts,
            queue_ms=queue_ms,
            idle_s=idle_s,
            drain_before_s=drain_before_s,
        )
        self.undertaker = Undertaker()
        self._book = BlockBook(label, lambda block_id: last_words(provider, label, block_id))
        self._lock = threading.Lock()
        self._closing = False

    def check(self) -> None:
        """Check models and settings.

        Raises
        ------
        RepositoryError, RuntimeMissingError, ConfigError
            They are wrong.
        """
        self._spec()

    # Parsl starts and stops it ------------------------------------------------

    @override
    def start(self) -> None:
        """Check the models, start the pool, submit the first blocks.

        Raises
        ------
        RepositoryError, ConfigError
            The models or the settings are wrong; nothing was submitted.
        """
        super().start()
        spec = self._spec()
        watch_jobs(self.provider, self.undertaker)
        self._models = frozenset(spec.models)
        self.pool.prospects.tell(self.label, self._models)
        note_beginning(self.provider)
        if not self.shared_filesystem:
            keep_scripts_private(self.provider)
        self.pool.join(self)
        try:
            if not self.shared_filesystem and can_carry(self.provider):
                spec = equip_servers(self.provider, spec, self._models_path)
            spec.write(self._spec_path)
            self._reconcile()
        except BaseException:
            self.shutdown()
            raise

    @override
    def shutdown(self) -> None:
        """Cancel every block, wait for the agents to have left, leave the pool."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        with ExitStack() as steps:  # from the last to the first, each whatever becomes of the others
            steps.callback(self.undertaker.close)
            steps.callback(super().shutdown)
            steps.callback(self.pool.leave, self)
            steps.callback(shutil.rmtree, self._models_path, ignore_errors=True)
            with self._lock:
                self._cancel([block_id for block_id in self.blocks_to_job_id if not self._book.has_ended(block_id)])
            self.pool.wait_for(
                lambda table: not any(entry.info.group == self.label for entry in table.servers),
                self.drain_s + SHUTDOWN_SLACK_S,
            )

    # Parsl polls it -----------------------------------------------------------

    @override
    def handle_errors(self, status: dict[str, JobStatus]) -> None:
        """Look at the blocks and act: Parsl calls this after every poll, under every strategy."""
        with self._lock:
            if self._closing or self.bad_state_is_set:
                return
            self._book.hear_provider(status, now=time.monotonic())
            if self.pool.table.lost is None:
                self._reconcile()
            else:  # workers may go on for long; jobs of servers would only wait for nothing
                self._cancel([block.id for block in self._book.blocks if not (block.job_ended or block.cancelled)])

    @override
    def outstanding(self) -> int:
        """Return the present slots, so that Parsl's strategies see nothing to scale."""
        return sum(not status.terminal for status in self.status_facade.values()) * self._nodes_per_block

    @property
    @override
    def workers_per_node(self) -> int:
        """One server a node."""
        return 1

    @override
    def scale_out_facade(self, n: int) -> list[str]:
        """Do nothing: the pool decides, not Parsl's strategy."""
        return []

    @override
    def scale_in_facade(self, n: int, max_idletime: float | None = None) -> list[str]:
        """Do nothing: the pool decides, and :meth:`shutdown` cancels what is left."""
        return []

    # A task that lands here ---------------------------------------------------

    @override
    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Run a task on an executor that has workers, and return a future of our own.

        Parsl sends an app without ``executors=`` to any executor of the configuration, this one included.

        Raises
        ------
        ConfigError
            There is no executor with workers.
        """
        others = [executor for executor in parsl.dfk().executors.values() if not isinstance(executor, ServerExecutor)]
        return submit_to_one(others, self.label, func, resource_specification, *args, **kwargs)

    # Blocks -------------------------------------------------------------------

    @property
    def _nodes_per_block(self) -> int:
        return int(getattr(self.provider, "nodes_per_block", 1))

    @property
    def _spec_path(self) -> Path:
        return self.pool.run_dir / f"{self.label}.json"

    @property
    def _models_path(self) -> Path:
        return self.pool.run_dir / f"{self.label}-models"

    def _spec(self) -> ServerSpec:
        """Check and describe what the servers of this group serve."""
        gpu = self.device.is_gpu
        runtime = find_runtime(self.runtime, image=self.image, binary=self.binary, gpu=gpu)
        if isinstance(self.provider, LocalProvider) and not self.provider.worker_init:  # the node is this machine
            for problem in runtime.problems():
                raise RuntimeMissingError(problem)
        root = Path(self.models).absolute()
        # Without a shared file system, what is installed here says nothing of the nodes.
        folders = require(root, self.serve, backends=runtime.backends() if self.shared_filesystem else None)
        self.pool.claim(self.label, folders)
        return ServerSpec(
            group=self.label,
            kind=self.device.kind,
            fidelity=self.device.fidelity,
            gpu=gpu,
            numbered_by=NUMBERED_BY[self.device.family],
            repository=root,
            models=tuple(folder.name for folder in folders),
            runtime=self.runtime,
            image=self.image,
            binary=self.binary,
            address=self.address,
            port_range=self.port_range,
            lease_s=self.lease_s,
            start_timeout_s=self.start_timeout_s,
            drain_s=self.drain_s,
            walltime_s=self.walltime_s,
            drain_before_s=self.drain_before_s,
            digests={folder.name: folder.artifact_digest for folder in folders},
        )

    @override
    def _get_launch_command(self, block_id: str) -> str:
        # One line without a dollar sign: some launchers expand it once, on the wrong host.
        agent = [self.python, "-m", "sonic_parsl.server.agent", "--block", block_id]
        ref = self.pool.admit(self.label, block_id)
        if not self.shared_filesystem:
            # By standard input, for arguments can be seen by everybody on the node; echo is the shell's own.
            return f"echo {Luggage(ServerSpec.read(self._spec_path), ref).pack()} | {shlex.join(agent)}"
        path = self.pool.run_dir / f"{self.label}-block-{block_id}.json"
        ref.write(path)
        return f"env {POOL_ENV}={shlex.quote(str(path))} {shlex.join([*agent, '--spec', str(self._spec_path)])}"

    def _reconcile(self) -> None:
        """Bring the blocks to what the scaler wants."""
        now = time.monotonic()
        self._book.hear_registry(self.pool.table, self.pool.departures, now=now)
        elsewhere = self.pool.prospects.others_serve(self.label, self._models, self.pool.table)
        for block in late_starts(self._book.blocks, self._policy, now):
            self._book.fail(block.id, too_late(self._policy))
        demand = replace(self._book.demand(now), served_elsewhere=elsewhere)
        decision = decide(self._book.blocks, self._policy, demand, now)
        self.pool.prospects.tell(self.label, frozenset() if decision.hopeless else self._models)
        for block_id, reason in decision.cancel:
            logger.warning("Cancelling block %s of %s: %s", block_id, self.label, reason)
        self._cancel([block_id for block_id, _ in decision.cancel])
        self.pool.failures[self.label] = [(one.id, one.failure) for one in self._book.blocks if one.failure]
        for block_id in decision.drain:
            self._drain(block_id)
        if decision.lose is not None:
            self._give_up(decision.lose + self._why_waiting(decision.waiting))
        elif decision.start:
            self._start_blocks(decision.start)
            for block_id in decision.replaced:
                self._book.replaced(block_id)
        self.pool.tell_blocks(self.label, self._book.without_servers(self.blocks_to_job_id))

    def _give_up(self, reason: str) -> None:
        if self.pool.fallback is None:
            self.set_bad_state_and_fail_all(PoolLostError(f"The pool is lost: {reason}"))
        self.pool.lose(reason)

    def _why_waiting(self, block_ids: Sequence[str]) -> str:
        """Return what the batch system says of jobs that it does not start, to append to a sentence."""
        if not block_ids:
            return ""
        said = [(block_id, why_waiting(self.provider, self.blocks_to_job_id[block_id])) for block_id in block_ids]
        return f". Raise start-timeout, or mend what it says of the jobs of {self.label}:\n{tell(said)}"

    def _start_blocks(self, count: int) -> None:
        before = set(self._status)
        super().scale_out_facade(count)
        for block_id in sorted(set(self._status) - before, key=int):
            self._book.submitted(block_id, now=time.monotonic())

    def _drain(self, block_id: str) -> None:
        servers = self._book.servers_of(block_id, self.pool.table)
        for server_id in servers:
            self.pool.drain(server_id, "the group has more servers than it needs")
        if not servers:
            self._cancel([block_id])

    def _cancel(self, block_ids: Sequence[str]) -> None:
        job_ids = [self.blocks_to_job_id[block_id] for block_id in block_ids if block_id in self.blocks_to_job_id]
        if job_ids:
            self.provider.cancel(job_ids)
        for block_id in block_ids:
            self._book.cancelled(block_id)
