"""A site that is up: Parsl with its workers and a pool with its servers, both down at the end."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parsl
import platformdirs
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from typing_extensions import Self, override

from sonic_parsl import site as site_file
from sonic_parsl.errors import ConfigError, SonicError
from sonic_parsl.executors.coffea_executor import CoffeaExecutor
from sonic_parsl.executors.providers import make_provider
from sonic_parsl.executors.server_executor import ServerExecutor
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.protocol import ServerTable
from sonic_parsl.report import Report, RunLog
from sonic_parsl.server.leash import leashed
from sonic_parsl.site import PACKAGED_MODELS, ServerGroup, SiteFile

logger = logging.getLogger(__name__)

WORKERS = "workers"
HEARTBEAT_PERIOD_S, HEARTBEAT_THRESHOLD_S = 5, 30
"""Workers whose driver is gone end after the threshold; Parsl's own 120 s is long for a shared queue."""
STRATEGY_PERIOD_S = 1
"""How often the pool looks at its servers; the batch system is asked less often, as its provider says."""
OWN_TMPDIR = """\
export TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/sonic-parsl-XXXXXX")
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 143' TERM"""
"""Parsl's worker pools leave a folder with a socket where they are ended: it goes with the job's script."""
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
        The pool of servers.
    dfk
        Parsl's DataFlowKernel.
    """

    dfk: DataFlowKernel

    def __init__(self, name: str, settings: SiteFile, *, models: Path) -> None:
        self.name = name
        self.settings = settings
        self._models = models
        self._log = RunLog()
        driver = settings.driver
        root = driver.run_dir or platformdirs.user_state_path("sonic-parsl") / "runs"
        self.pool = ServerPool(address=driver.address, port_range=driver.port_range)
        self.pool.run_dir = (root / self.pool.run_id).absolute()
        self._keeper = Keeper(start=self._start, stop=self._stop)

    @override
    def __repr__(self) -> str:
        return f"Site({self.name!r}, run_id={self.pool.run_id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def run_dir(self) -> Path:
        """Folder of this run's files and logs; removed at the end, unless the pool was lost."""
        return self.pool.run_dir

    def open(self) -> Self:
        """Load Parsl and start the pool.

        Raises
        ------
        ConfigError, RepositoryError, RuntimeMissingError
            Something is wrong with the site; nothing is left running.
        """
        _check_parsl_is_free()
        atexit.register(self.close)
        try:
            self._keeper.open()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End workers and servers and wait for them to be gone; may be called twice."""
        self._keeper.close()
        atexit.unregister(self.close)

    def coffea_executor(self, **fields: Any) -> CoffeaExecutor:
        """Return an executor for ``coffea.processor.Runner``; `fields` are those of coffea's ParslExecutor."""
        return CoffeaExecutor(pool_ref=self.pool.ref, log=self._log, **fields)

    def wait_ready(self, timeout_s: float | None = None) -> ServerTable:
        """Wait until a server is ready, and a little for the rest of the minimum.

        Parameters
        ----------
        timeout_s
            The longest ``start-timeout`` of the server groups by default, in seconds.

        Raises
        ------
        PoolLostError
            No server became ready.
        """
        groups = self.settings.servers.values()
        self.pool.wait_ready(timeout_s=timeout_s or max(group.start_timeout for group in groups))
        minimum = sum(group.count.min for group in groups)
        self.pool.wait_for(lambda table: len(table.ready) >= minimum or table.lost is not None, MORE_SERVERS_S)
        return self.pool.table

    def report(self) -> Report:
        """Return what happened so far, with this process's own calls."""
        return self._log.report(self.pool.servers, self.pool.own_calls.records())

    # In the keeper's thread ---------------------------------------------------

    def _start(self) -> None:
        self.run_dir.mkdir(mode=0o700, parents=True)
        self._log_handler = _log_to(self.run_dir / "sonic-parsl.log")
        _put_own_bin_on_path()
        config = self._config()
        for executor in config.executors:
            if isinstance(executor, ServerExecutor):
                executor.check()  # a Parsl that fails half-way in its start cannot be cleaned up
        self.dfk = parsl.load(config)

    def _stop(self) -> None:
        """Clean up; keep the logs of a run whose pool was lost."""
        parsl_logs = _parsl_log_handlers(self.run_dir)
        if hasattr(self, "dfk"):
            self.dfk.cleanup()
        for handler in parsl_logs:
            logging.getLogger("parsl").removeHandler(handler)
            handler.close()
        self.pool.close()
        if not hasattr(self, "_log_handler"):
            return
        logging.getLogger("sonic_parsl").removeHandler(self._log_handler)
        self._log_handler.close()
        if self.pool.table.lost is None:
            shutil.rmtree(self.run_dir)

    def _config(self) -> Config:
        servers = [self._server_executor(label, group) for label, group in self.settings.servers.items()]
        return Config(
            executors=[self._worker_executor(), *servers],
            run_dir=str(self.run_dir / "parsl"),
            strategy_period=STRATEGY_PERIOD_S,
            retries=2,
            retry_handler=_retry_cost,
            usage_tracking=0,
        )

    def _worker_executor(self) -> HighThroughputExecutor:
        workers, driver = self.settings.workers, self.settings.driver
        return HighThroughputExecutor(
            label=WORKERS,
            address=driver.address,
            loopback_address="127.0.0.1",
            max_workers_per_node=workers.workers_per_node,
            heartbeat_period=HEARTBEAT_PERIOD_S,
            heartbeat_threshold=HEARTBEAT_THRESHOLD_S,
            interchange_launch_cmd=leashed(["interchange.py"]),
            provider=make_provider(workers, count=workers.count, more_init=f"{OWN_TMPDIR}\n{self.pool.worker_init}"),
            **({"worker_port_range": ports, "interchange_port_range": ports} if (ports := driver.port_range) else {}),
        )

    def _server_executor(self, label: str, group: ServerGroup) -> ServerExecutor:
        return ServerExecutor(
            label=label,
            pool=self.pool,
            provider=make_provider(group, count=group.count),
            models=self._models if group.models == PACKAGED_MODELS else Path(group.models),
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
        )


