"""Parsl's own executor for the workers, made so that a run ends well whatever ends it."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobStatus
from parsl.providers.base import ExecutionProvider
from typing_extensions import override

from sonic_parsl.errors import PoolError
from sonic_parsl.executors.batch.dialects import watch_jobs
from sonic_parsl.executors.batch.providers import make_provider, said_walltime
from sonic_parsl.executors.batch.undertaker import Undertaker
from sonic_parsl.executors.steady_clock import SteadilyPolled
from sonic_parsl.executors.workers.lost_blocks import LostBlocks
from sonic_parsl.executors.workers.pipes import Commands, TaskPipe
from sonic_parsl.executors.workers.worker_pool import LAUNCH_COMMAND
from sonic_parsl.pool.view import PoolView
from sonic_parsl.server.leash import leashed
from sonic_parsl.site import Driver, Workers

WORKERS = "workers"
HEARTBEAT_PERIOD_S, HEARTBEAT_THRESHOLD_S = 5, 30
"""Workers whose driver is gone end after the threshold; Parsl's own 120 s is long for a shared queue."""
OWN_TMPDIR = """\
export TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/sonic-parsl-XXXXXX")
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 143' TERM"""
"""Parsl's worker pools leave a folder with a socket where they are ended: it goes with the job's script."""
DRAIN_SHARE, LONGEST_DRAIN_S = 0.1, 600.0
"""Of a job's length, its end, in which its workers begin no chunk."""
INTERCHANGE = "sonic_parsl.executors.workers.interchange"


def drain_margin(walltime_s: float) -> float:
    """Return how long before the end of its job a worker pool takes no new chunk and leaves with its last, in s."""
    return min(DRAIN_SHARE * walltime_s, LONGEST_DRAIN_S)


class WorkerExecutor(SteadilyPolled, HighThroughputExecutor):  # type: ignore[misc]
    """Parsl's HighThroughputExecutor, made so that a run ends well whatever ends it.

    It can be shut down at any time, as Ctrl-C does, its workers may be killed at any time, its jobs that still wait in a
    queue are cancelled when the driver has ended, however it did, and its clock nobody sets.

    Parameters
    ----------
    label
        Name of the executor.
    pool
        The pool that its workers ask.
    provider
        Any Parsl provider; to its ``worker_init`` is added what the workers need.
    options
        What else a HighThroughputExecutor takes. By default what goes to and fro is encrypted, and workers whose driver
        is gone end after half a minute.
    """

    def __init__(self, label: str = WORKERS, *, pool: PoolView, provider: ExecutionProvider, **options: Any) -> None:
        self.pool = pool
        self.undertaker = Undertaker()
        self._error: PoolError | None = None
        if getattr(provider, "worker_init", None) is not None:
            for lines in (OWN_TMPDIR, pool.worker_init):
                if lines not in provider.worker_init:  # it may have been another executor's before
                    provider.worker_init = f"{provider.worker_init.rstrip()}\n{lines}\n".lstrip()
        super().__init__(label=label, provider=provider, **{**_defaults(), **options})

    @override
    def start(self) -> None:
        watch_jobs(self.provider, self.undertaker)
        super().start()
        self.outgoing_q: Any = TaskPipe(self.outgoing_q)
        self.command_client: Any = Commands(self.command_client, self.interchange_proc)

    @property
    @override
    def executor_exception(self) -> Exception | None:
        """What each task fails with: each with its own, for one raised by thousands has a traceback of thousands."""
        return self._error.at() if self._error else super().executor_exception

    @override
    def handle_errors(self, status: dict[str, JobStatus]) -> None:
        """Give up once the interchange has ended; otherwise judge the blocks. Parsl calls this after every poll."""
        if self.bad_state_is_set:
            return
        if (ended := self.interchange_proc.poll()) is None:
            super().handle_errors(status)
        else:
            self._give_up(ended)

    @override
    def shutdown(self, timeout: float = 10.0) -> None:
        with closing(self.undertaker):
            super().shutdown(timeout)

    def _give_up(self, ended: int) -> None:
        """Fail all tasks, those that are being launched too, and cancel the jobs: Parsl leaves them where it gave up."""
        how = f"was killed by signal {-ended}" if ended < 0 else f"ended with exit status {ended}"
        error = PoolError(
            f"Parsl's interchange, the process on the driver's machine that hands chunks to the workers, {how}.",
            hint="Start the run again. If that machine ran out of memory, run fewer things beside the driver.",
        )
        self._error = error
        self._executor_bad_state.set()
        self.outgoing_q.close(error)
        for future in list(self.tasks.values()):
            if not future.done():
                future.set_exception(error.at())
        self.scale_in_facade(len(self.status_facade))


def _defaults() -> dict[str, Any]:
    return {
        "encrypted": True,  # the workers' key travels with the chunks
        "loopback_address": "127.0.0.1",
        "heartbeat_period": HEARTBEAT_PERIOD_S,
        "heartbeat_threshold": HEARTBEAT_THRESHOLD_S,
        "interchange_launch_cmd": leashed([sys.executable, "-m", INTERCHANGE]),
        "launch_cmd": LAUNCH_COMMAND,
        "block_error_handler": LostBlocks(),
    }


def workers_of(workers: Workers, driver: Driver, pool: PoolView) -> WorkerExecutor:
    """Return the executor that a site file's sections ask for."""
    provider = make_provider(workers, count=workers.count)
    walltime_s = said_walltime(workers, provider)
    ports: dict[str, Any] = {"worker_port_range": driver.port_range, "interchange_port_range": driver.port_range}
    return WorkerExecutor(
        pool=pool,
        provider=provider,
        address=driver.ipv4,
        max_workers_per_node=workers.workers_per_node,
        drain_period=None if walltime_s is None else max(1, int(walltime_s - drain_margin(walltime_s))),
        **(ports if driver.port_range else {}),
    )
