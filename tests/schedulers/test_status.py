"""`sonic-parsl status` of a run on Slurm: what waits in the queue, and what then serves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import sonic_parsl as sonic
from sonic_parsl.pool.overview import ServerStatus, look
from tests.leaks import wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import GONE_S, START_S, write_site
from tests.schedulers.slurm import CPUS, Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}
IPU: dict[str, Any] = {"provider": "slurm", "partition": "ipu", "request": "--gres=ipu:1", "device": "mk2"}


def seen(folder: Path) -> ServerStatus | None:
    """Return the run's only server."""
    (pool,) = look(run_dir=folder).pools
    servers = [server for group in pool.groups for server in group.servers]
    return servers[0] if len(servers) == 1 else None


def test_a_queued_server_is_seen_and_then_its_node_and_the_time_it_has_left(slurm: Slurm, tmp_path: Path) -> None:
    wait_until(slurm.all_idle, GONE_S, what=slurm.jobs)
    ask = ["--partition=ipu", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--parsable"]
    other = command("sbatch", *ask, "--wrap", "sleep 600").strip()
    wait_until(lambda: any(f"{other} ipu RUNNING" in line for line in slurm.jobs()), GONE_S, what=slurm.jobs)
    with sonic.load_site(write_site(tmp_path, WORKERS, {"ipu": IPU})) as site:
        wait_until(lambda: (one := seen(site.run_dir)) and one.state == "queued", 30.0, lambda: seen(site.run_dir))
        queued = seen(site.run_dir)
        assert queued is not None
        assert any(line.startswith(f"{queued.job} ipu PENDING") for line in slurm.jobs())
        command("scancel", other)
        site.pool.wait_ready(timeout_s=START_S)
        ready = seen(site.run_dir)
        assert ready is not None
        assert (ready.state, ready.job, ready.node, ready.device) == ("ready", queued.job, socket.gethostname(), "mk2")
        assert ready.models == ("btag:1",)
        assert ready.walltime_left_s is not None
        assert 0 < ready.walltime_left_s <= 1800
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)