def load_site(name: str | Path, *, models: str | Path | None = None) -> Site:
    """Bring a site up: Parsl's workers and a pool of servers.

    It returns when both have been asked for. Calls of a model wait for the first server that is ready;
    :meth:`Site.wait_ready` waits for it, too.

    Parameters
    ----------
    name
        Path of a site file, or the name of one of the user's or of a packaged one.
    models
        Model repository to serve where the site file says ``packaged``.

    Returns
    -------
    Site
        To be closed: use it in a ``with`` block, or call ``close()``.

    Raises
    ------
    ConfigError, RepositoryError, RuntimeMissingError
        Something is wrong with the site; nothing is left running.

    Examples
    --------
    >>> with sonic_parsl.load_site("local") as site:  # doctest: +SKIP
    ...     runner = processor.Runner(executor=site.coffea_executor(), schema=NanoAODSchema)
    ...     out = runner(fileset, Tagging())
    """
    path = site_file.find(str(name))
    packaged = Path(site_file.__file__).parent / "workflows" / "models"
    return Site(path.stem, site_file.read(path), models=Path(models) if models else packaged).open()


class Keeper:
    """A thread that starts something, waits, and stops it.

    What Parsl starts is tied to the thread that starts it (the kernel sends the death signal when that
    thread ends), and cleaning up should not be cut short by a Ctrl-C in the main thread: so neither
    happens in the user's thread.
    """

    def __init__(self, start: Callable[[], None], stop: Callable[[], None]) -> None:
        self._start, self._stop = start, stop
        self._started = threading.Event()
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start; raises what starting raised, after stopping what was started."""
        self._thread = threading.Thread(target=self._run, name="sonic-parsl-site", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def close(self) -> None:
        """Stop and wait; may be called twice."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            self._error = error
        else:
            self._started.set()
            self._ending.wait()
        finally:
            self._stop()
            self._started.set()


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
    """Parsl tries a chunk again when its worker died; our own errors have been tried enough."""
    return 100.0 if isinstance(error, SonicError) else 1.0


def _put_own_bin_on_path() -> None:
    """Let Parsl find its scripts where the environment was not activated."""
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != own:
        os.environ["PATH"] = os.pathsep.join([own, path])


def _parsl_log_handlers(folder: Path) -> list[logging.Handler]:
    """Return what writes parsl.log: Parsl does not close it at its cleanup, and keeps it where its start failed."""
    handlers = logging.getLogger("parsl").handlers
    return [handler for handler in handlers if getattr(handler, "baseFilename", "").startswith(f"{folder}/")]


def _log_to(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("sonic_parsl")
    root.addHandler(handler)
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    return handler
