"""The keys of an owner that was killed outright: its registry removes them, and no other run's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sonic_parsl.poolref import PoolRef
from tests.leaks import our_processes, told, wait_until

OWNER = """
import sys
from pathlib import Path

from sonic_parsl.pool.pool import ServerPool

pool = ServerPool(run_dir=Path(sys.argv[1]))
pool.start()
print("up", flush=True)
sys.stdin.read()
"""
REGISTRY = "sonic_parsl.pool.registry"
KEYS = ("pool.json", "group-block-1.json", "parsl/000/workers/certificates/server.key_secret")
SCRIPT = "parsl/000/submit_scripts/parsl.group.block-1.sh"
LOGS = ("sonic-parsl.log", f"{SCRIPT}.out", f"{SCRIPT}.err", "parsl/000/parsl.log")


@pytest.mark.parametrize("taken_over", [False, True])
def test_the_registry_removes_the_keys_of_its_own_run_only(taken_over: bool, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        for name in (*KEYS[1:], SCRIPT, *LOGS):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if taken_over:
            ref = PoolRef.read(tmp_path / "pool.json")
            replace(ref, run_id="another").write(tmp_path / "pool.json")
        found = told(our_processes(REGISTRY), lambda one: (one, one.ppid()))
        (registry,) = (one for one, parent in found if parent == owner.pid)
        owner.kill()
    wait_until(lambda: registry not in our_processes(REGISTRY), 20)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*LOGS, *((*KEYS, SCRIPT) if taken_over else ())}
