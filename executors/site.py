"""A site that is up: Parsl with its workers and a pool with its servers, both down at the end."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import parsl
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
from typing_extensions import Self, override

from sonic_parsl import repository
from sonic_parsl import site as site_file
from sonic_parsl.errors import ConfigError, DataError, PoolLostError, SonicError
from sonic_parsl.executors.batch.carried import equip_workers
from sonic_parsl.executors.batch.providers import make_provider
from sonic_parsl.executors.checks.address_check import warn_of_loopback
from sonic_parsl.executors.checks.port_check import check_ports
from sonic_parsl.executors.chunks.checkpointer import Checkpointer, model_digests
from sonic_parsl.executors.chunks.coffea_executor import CoffeaExecutor
from sonic_parsl.executors.keeper import Keeper
from sonic_parsl.executors.run_logs import close_log, log_to, parsl_log_handlers
from sonic_parsl.executors.same_models import compare_models
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.executors.workers.worker_executor import WorkerExecutor, workers_of
from sonic_parsl.folders import STATE, make_folder
from sonic_parsl.pool import named
from sonic_parsl.pool.attached import AttachedPool
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.pool.scaler import LAST_WORDS_S
from sonic_parsl.poolref import StaticServer
from sonic_parsl.ports import is_loopback
from sonic_parsl.protocol import ServerTable
from sonic_parsl.report import Report, RunLog
from sonic_parsl.site import ServerGroup, SiteFile

STRATEGY_PERIOD_S = 1
"""How often the pool looks at its servers; the batch system is asked less often, as its provider says."""
PACKAGED = site_file.packaged_models()
RETRIES = 2
LOST_COST = 0.15
"""Of those, what a lost worker costs: a chunk survives 13. An opportunistic pool takes workers away again and again, which
says nothing of the chunk; there is a bound still, for a chunk may end its worker itself, as one too large for memory does."""
OTHER_RUN_DIR = f"Name another one by run-dir under driver in the site file. Without it: {STATE}"
MORE_SERVERS_S = 10.0
"""Once a server is ready, the others of the minimum are waited for so long before work starts."""


class Site:
    """Parsl and a pool, up. Use it in a ``with`` block, or call :meth:`close`.

    Attributes
    ----------
    name
        Name of the site file.
    settings
        What is in it.
    pool
        The pool of servers: its own, or one that it was attached to and that goes on when it ends.
    run_dir
        Folder of this run's files and logs; removed at the end, unless the pool was lost.
    dfk
        Parsl's DataFlowKernel.
    """

    dfk: DataFlowKernel

    def __init__(
        self,
        name: str,
        settings: SiteFile,
        *,
        models: Path | None = None,
        run_dir: Path | None = None,
        attach_to: Path | None = None,
        has_workers: bool = True,
        inputs: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.settings = settings
        self._asked_models = models
        self._models = models or PACKAGED
        self._has_workers = has_workers
        self._inputs = tuple(inputs)
        self._log = RunLog()
        self._static: tuple[StaticServer, ...] = ()
        self.run_dir = (run_dir or runs_of(settings) / uuid.uuid4().hex[:12]).absolute()
        self.pool = _own_pool(settings, self.run_dir) if attach_to is None else AttachedPool(attach_to)
        self._executors: tuple[WorkerExecutor | ServerExecutor, ...] = ()
        self._keeper = Keeper(start=self._start, stop=self._stop)

    @override
    def __repr__(self) -> str:
        return f"Site({self.name!r}, run_id={self.pool.run_id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Self:
        """Load Parsl and start the pool.

        Raises
        ------
        ConfigError, RepositoryError, RuntimeMissingError
            Something is wrong with the site; nothing is left running.
        ModelMismatchError
            A pool that lasts serves other models than those that were named.
        """
        _check_parsl_is_free()
        atexit.register(self.close)
        try:
            if isinstance(self.pool, AttachedPool) and self._asked_models is not None:
                compare_models(self._asked_models, self.pool, self.wait_ready)
            self._keeper.open()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End workers and servers and wait for them to be gone; may be called twice."""
        self._keeper.close()
        if isinstance(self.pool, AttachedPool):
            self.pool.close()  # it may be open though nothing else was started
        atexit.unregister(self.close)

    def coffea_executor(self, **fields: Any) -> CoffeaExecutor:
        """Return an executor for ``coffea.processor.Runner``; `fields` are those of coffea's ParslExecutor."""
        return CoffeaExecutor(pool_ref=self.pool.ref, log=self._log, **fields)

    def checkpointer(self, folder: str | Path, processor: Any, **options: bool) -> Checkpointer:
        """Return a checkpointer for ``coffea.processor.Runner``, of `processor` with this pool's models.

        Waits until a server is ready, since its models are part of what checkpoints are known by.

        Raises
        ------
        ConfigError
            A model has no digest.
        """
        models = model_digests(self.wait_ready(), self.pool.ref.fallback)
        return Checkpointer(folder, processor=processor, models=models, **options)

    def wait_ready(self, timeout_s: float | None = None) -> ServerTable:
        """Wait until a server is ready, and a little for the rest of the minimum.

        Parameters
        ----------
        timeout_s
            By default the longest ``start-timeout`` of the server groups, once in the queue and once for the
            start, and a little more, in seconds.

        Raises
        ------
        PoolLostError
            No server became ready. With ``fallback: cpu`` the pool is lost then by default, and it is no error.
        """
        groups = self.settings.servers.values()
        longest_s = 2 * max(group.start_timeout for group in groups) + LAST_WORDS_S
        try:
            self.pool.wait_ready(timeout_s=timeout_s or longest_s)
        except PoolLostError as error:
            if timeout_s or self.pool.ref.fallback is None:
                raise
            self.pool.give_up(error.message)
        minimum = sum(len(group.static) or group.count.min * (group.nodes or 1) for group in groups)
        if isinstance(self.pool, AttachedPool):
            minimum = 1  # how many servers there are is for the pool's owner to say
        self.pool.wait_for(lambda table: len(table.ready) >= minimum or table.lost is not None, MORE_SERVERS_S)
        return self.pool.table

    def report(self) -> Report:
        """Return what happened so far, with this process's own calls."""
        plain = [one for one in self._static if not one.secure and not is_loopback(one.host)]
        notes = [f"The way to server {one.id} at {one.address} is not encrypted." for one in plain]
        return self._log.report(self.pool.servers, self.pool.own_calls.records(), notes)

    # In the keeper's thread ---------------------------------------------------

    def _start(self) -> None:
        make_folder(self.run_dir, hint=OTHER_RUN_DIR, mode=0o700, exist_ok=False)
        self._log_handler = log_to(self.run_dir / "sonic-parsl.log")
        put_own_bin_on_path()
        check_ports(self.settings)
        self._executors = (*self._worker_executors(), *self._server_executors())
        config = self._config()
        warn_of_loopback(self.settings)
        for executor in self._executors:
            if isinstance(executor, ServerExecutor):
                executor.check()  # a Parsl that fails half-way in its start cannot be cleaned up
        if isinstance(self.pool, ServerPool) and self.pool.fallback is not None:
            self._claim_static(self.pool)
        if isinstance(self.pool, ServerPool):
            self.pool.join(self)  # also where no group has jobs
        else:
            self.pool.start()
        for workers in self._executors:
            if isinstance(workers, WorkerExecutor) and not self.settings.shared_filesystem:
                ref, path = self.pool.ref, self.pool.ref_path
                equip_workers(workers, self.run_dir, pool=path, inputs=self._inputs, fallback=ref.fallback)
        self._static = self.pool.ref.static  # the report is asked for when the pool has ended, too
        self.dfk = parsl.load(config)

    def _stop(self) -> None:
        """Clean up, each step whatever becomes of the others; keep the logs of a run whose pool was lost."""
        lost = self.pool.table.lost
        with ExitStack() as steps:  # from the last to the first
            if hasattr(self, "_log_handler"):
                if lost is None:
                    steps.callback(shutil.rmtree, self.run_dir)
                steps.callback(close_log, self._log_handler, "sonic_parsl")
            for executor in self._executors:  # also of those that Parsl does not shut down, since something failed
                steps.callback(executor.undertaker.close)
            steps.callback(self.pool.close)
            for handler in parsl_log_handlers(self.run_dir):
                steps.callback(close_log, handler, "parsl")
            if hasattr(self, "dfk"):
                steps.callback(self.dfk.cleanup)

    def _config(self) -> Config:
        return Config(
            executors=self._executors,
            run_dir=str(self.run_dir / "parsl"),
            strategy_period=STRATEGY_PERIOD_S,
            retries=RETRIES,
            retry_handler=_retry_cost,
            usage_tracking=0,
        )

    def _worker_executors(self) -> list[WorkerExecutor]:
        settings = self.settings
        if not self._has_workers:
            return []
        return [workers_of(settings.workers, settings.driver, self.pool)]

    def _server_executors(self) -> list[ServerExecutor]:
        pool = self.pool
        if not isinstance(pool, ServerPool):
            return []
        groups = self.settings.servers.items()
        return [self._server_executor(label, group, pool) for label, group in groups if not group.static]

    def _claim_static(self, pool: ServerPool) -> None:
        """Let workers compute what servers of others have, where the group's ``models`` has it too."""
        for label, group in self.settings.servers.items():
            root = group.repository(self._models)
            named = dict.fromkeys(name for endpoint in group.static for name in endpoint.models)
            if here := [name for name in named if (root / name).is_dir()]:
                pool.claim(label, repository.read(root, here))

    def _server_executor(self, label: str, group: ServerGroup, pool: ServerPool) -> ServerExecutor:
        return ServerExecutor(
            label=label,
            pool=pool,
            provider=make_provider(group, count=group.count),
            models=group.repository(self._models),
            serve=group.serve,
            device=self.settings.device(group.device),
            min_servers=group.count.min,
            max_servers=group.count.max,
            runtime=group.runtime,
            image=group.image,
            binary=group.binary,
            address=group.address,
            port_range=self.settings.driver.port_range,
            lease_s=group.lease,
            start_timeout_s=group.start_timeout,
            queue_ms=self.settings.allocation.queue_ms,
            idle_s=self.settings.allocation.idle,
            walltime_s=group.walltime,
            drain_before_s=group.drain_before,
            shared_filesystem=self.settings.shared_filesystem,
            python=sys.executable if self.settings.shared_filesystem else "python3",
        )


