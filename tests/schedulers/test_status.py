"""`sonic-parsl status` of a run on Slurm: what waits in the queue, what then serves, what leaves and what is lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import sonic_parsl as sonic
from sonic_parsl.pool.pool import ServerPool
from tests.faults.runs import agents, tritons
from tests.leaks import wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import GONE_S, START_S, write_site
from tests.schedulers.slurm import CPUS, Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}
IPU: dict[str, Any] = {"provider": "slurm", "partition": "ipu", "request": "--gres=ipu:1", "device": "mk2"}


def seen(folder: Path) -> list[dict[str, Any]]:
    """Return the servers of a run, as the program tells of them."""
    program = str(Path(sys.executable).with_name("sonic-parsl"))
    done = subprocess.run(
        [program, "status", "--json", "--run-dir", str(folder)], capture_output=True, text=True, check=True, timeout=30
    )
    (pool,) = json.loads(done.stdout)["pools"]
    return [server for group in pool["groups"] for server in group["servers"]]


def wait_for(folder: Path, state: str) -> dict[str, Any]:
    """Wait until a run has a server in a state; return what is told of it."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [one for one in seen(folder) if one["state"] == state]
        return bool(found)

    wait_until(is_there, START_S, lambda: seen(folder))
    (server,) = found
    return server


def test_a_server_is_seen_in_the_queue_at_work_on_its_way_out_and_lost(slurm: Slurm, tmp_path: Path) -> None:
    wait_until(slurm.all_idle, GONE_S, what=slurm.jobs)
    ask = ["--partition=ipu", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--parsable"]
    other = command("sbatch", *ask, "--wrap", "sleep 600").strip()
    wait_until(lambda: any(f"{other} ipu RUNNING" in line for line in slurm.jobs()), GONE_S, what=slurm.jobs)
    with sonic.load_site(write_site(tmp_path, WORKERS, {"ipu": IPU})) as site:
        queued = wait_for(site.run_dir, "queued")
        assert any(line.startswith(f"{queued['job']} ipu PENDING") for line in slurm.jobs())
        assert (queued["id"], queued["node"], queued["walltime_left_s"]) == (None, None, None)

        command("scancel", other)
        ready = wait_for(site.run_dir, "ready")
        assert (ready["job"], ready["block"]) == (queued["job"], queued["block"])
        assert (ready["node"], ready["device"], ready["models"]) == (socket.gethostname(), "mk2", ["btag:1"])
        assert 0 < ready["walltime_left_s"] <= 1800

        assert isinstance(site.pool, ServerPool)
        (triton,) = tritons()
        triton.suspend()  # it has something to answer yet
        site.pool.drain(ready["id"], "a test says so")
        assert wait_for(site.run_dir, "draining")["id"] == ready["id"]
        triton.resume()

        successor = wait_for(site.run_dir, "ready")
        assert successor["job"] != ready["job"]
        wait_until(lambda: len(agents()) == 1, GONE_S)
        agents()[0].kill()
        lost = wait_for(site.run_dir, "lost")  # and the one that left when it was asked to is not
        assert (lost["job"], lost["block"]) == (successor["job"], successor["block"])
        assert lost["reason"]
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)
