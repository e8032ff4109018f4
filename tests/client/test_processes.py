from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sonic_parsl.poolref import POOL_ENV

if TYPE_CHECKING:
    from tests.client.conftest import Registry, Server

COMMON = """
import numpy as np
from sonic_parsl.client.sessions import session

def ask(count, model="identity", width=32):
    x = np.arange(count * width, dtype=np.float32).reshape(count, width)
    return x, session().submit(session().served(model), {"INPUT0": x}, rows=count)

def right(count):
    x, call = ask(count)
    return bool((call.result()["OUTPUT0"] == x).all())
"""

EXIT_WITH_CALLS_PENDING = """
assert right(5000)
ask(64 * 100, "timed", 4)
"""

FORKED_WORKERS = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

assert right(5000)
for _ in range(3):
    x, pending = ask(64 * 20, "timed", 4)
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as workers:
        assert list(workers.map(right, [1, 100, 3000, 5000, 7, 8])) == [True] * 6
        assert right(100)
    assert (pending.result()["OUTPUT0"] == x).all()
"""

READ_IN_THE_WRONG_PROCESS = """
import os
from sonic_parsl.errors import InferenceError

_, pending = ask(64 * 20, "timed", 4)
child = os.fork()
if child == 0:
    try:
        pending.result()
    except InferenceError as error:
        os._exit(0 if "sent by another process" in str(error) and right(3) else 1)
    os._exit(2)
assert os.waitpid(child, 0)[1] == 0
pending.result()
"""

MANY_FORKS = """
import subprocess

_, pending = ask(64 * 100, "timed", 4)
for _ in range(20):
    subprocess.run(["true"], preexec_fn=lambda: None, check=True)
pending.result()
record = pending.ledger.record()
assert sum(share.rows for share in record.servers.values()) == 6400
"""

A_CHANNEL_THAT_GARBAGE_HOLDS = """
import asyncio
import gc
from sonic_parsl.client import forks
from sonic_parsl.credentials import Peer
from sonic_parsl.rpc import open_channel

async def leave():
    kept = [open_channel(Peer("127.0.0.1:1"))]
    kept.append(kept)

gc.disable()
asyncio.run(leave())
assert forks._running()
forks.wait_for_grpc_threads()
assert not forks._running()
"""

SCRIPTS = {
    "exit with calls pending": EXIT_WITH_CALLS_PENDING,
    "forked workers": FORKED_WORKERS,
    "read in the wrong process": READ_IN_THE_WRONG_PROCESS,
    "many forks": MANY_FORKS,
    "a channel that garbage holds": A_CHANNEL_THAT_GARBAGE_HOLDS,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_process_may_end_and_fork_without_a_word(
    registry: Registry, pair: list[Server], tmp_path: Path, script: str
) -> None:
    registry.show(*(server.entry() for server in pair))
    registry.ref.write(tmp_path / "pool.json")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", COMMON + script],
        env={**os.environ, POOL_ENV: str(tmp_path / "pool.json")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
