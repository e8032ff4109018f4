"""What an agent that is killed has started or written does not stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sonic_parsl.server.guard import FOLDER, SHARED_MEMORY, Guard, sweep
from sonic_parsl.server.runtimes import new_shm_prefix
from tests.leaks import wait_until

DYING = """
import os, signal, subprocess, sys
from pathlib import Path
from sonic_parsl.server.guard import Guard

folder = Path(sys.argv[1])
guard = Guard(sys.argv[3], folder)
folder.mkdir()
if sys.argv[2] == "with a group":
    child = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    guard.watch(child.pid)
    print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before anything runs", "with a group"])
def test_a_folder_and_a_group_go_with_an_agent_that_is_killed(moment: str, tmp_path: Path) -> None:
    folder, prefix = tmp_path / f"{FOLDER}killed", new_shm_prefix()
    agent = [sys.executable, "-c", DYING, str(folder), moment, prefix]
    done = subprocess.run(agent, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    wait_until(lambda: not (folder.exists() or list(SHARED_MEMORY.glob(f"{prefix}*"))), 10)
    wait_until(lambda: not any(map(psutil.pid_exists, map(int, done.stdout.split()))), 10)


def test_one_that_is_dismissed_is_gone(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    guard = Guard(new_shm_prefix(), tmp_path / f"{FOLDER}none")
    assert set(psutil.Process().children()) - before
    guard.dismiss()
    guard.dismiss()
    assert not set(psutil.Process().children()) - before


def test_one_that_was_killed_may_still_be_told_what_to_forget(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    guard = Guard(new_shm_prefix(), tmp_path / f"{FOLDER}none")
    (process,) = set(psutil.Process().children()) - before
    process.kill()
    process.wait(10)
    guard.forget(1)
    guard.dismiss()
    sweep()  # as the next server does, for what it leaves then


def test_a_group_that_it_is_to_forget_goes_on(tmp_path: Path) -> None:
    guard = Guard(new_shm_prefix(), tmp_path / f"{FOLDER}none")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        try:
            guard.watch(other.pid)
            guard.forget(other.pid)
            guard.dismiss()
            assert other.poll() is None
        finally:
            other.kill()
