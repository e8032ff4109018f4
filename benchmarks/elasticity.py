"""How long a batch system's servers take to come, to be missed and to be replaced, on a real Slurm of emulated nodes."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import parsl
from coffea.processor import ProcessorABC, Runner
from typing_extensions import override

from benchmarks.harness import READY_S, Row, Timed, faster, in_turns, script, sooner
from benchmarks.load import Kept
from benchmarks.recovery import time_lost
from sonic_parsl import Model, load_site
from sonic_parsl.client.retry import FLOOR_S
from sonic_parsl.executors.site import Site
from sonic_parsl.executors.workers.worker_executor import WORKERS
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.protocol import ServerInfo
from sonic_parsl.workflows.btag_ttbar import schema
from sonic_parsl.workflows.generate import generate
from tests.leaks import mark_this_run, wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import write_site
from tests.schedulers.slurm import CPUS, Slurm, slurm_cluster
from tests.server.conftest import running_triton

STEADY = Timed("steady", 20.0, instances=4)
LEASE_S = 6.0
FEATURES = ["pt", "eta", "phi", "mass"]
EVENTS = 100
"""Of the chunk that is scored first: about 800 jets."""
REQUEUE, CANCEL = "low", "scavenge"
"""Groups of a server each, named by their partitions: what becomes there of a job whose node is taken."""
# All of a node's devices, so that each server has a node of its own, which a job of higher priority may take.
GROUP: dict[str, Any] = {
    "provider": "slurm",
    "request": "--gres=gpu:2",
    "device": "a100",
    "serve": [STEADY.name],
    "lease": LEASE_S,
}
TAKEN = ("scancel", "preemption, requeued", "preemption, cancelled", "power cut")
LOADED_S = 12.0
"""How long the load runs around what happens to a server: that is after a third of it."""


@contextmanager
def cluster_and_site() -> Iterator[tuple[Slurm, Path]]:
    """Boot a cluster; yield it, and a site file whose servers, two jobs of it, serve a model of 20 ms.

    A file of events, ``nano.root``, lies beside it.
    """
    with slurm_cluster() as cluster, tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        STEADY.write(folder / "models")
        generate(folder / "nano.root", events=EVENTS)
        workers = {"provider": "slurm", "partition": "cpu", "workers-per-node": 1}
        group = {**GROUP, "models": str(folder / "models")}
        yield cluster, write_site(folder, workers, {name: {**group, "partition": name} for name in (REQUEUE, CANCEL)})


# To come --------------------------------------------------------------------------


class Scoring(ProcessorABC):  # type: ignore[misc]
    """Scores the jets of a chunk by a model that answers its input."""

    model = Model(STEADY.name, inputs=FEATURES, outputs=FEATURES)

    @override
    def process(self, events: Any) -> dict[str, int]:
        """Return how many events there are, and how many jets got what they should."""
        scores = self.model(events.Jet)
        return {"events": len(events), "right": int(ak.sum(scores.pt == events.Jet.pt))}

    @override
    def postprocess(self, accumulator: dict[str, int]) -> dict[str, int]:
        """Return what was accumulated, as it is."""
        return accumulator


def to_first_chunk(site_file: Path, ready: list[float]) -> float:
    """Return the time from ``load_site`` to the first chunk that a worker's job has read and scored, in s.

    The time to the first ready server is added to `ready`.
    """
    start = time.monotonic()
    with load_site(site_file) as site:
        site.pool.wait_ready(1, timeout_s=READY_S)
        ready.append(time.monotonic() - start)
        runner = Runner(executor=site.coffea_executor(status=False), schema=schema, chunksize=EVENTS)
        with redirect_stdout(io.StringIO()):  # coffea draws its progress, whatever `status` says
            out = runner({"generated": {"files": {str(site_file.parent / "nano.root"): "Events"}}}, Scoring())
        took_s = time.monotonic() - start
        assert out["events"] == EVENTS
        assert out["right"] == site.report().rows > 0
        return took_s


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


class Gone(NamedTuple):
    """What it costs that a server goes.

    Attributes
    ----------
    kept
        How the calls of a steady load fared.
    whole_s
        When the pool had as many ready servers again, in s after it happened.
    """

    kept: Kept
    whole_s: float


def calm(site: Site) -> Kept:
    """Return how the calls of a steady load fare while nothing happens."""
    site.pool.wait_ready(2, timeout_s=READY_S)
    kept: Kept = parsl.python_app(load_on_worker, executors=[WORKERS])(LOADED_S, STEADY.name).result()
    return kept


def under_load(site: Site, happens: Callable[[ServerInfo], object], group: str = REQUEUE) -> Gone:
    """Return how a steady load and the pool fare when something happens to the server of a group, which ends it."""
    ready = site.pool.wait_ready(2, timeout_s=READY_S).ready
    victim = next(entry.info for entry in ready if entry.info.group == group)
    call = parsl.python_app(load_on_worker, executors=[WORKERS])(LOADED_S, STEADY.name)
    time.sleep(LOADED_S / 3)
    start = time.monotonic()
    happens(victim)
    wait_until(lambda: is_gone(site, victim) and len(site.pool.table.ready) == len(ready), READY_S)
    whole_s = time.monotonic() - start
    return Gone(call.result(), whole_s)


def is_gone(site: Site, server: ServerInfo) -> bool:
    """Return whether a server has left the table."""
    return server.id not in {entry.info.id for entry in site.pool.table.servers}


def drain(site: Site, victim: ServerInfo) -> None:
    """Let a server finish what it has, and go."""
    assert isinstance(site.pool, ServerPool)
    site.pool.drain(victim.id, "a benchmark says so")


def cancel(victim: ServerInfo) -> None:
    """Cancel its job, as its user may."""
    command("scancel", victim.job_id)


def preempt(cluster: Slurm, victim: ServerInfo) -> None:
    """Let a job of higher priority take its node for three seconds."""
    node = cluster.node_of(victim.job_id)
    ask = ["--partition=gpu", f"--nodelist={node}", f"--cpus-per-task={CPUS}", "--output=/dev/null"]
    command("sbatch", *ask, "--wrap", "sleep 3")


def power_cut(cluster: Slurm, site: Site, victim: ServerInfo) -> None:
    """Cut its node's power, and switch it on again when the pool has noticed."""
    cluster.cut_power(cluster.node_of(victim.job_id))
    wait_until(lambda: is_gone(site, victim), READY_S)
    cluster.restore_power()


