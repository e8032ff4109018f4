"""A real Slurm that does not start what it is asked for, and drivers that leave jobs in its queue."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from tests.leaks import assert_nothing_is_left, wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import GONE_S, at_work, driver, write_site
from tests.schedulers.slurm import CPUS, Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}
START_S = 90.0


def group(**changes: Any) -> dict[str, Any]:
    return {"provider": "slurm", "partition": "ipu", "request": "--gres=ipu:1", "device": "mk2", **changes}


@pytest.fixture
def busy(slurm: Slurm) -> Iterator[str]:
    """Somebody else's job has the whole `ipu` partition."""
    wait_until(slurm.all_idle, START_S, what=slurm.jobs)
    ask = ["--partition=ipu", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--parsable"]
    job = command("sbatch", *ask, "--wrap", "sleep 600").strip()
    wait_until(lambda: any(f"{job} ipu RUNNING" in line for line in slurm.jobs()), START_S)
    yield job
    command("scancel", job)
    wait_until(lambda: not slurm.jobs(), START_S)


def test_a_run_whose_servers_never_start_fails_with_what_slurm_says(busy: str, slurm: Slurm, tmp_path: Path) -> None:
    path = write_site(tmp_path, WORKERS, {"ipu": group(**{"start-timeout": 5})})
    with sonic.load_site(path) as site, pytest.raises(PoolLostError) as caught:
        site.wait_ready()
    said = str(caught.value)
    assert "the batch system started no server within 5 s" in said
    assert "jobs of ipu:\n  block 0: PENDING, Resources" in said
    wait_until(lambda: [line.split()[0] for line in slurm.jobs()] == [busy], GONE_S, what=slurm.jobs)
    assert_nothing_is_left()


def test_a_job_that_slurm_refuses_fails_with_what_it_says(slurm: Slurm, tmp_path: Path) -> None:
    path = write_site(tmp_path, WORKERS, {"ipu": group(request="--gres=ipu:99")})
    with sonic.load_site(path) as site, pytest.raises(PoolLostError, match="Requested node configuration is not"):
        site.wait_ready()
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)


# Drivers that end -------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_ended_in_mid_run_leaves_no_job(
    number: signal.Signals, slurm: Slurm, many: Path, tmp_path: Path
) -> None:
    with driver(write_site(tmp_path, WORKERS, {"ipu": group()}), many) as process:
        wait_until(at_work, START_S, what=slurm.jobs)
        process.send_signal(number)
        process.wait(timeout=60)
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)
    assert_nothing_is_left()


def test_a_driver_killed_while_its_jobs_wait_leaves_none_in_the_queue(
    busy: str, slurm: Slurm, many: Path, tmp_path: Path
) -> None:
    with driver(write_site(tmp_path, WORKERS, {"ipu": group()}), many) as process:
        wait_until(lambda: any(" ipu PENDING " in line for line in slurm.jobs()), START_S, what=slurm.jobs)
        process.kill()
        process.wait()
    wait_until(lambda: [line.split()[0] for line in slurm.jobs()] == [busy], GONE_S, what=slurm.jobs)
    assert_nothing_is_left(GONE_S)
