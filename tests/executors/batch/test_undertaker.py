"""Jobs that a driver leaves are cancelled, however it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sonic_parsl.executors.batch.undertaker import Undertaker
from sonic_parsl.site import packaged_models
from tests.leaks import assert_nothing_is_left, our_processes, wait_until

DRIVER = """
import itertools, os, signal, types
from sonic_parsl.executors.batch.undertaker import Undertaker

numbers = itertools.count(1)
provider = types.SimpleNamespace(submit=lambda command, name: str(next(numbers)) if command else None)
undertaker = Undertaker()
undertaker.watch(provider, "scancel", ["squeue"])
assert [provider.submit("a", name="b"), provider.submit("", name="c"), provider.submit("d", name="e")] == ["1", None, "2"]
os.kill(os.getpid(), signal.SIGKILL)
"""


OWN_CONFIG = """
import os, signal, time
import parsl
from parsl.config import Config
from parsl.providers import SlurmProvider
import sonic_parsl as sonic

pool = sonic.ServerPool(run_dir="pool")
gpu = sonic.ServerExecutor(
    label="gpu", pool=pool, provider=SlurmProvider(partition="gpu"), models={models!r}, min_servers=2
)
cpu = sonic.WorkerExecutor(pool=pool, address="127.0.0.1", provider=SlurmProvider(partition="cpu"))
parsl.load(Config([gpu, cpu], strategy_period=1, usage_tracking=0))
while not cpu.blocks_to_job_id:  # Parsl submits those of workers when it first polls
    time.sleep(0.05)
os.kill(os.getpid(), signal.{signal})
"""


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put a scheduler's commands first on PATH, as lines of a shell."""
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def killed_driver() -> None:
    """Let a driver submit two jobs and be killed; wait for the end of what it leaves."""
    subprocess.run([sys.executable, "-c", DRIVER], check=False, timeout=60)
    wait_until(lambda: not our_processes("undertaker.py"), 20)


def test_jobs_of_a_driver_that_is_killed_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    commands(tmp_path, monkeypatch, scancel=f'echo "$@" >> {said}', squeue="exit 1")
    killed_driver()
    assert said.read_text() == "1 2\n"


@pytest.mark.parametrize(("squeue", "asked"), [("exit 1", 2), ("exit 0", 1)], ids=["out of reach", "it answers"])
def test_who_was_out_of_reach_is_asked_again_and_who_knows_no_such_job_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, asked: int
) -> None:
    said = tmp_path / "said"
    scancel = f'echo "$@" >> {said}; test $(wc -l < {said}) -ge 2'
    commands(tmp_path, monkeypatch, scancel=scancel, squeue=squeue)
    killed_driver()
    assert said.read_text() == asked * "1 2\n"


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_jobs_of_a_users_own_configuration_are_cancelled_too(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    sbatch = f'echo job >> {tmp_path}/jobs; echo "Submitted batch job $(wc -l < {tmp_path}/jobs)"'
    commands(tmp_path, monkeypatch, sbatch=sbatch, scancel=f'echo "$@" >> {said}', squeue="exit 0", sinfo="exit 0")
    driver = OWN_CONFIG.format(models=str(packaged_models()), signal=number)
    subprocess.run([sys.executable, "-c", driver], check=False, timeout=60, cwd=tmp_path)
    assert (tmp_path / "jobs").read_text() == 3 * "job\n"
    wait_until(lambda: not our_processes("undertaker.py"), 20)
    assert sorted(said.read_text().splitlines()) == ["1 2", "3"]
    assert_nothing_is_left()


def test_where_nothing_was_submitted_there_is_nobody() -> None:
    undertaker = Undertaker()
    undertaker.close()
    assert not our_processes("undertaker.py")
