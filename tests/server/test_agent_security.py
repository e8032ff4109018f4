"""An agent is let in by its block's certificate only, and so are the clients of its Triton."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sonic_parsl.credentials import Peer, block_name
from sonic_parsl.errors import InferenceError
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import POOL_ENV
from sonic_parsl.protocol import ServerEntry
from sonic_parsl.server.spec import Luggage, ServerSpec
from tests.leaks import wait_until
from tests.server.agents import (
    GONE_S,
    LEASE_S,
    MODELS,
    START_S,
    RunningAgent,
    agent,
    ask,
    initialized_by,
    rows_of,
)


def test_one_whose_certificate_is_of_another_run_starts_nothing(pool: ServerPool, tmp_path: Path) -> None:
    forged = CertificateAuthority(pool.run_id).issue(block_name(pool.run_id, "g", "0"))
    with agent(pool, tmp_path, MODELS, "identity", ref=replace(pool.ref, credentials=forged)) as server:
        assert server.exit_code() == 1
        said = server.log.read_text()
    assert "shows no certificate of this run" in said
    assert "Traceback" not in said
    assert "PRIVATE KEY" not in said
    assert all(entry.info.group != server.group for entry in pool.servers)


def test_one_that_speaks_for_another_block_is_refused_and_ends(pool: ServerPool, tmp_path: Path) -> None:
    with agent(pool, tmp_path, MODELS, "identity", ref=pool.admit("other", "0")) as server:
        assert server.exit_code() == 1
        said = server.log.read_text()
    assert re.search(rf"PERMISSION_DENIED: block-other-0.* may not speak for server {server.group}-0-", said)


def test_its_triton_takes_nobody_without_a_certificate_of_the_run_and_its_key_lies_on_no_disk(
    pool: ServerPool, tmp_path: Path
) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        peer = server.ready_peer()
        for stranger in (Peer(peer.address), replace(peer, certificate=None, key=None)):
            with pytest.raises(InferenceError, match="cannot be reached"):
                ask(stranger, "identity", rows_of(1, 32), timeout_s=5.0)
        (option,) = [word for word in server.triton().cmdline() if word.startswith("--grpc-server-key=")]
        assert not Path(option.partition("=")[2]).parent.exists()
        np.testing.assert_array_equal(ask(peer, "identity", rows_of(5, 32)), rows_of(5, 32))


def test_a_client_sends_nothing_to_a_triton_that_shows_the_certificate_of_another_block_of_the_run(
    pool: ServerPool, tmp_path: Path
) -> None:
    with agent(pool, tmp_path, MODELS, "identity") as server:
        info, rows = server.wait_for("ready").info, rows_of(500, 32)
        for other in (replace(info, block_id="1"), replace(info, group="other")):
            with pytest.raises(InferenceError, match="cannot be reached"):
                ask(pool.ref.server(other), "identity", rows, timeout_s=5.0)
        np.testing.assert_array_equal(ask(pool.ref.server(info), "identity", rows), rows)
        entry = wait_until_told(server, least=len(rows))
    assert entry.load.rows < 2 * len(rows)


def wait_until_told(server: RunningAgent, *, least: int) -> ServerEntry:
    """Wait until the pool hears of so many rows; return what it heard."""
    wait_until(lambda: server.entry and server.entry.load.rows >= least, 15.0, "its load was not told")
    assert server.entry is not None
    return server.entry


def test_one_that_is_killed_while_triton_starts_leaves_no_key(pool: ServerPool, tmp_path: Path) -> None:
    repository = initialized_by(tmp_path, "import time", "time.sleep(600)")
    with agent(pool, tmp_path, repository, "identity") as server:
        server.stub()
        (option,) = [word for word in server.triton().cmdline() if word.startswith("--grpc-server-key=")]
        key = Path(option.partition("=")[2])
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.parent.stat().st_mode & 0o777 == 0o700
        server.process.kill()
        wait_until(lambda: not key.parent.exists(), GONE_S)


def test_one_that_cannot_find_the_pool_says_where_it_looked(pool: ServerPool, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    ServerSpec(group="g", repository=MODELS, models=("identity",)).write(spec)
    argv = [sys.executable, "-m", "sonic_parsl.server.agent", "--spec", str(spec), "--block", "0"]
    env = {**os.environ, POOL_ENV: str(tmp_path / "ended.json")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"The pool's file {tmp_path / 'ended.json'} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_that_carries_its_luggage_needs_no_file_of_the_pool(
    pool: ServerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(POOL_ENV, raising=False)
    spec = ServerSpec(group="carried", repository=MODELS, models=("identity",), lease_s=LEASE_S)
    argv = [sys.executable, "-m", "sonic_parsl.server.agent", "--block", "0"]
    with psutil.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdin.write(Luggage(spec, pool.admit("carried", "0")).pack().encode())
        process.stdin.close()
        wait_until(lambda: [one for one in pool.table.ready if one.info.group == "carried"], START_S)
        (entry,) = [one for one in pool.table.ready if one.info.group == "carried"]
        np.testing.assert_array_equal(ask(pool.ref.server(entry.info), "identity", rows_of(5, 32)), rows_of(5, 32))
        process.terminate()
        assert process.wait(30.0) == 0