def measure(rounds: int, quick: bool) -> list[Row]:
    """Measure how long servers take to come, to be missed and to be replaced, on a real Slurm."""
    mark_this_run()
    with cluster_and_site() as (cluster, site_file):
        models, ready = site_file.parent / "models", list[float]()
        ours, peer = in_turns(
            rounds, partial(to_first_chunk, site_file, ready), partial(bare, models), warm_up=not quick
        )
        with load_site(site_file) as site:
            killed_s, undisturbed, drained, *taken = in_turns(
                rounds,
                partial(killed, site),
                partial(calm, site),
                partial(under_load, site, partial(drain, site)),
                partial(under_load, site, cancel),
                partial(under_load, site, partial(preempt, cluster)),
                partial(under_load, site, partial(preempt, cluster), CANCEL),
                partial(under_load, site, partial(power_cut, cluster, site)),
                warm_up=not quick,
            )
        shutil.rmtree(models)
    kept = [gone.kept for gone in drained]
    assert not any(one.asked_again for one in kept), "a drain made requests fail"
    bound = [LEASE_S + FLOOR_S] * rounds
    rows = [
        sooner("first ready server; peer: sbatch, Triton", ready[-rounds:], peer, "s"),
        sooner("first scored chunk; peer: sbatch, Triton", ours, peer, "s"),
        sooner("SIGKILL; peer: a lease and a time-out", killed_s, bound, "s", 1.0),
        sooner("longest call in a drain; peer: without", longest(kept), longest(undisturbed), "s"),
        faster("calls on time in a drain; peer: without", on_time(kept), on_time(undisturbed), "of 1"),
    ]
    for what, found in zip(TAKEN, taken, strict=True):
        calls = longest([gone.kept for gone in found])
        rows.append(sooner(f"longest call, {what}; peer: a lease and a time-out", calls, bound, "s", 1.0))
    for what, found in zip(TAKEN, taken, strict=True):
        rows.append(sooner(f"whole again, {what}; peer: sbatch, Triton", [gone.whole_s for gone in found], peer, "s"))
    return rows


def longest(every: Sequence[Kept]) -> list[float]:
    """Return the longest call of each."""
    return [kept.longest_s for kept in every]


def on_time(every: Sequence[Kept]) -> list[float]:
    """Return the share of calls of each that were on time."""
    return [kept.on_time for kept in every]


main = script(measure)

if __name__ == "__main__":
    main()