def runs_of(settings: SiteFile) -> Path:
    """Return the folder of a site's runs."""
    return settings.driver.run_dir or named.runs_root()


def _own_pool(settings: SiteFile, run_dir: Path) -> ServerPool:
    return ServerPool(
        address=settings.driver.ipv4,
        port_range=settings.driver.port_range,
        run_dir=run_dir,
        security=settings.security,
        static=settings.static_servers(),
        fallback=settings.fallback,
        mix_numerics=settings.mix_numerics,
    )


def load_site(
    name: str | Path, *, models: str | Path | None = None, pool: str | None = None, inputs: Iterable[str] = ()
) -> Site:
    """Bring a site up: Parsl's workers and a pool of servers.

    It returns when both have been asked for. Calls of a model wait for the first server that is ready;
    :meth:`Site.wait_ready` waits for it, too.

    Parameters
    ----------
    name
        Path of a site file, or the name of one of the user's or of a packaged one.
    models
        Model repository to serve where the site file says ``packaged``. With those of a pool that is there
        already they are compared, by digest and tags, once it has a server.
    pool
        Name of a pool that ``sonic-parsl pool start`` has started: the workers use it, and it goes on when
        this site is closed. By default the site brings up the servers of its own file.
    inputs
        Names of the input files as the fileset has them. HTCondor brings those of this machine to the workers
        where the site has no shared file system; elsewhere this is of no use.

    Returns
    -------
    Site
        To be closed: use it in a ``with`` block, or call ``close()``.

    Raises
    ------
    ConfigError, RepositoryError, RuntimeMissingError
        Something is wrong with the site; nothing is left running.
    ModelMismatchError
        The pool serves other models than those of `models`.

    Examples
    --------
    >>> with sonic_parsl.load_site("local") as site:  # doctest: +SKIP
    ...     runner = processor.Runner(executor=site.coffea_executor(), schema=NanoAODSchema)
    ...     out = runner(fileset, Tagging())
    """
    path = site_file.find(str(name))
    attach_to = None if pool is None else named.find(pool).ref_path
    settings = site_file.read(path)
    return Site(path.stem, settings, models=_path(models), attach_to=attach_to, inputs=inputs).open()


