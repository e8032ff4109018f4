"""How long a batch system's servers take to come, to be missed and to be replaced, on a real Slurm of emulated nodes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import parsl

from benchmarks.harness import READY_S, Row, Timed, faster, in_turns, script, sooner
from benchmarks.load import Kept
from benchmarks.recovery import time_lost
from sonic_parsl import load_site
from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.executors.site import Site
from sonic_parsl.executors.worker_executor import WORKERS
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.protocol import ServerInfo
from tests.leaks import mark_this_run, wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import write_site
from tests.schedulers.slurm import CPUS, Slurm, slurm_cluster
from tests.server.conftest import running_triton

STEADY = Timed("steady", 20.0, instances=4)
LEASE_S = 6.0
# All of a node's devices, so that each server has a node of its own, which a job of higher priority may take.
GROUP: dict[str, Any] = {
    "provider": "slurm",
    "partition": "low",
    "request": "--gres=gpu:2",
    "device": "a100",
    "serve": [STEADY.name],
    "lease": LEASE_S,
}
LOADED_S = 12.0
"""How long the load runs around what happens to a server: that is after a third of it."""


@contextmanager
def cluster_and_site() -> Iterator[tuple[Slurm, Path]]:
    """Boot a cluster; yield it, and a site file whose servers, two jobs of it, serve a model of 20 ms."""
    with slurm_cluster() as cluster, tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        STEADY.write(folder / "models")
        workers = {"provider": "slurm", "partition": "cpu", "workers-per-node": 1}
        yield cluster, write_site(folder, workers, {"gpu": {**GROUP, "models": str(folder / "models"), "count": 2}})


# To come --------------------------------------------------------------------------


def to_first_chunk(site_file: Path, ready: list[float]) -> float:
    """Return the time from ``load_site`` to the first chunk that a worker's job scored, in s.

    The time to the first ready server is added to `ready`.
    """
    start = time.monotonic()
    with load_site(site_file) as site:
        site.pool.wait_ready(1, timeout_s=READY_S)
        ready.append(time.monotonic() - start)
        parsl.python_app(score_on_worker, executors=[WORKERS])(STEADY.name).result()
        return time.monotonic() - start


def score_on_worker(model: str) -> None:
    """Score rows, as a chunk has them."""
    import numpy as np

    from sonic_parsl.client.sessions import session

    ours, rows = session(), np.zeros((64, 4), np.float32)
    ours.submit(ours.served(model), {"INPUT0": rows}, rows=len(rows)).result()


def bare(models: Path) -> float:
    """Return the time of an ``sbatch`` that starts nothing, there and back, and of a Triton without anything of ours."""
    start = time.monotonic()
    subprocess.run(["sbatch", "--wait", "--output=/dev/null", "--wrap", "true"], check=True, capture_output=True)
    with running_triton(models, (STEADY.name,), models.parent / "bare.log"):
        return time.monotonic() - start


# To go ----------------------------------------------------------------------------


def killed(site: Site) -> float:
    """Kill one of two servers under load; return how long the last affected row took, in s."""
    before = {entry.info.id for entry in site.pool.wait_ready(2, timeout_s=READY_S).ready}
    took_s = time_lost(site, signal.SIGKILL)
    wait_until(lambda: before - {entry.info.id for entry in site.pool.table.servers}, READY_S)
    return took_s


def load_on_worker(seconds: float, model: str) -> Kept:
    """Keep a load up, as a worker does."""
    from benchmarks.load import keep_up

    return keep_up(seconds, model)


def under_load(site: Site, happens: Callable[[ServerInfo], object] | None = None) -> Kept:
    """Return how the calls of a steady load fare while something happens to one of two servers, or nothing."""
    victim = site.pool.wait_ready(2, timeout_s=READY_S).ready[0].info
    call = parsl.python_app(load_on_worker, executors=[WORKERS])(LOADED_S, STEADY.name)
    time.sleep(LOADED_S / 3)
    if happens is not None:
        happens(victim)
        wait_until(lambda: victim.id not in {entry.info.id for entry in site.pool.table.servers}, READY_S)
    kept: Kept = call.result()
    return kept


def drain(site: Site, victim: ServerInfo) -> None:
    """Let a server finish what it has, and go."""
    assert isinstance(site.pool, ServerPool)
    site.pool.drain(victim.id, "a benchmark says so")


def cancel(victim: ServerInfo) -> None:
    """Cancel its job, as its user may."""
    command("scancel", victim.job_id)


def preempt(victim: ServerInfo) -> None:
    """Let a job of higher priority take its node; it is put back into the queue."""
    ask = ["--partition=gpu", f"--nodelist={node_of(victim)}", f"--cpus-per-task={CPUS}", "--output=/dev/null"]
    command("sbatch", *ask, "--wrap", "sleep 3")


def power_cut(cluster: Slurm, victim: ServerInfo) -> None:
    """Cut its node's power, and switch it on again."""
    node = node_of(victim)
    cluster.kill_node(node)
    cluster.start_node(node)


def node_of(server: ServerInfo) -> str:
    """Return what Slurm calls the node of a server."""
    return command("squeue", "--noheader", "--format=%N", "--jobs", server.job_id).strip()


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure how long servers take to come, to be missed and to be replaced, on a real Slurm."""
    mark_this_run()
    with cluster_and_site() as (cluster, site_file):
        models, ready = site_file.parent / "models", list[float]()
        ours, peer = in_turns(
            rounds, partial(to_first_chunk, site_file, ready), partial(bare, models), warm_up=not quick
        )
        with load_site(site_file) as site:
            gone, calm, drained, cancelled, preempted, dark = in_turns(
                rounds,
                partial(killed, site),
                partial(under_load, site),
                partial(under_load, site, partial(drain, site)),
                partial(under_load, site, cancel),
                partial(under_load, site, preempt),
                partial(under_load, site, partial(power_cut, cluster)),
                warm_up=not quick,
            )
        shutil.rmtree(models)
    assert not any(kept.asked_again for kept in drained), "a drain made requests fail"
    bound = [LEASE_S + FLOOR_S] * rounds
    return [
        sooner("first ready server; peer: sbatch, Triton", ready[-rounds:], peer, "s"),
        sooner("first scored chunk; peer: sbatch, Triton", ours, peer, "s"),
        sooner("SIGKILL; peer: a lease and a time-out", gone, bound, "s", 1.0),
        sooner("longest call in a drain; peer: without", longest(drained), longest(calm), "s"),
        faster("calls on time in a drain; peer: without", on_time(drained), on_time(calm), "of 1"),
        sooner("longest call, scancel; peer: a lease and a time-out", longest(cancelled), bound, "s", 1.0),
        sooner("longest call, preemption; peer: a lease and a time-out", longest(preempted), bound, "s", 1.0),
        sooner("longest call, power cut; peer: a lease and a time-out", longest(dark), bound, "s", 1.0),
    ]


def longest(every: Sequence[Kept]) -> list[float]:
    """Return the longest call of each."""
    return [kept.longest_s for kept in every]


def on_time(every: Sequence[Kept]) -> list[float]:
    """Return the share of calls of each that were on time."""
    return [kept.on_time for kept in every]


main = script(measure)

if __name__ == "__main__":
    main()
