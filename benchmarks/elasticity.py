"""How long a batch system's servers take to come, to be missed and to be replaced, on a real Slurm of emulated nodes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import parsl

from benchmarks.harness import READY_S, Row, Timed, in_turns, script, sooner
from benchmarks.recovery import time_lost
from sonic_parsl import load_site
from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.client.sessions import session
from sonic_parsl.executors.site import WORKERS, Site
from sonic_parsl.pool.pool import ServerPool
from tests.leaks import mark_this_run, wait_until
from tests.schedulers.runs import write_site
from tests.schedulers.slurm import slurm_cluster
from tests.server.conftest import running_triton

STEADY = Timed("steady", 20.0, instances=4)
LEASE_S = 6.0
GROUP: dict[str, Any] = {
    "provider": "slurm",
    "partition": "gpu",
    "request": "--gres=gpu:1",
    "device": "a100",
    "serve": [STEADY.name],
    "lease": LEASE_S,
}
LOADED_S = 12.0
"""How long the load runs around a drain: after a third of it a server is drained."""


@contextmanager
def cluster_and_site() -> Iterator[Path]:
    """Boot a cluster; yield a site file whose servers, two jobs of it, serve a model of 20 ms."""
    with slurm_cluster(), tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        STEADY.write(folder / "models")
        workers = {"provider": "slurm", "partition": "cpu", "workers-per-node": 1}
        yield write_site(folder, workers, {"gpu": {**GROUP, "models": str(folder / "models"), "count": 2}})


# To come --------------------------------------------------------------------------


def to_first_chunk(site_file: Path, ready: list[float]) -> float:
    """Return the time from ``load_site`` to the first scored rows, in s; note that to the first ready server."""
    start = time.monotonic()
    with load_site(site_file) as site:
        site.pool.wait_ready(1, timeout_s=READY_S)
        ready.append(time.monotonic() - start)
        score(site)
        return time.monotonic() - start


def score(site: Site) -> None:
    """Score rows, as a chunk has them."""
    ours, rows = session(site.pool.ref), np.zeros((64, 4), np.float32)
    ours.submit(ours.served(STEADY.name), {"INPUT0": rows}, rows=len(rows)).result()


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


def load_on_worker(seconds: float, model: str) -> tuple[float, bool]:
    """Keep a load up, as a worker does."""
    from benchmarks.load import keep_up

    return keep_up(seconds, model)


def longest_call(site: Site, *, drain: bool) -> float:
    """Return how long the longest call of a steady load takes, in s, while one of two servers drains or without."""
    pool = site.pool
    assert isinstance(pool, ServerPool)
    leaving = pool.wait_ready(2, timeout_s=READY_S).ready[0].info.id
    call = parsl.python_app(load_on_worker, executors=[WORKERS])(LOADED_S, STEADY.name)
    time.sleep(LOADED_S / 3)
    if drain:
        pool.drain(leaving, "a benchmark says so")
    longest_s, asked_again = call.result()
    assert not asked_again, "a drain made requests fail"
    return float(longest_s)


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure how long servers take to come, to be missed and to be replaced, on a real Slurm."""
    mark_this_run()
    with cluster_and_site() as site_file:
        models, ready = site_file.parent / "models", list[float]()
        ours, peer = in_turns(
            rounds, partial(to_first_chunk, site_file, ready), partial(bare, models), warm_up=not quick
        )
        with load_site(site_file) as site:
            gone, slow, calm = in_turns(
                rounds,
                partial(killed, site),
                partial(longest_call, site, drain=True),
                partial(longest_call, site, drain=False),
                warm_up=not quick,
            )
        shutil.rmtree(models)
    return [
        sooner("first ready server; peer: sbatch, Triton", ready[-rounds:], peer, "s"),
        sooner("first scored rows; peer: sbatch, Triton", ours, peer, "s"),
        sooner("SIGKILL; peer: a lease and a time-out", gone, [LEASE_S + FLOOR_S] * rounds, "s", 1.0),
        sooner("longest call in a drain; peer: without", slow, calm, "s"),
    ]


main = script(measure)

if __name__ == "__main__":
    main()