def open_pool(name: str, site: str | Path, *, models: str | Path | None = None) -> Site:
    """Bring up the servers of a site, and no workers, for runs that attach to them.

    The caller has to own the pool's name meanwhile: see :func:`sonic_parsl.pool.named.owning`.
    """
    path = site_file.find(str(site))
    folder = named.run_dir(name)
    shutil.rmtree(folder, ignore_errors=True)  # what an owner that was killed has left
    settings = site_file.read(path)
    return Site(path.stem, settings, models=_path(models), run_dir=folder, has_workers=False).open()


def _path(models: str | Path | None) -> Path | None:
    return None if models is None else Path(models)


def _check_parsl_is_free() -> None:
    try:
        parsl.dfk()
    except parsl.errors.NoDataFlowKernelError:
        return
    raise ConfigError(
        "A Parsl DataFlowKernel is loaded already.",
        hint="Close the site (or parsl.clear()) first, or add a ServerExecutor to it with dfk.add_executors([...]).",
    )


def _retry_cost(error: Exception, _: Any) -> float:
    """Parsl tries a chunk again when its worker was lost or could not read; other errors of ours were tried enough."""
    if isinstance(error, (WorkerLost, ManagerLost)):
        return LOST_COST
    return 100.0 if isinstance(error, SonicError) and not isinstance(error, DataError) else 1.0


def put_own_bin_on_path() -> None:
    """Let Parsl find its scripts where the environment was not activated."""
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != own:
        os.environ["PATH"] = os.pathsep.join([own, path])
