"""A run as `sonic-parsl status` shows it in another terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import sonic_parsl as sonic
from sonic_parsl.executors.site import Site
from tests.leaks import assert_nothing_is_left, our_processes, wait_until

PROGRAM = Path(sys.executable).with_name("sonic-parsl")
SITE = """
workers: {provider: local, workers-per-node: 1}
servers:
  good: {device: cpu, count: 1, lease: 6, walltime: 3600}
  slow: {device: cpu, count: 1, worker-init: "sleep 300"}
"""


def servers(site: Site) -> list[dict[str, Any]]:
    done = subprocess.run(
        [PROGRAM, "status", "--run-dir", site.run_dir, "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    (pool,) = json.loads(done.stdout)["pools"]
    return [{"group": group["name"], **server} for group in pool["groups"] for server in group["servers"]]


def states(site: Site) -> Counter[str]:
    return Counter(f"{server['group']} {server['state']}" for server in servers(site))


def test_another_terminal_sees_what_serves_what_is_on_its_way_and_what_was_lost(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    with sonic.load_site(tmp_path / "site.yaml") as site:
        site.pool.wait_ready(timeout_s=120)
        wait_until(lambda: states(site) == {"good ready": 1, "slow starting": 1}, 30.0, lambda: states(site))
        (good,) = [server for server in servers(site) if server["group"] == "good"]
        assert good["models"] == ["btag:1", "shape_demo:1"]
        assert 0 < good["walltime_left_s"] <= 3600
        (slow,) = [server for server in servers(site) if server["group"] == "slow"]
        assert slow["job"].isdecimal()
        assert slow["node"] is None
        (triton,) = [one for one in our_processes("tritonserver") if one.name() == "tritonserver"]
        triton.kill()
        wait_until(lambda: states(site)["good lost"] == 1, 60.0, lambda: states(site))
        (lost,) = [server for server in servers(site) if server["state"] == "lost"]
        assert "exit code -9" in lost["reason"]
    assert_nothing_is_left()
