"""What a batch system that kills all of a server at once leaves on the node goes with the next server there."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.server import guard
from sonic_parsl.server.guard import FOLDER, LOCK, SHARED_MEMORY, Guard, remove_environments, sweep
from sonic_parsl.server.runtimes import new_shm_prefix
from tests.security.intruder import UID
from tests.server.agents import MODELS, RunningAgent, agent, ask, environment_of, rows_of, shared_memory_of


def kill_at_once(server: RunningAgent) -> None:
    """Kill all of a server's processes, as the end of a job's control group does: none outlives another."""
    family = server.family()
    for process in family:
        process.suspend()
    for process in family:
        process.kill()
    server.process.wait()
    assert not psutil.wait_procs(family, timeout=10)[1]


def home_of(triton: psutil.Process) -> Path:
    (option,) = [word for word in triton.cmdline() if word.startswith("--model-repository=")]
    return Path(option.partition("=")[2]).parent


def has_elder(folder: Path, *ours: psutil.Process) -> bool:
    """Return whether a Triton lives, of other tests on this machine, that might have made this folder, too."""
    others = [one for one in psutil.process_iter(["name", "create_time"]) if one.info["name"] == "tritonserver"]
    made = folder.stat().st_mtime + guard.CLOCK_SLACK_S
    return any(one.info["create_time"] <= made for one in others if one not in ours)


def test_the_next_server_puts_away_what_one_left_and_touches_nothing_of_those_that_live(
    pool: ServerPool, tmp_path: Path
) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as killed:
        killed.ready_peer()
        left, prefix = killed.triton(), shared_memory_of(killed.triton())
        home, environment = home_of(left), environment_of(left)
        with agent(pool, tmp_path, MODELS, "identity") as living:
            peer = living.ready_peer()
            triton, living_prefix = living.triton(), shared_memory_of(living.triton())
            assert (home / "models").is_dir()
            assert len(list(SHARED_MEMORY.glob(f"{prefix}*"))) > 1
            assert environment.is_dir()
            kill_at_once(killed)  # from here on, any server that starts on this machine may put its things away
            with agent(pool, tmp_path, MODELS, "identity") as following:
                following.ready_peer()
                assert not list(SHARED_MEMORY.glob(f"{prefix}*"))
                assert not home.exists()
                assert not environment.exists() or has_elder(environment, triton)
                assert environment_of(triton).is_dir()
                assert home_of(triton).is_dir()
                assert len(list(SHARED_MEMORY.glob(f"{living_prefix}*"))) > 1
                np.testing.assert_array_equal(ask(peer, "identity", rows_of(5, 32)), rows_of(5, 32))


def test_a_triton_that_is_killed_leaves_no_folder_of_its_backend(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        server.ready_peer()
        environment = environment_of(server.triton())
        assert environment.is_dir()
        server.triton().kill()
        assert server.exit_code() == 1
    assert not environment.exists() or has_elder(environment)


# Whose it is ----------------------------------------------------------------------


@contextmanager
def left_by(prefix: str, folder: Path) -> Iterator[Path]:
    """Leave a folder and a lock as a server does that was killed with its guard; return the lock's path."""
    script = "import os, sys; from pathlib import Path; from sonic_parsl.server import guard; "
    script += "guard._locked(sys.argv[1], Path(sys.argv[2])); os.mkdir(sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, prefix, str(folder)], check=True)
    lock = SHARED_MEMORY / f"{prefix}{LOCK}"
    try:
        yield lock
    finally:
        lock.unlink(missing_ok=True)


def test_a_server_lives_while_its_guard_does(tmp_path: Path) -> None:
    prefix, folder = new_shm_prefix(), tmp_path / f"{FOLDER}one"
    one = Guard(prefix, folder)
    folder.mkdir()
    assert one._lock is not None
    os.close(one._lock)  # as the agent's end does
    one._lock = None
    assert str(folder) not in sweep()
    assert folder.exists()
    one.dismiss()
    assert not folder.exists()
    assert not (SHARED_MEMORY / f"{prefix}{LOCK}").exists()


def test_what_another_user_left_stays(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    folder = tmp_path / f"{FOLDER}another"
    with left_by(new_shm_prefix(), folder) as lock:
        os.chown(lock, UID, UID)
        assert str(folder) not in sweep()
        assert folder.exists()
        os.chown(lock, 0, 0)
        os.chown(folder, UID, UID)
        assert str(folder) in sweep()
        assert folder.exists()
        assert not lock.exists()


def test_a_lock_that_names_another_kind_of_folder_takes_nothing_with_it(tmp_path: Path) -> None:
    folder, other = tmp_path / "results", tmp_path / f"{FOLDER}link"
    with left_by(new_shm_prefix(), folder):
        sweep()
        assert folder.is_dir()
    with left_by(new_shm_prefix(), other):
        other.rmdir()
        other.symlink_to(folder)
        sweep()
        assert folder.is_dir()


def test_a_lock_that_is_just_being_made_stays_and_one_that_never_was_goes() -> None:
    lock = SHARED_MEMORY / f"{new_shm_prefix()}{LOCK}"
    lock.touch()
    try:
        sweep()
        assert lock.exists()
        os.utime(lock, (0.0, 0.0))
        sweep()
        assert not lock.exists()
    finally:
        lock.unlink(missing_ok=True)


def test_only_empty_folders_that_are_older_than_every_living_triton_are_taken_for_left_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ENVIRONMENTS", (tmp_path, guard.ENVIRONMENTS[1]))
    names = ("old", "full", "new")
    old, full, new = folders = [tmp_path / f"python_env_{name:_<6}" for name in names]
    for folder in folders:
        folder.mkdir()
    (full / "packages").touch()
    library = tmp_path / "libtriton_python.so"
    library.write_bytes(b"ELF")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):  # this process is a Triton
        for folder, made in ((old, 0.0), (full, 0.0), (new, time.time())):
            os.utime(folder, (made, made))
        remove_environments()
        assert [folder.exists() for folder in folders] == [False, True, True]
        remove_environments(ended={os.getpgrp()})
    shutil.rmtree(full)
