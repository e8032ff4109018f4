"""A wall clock that jumps under a whole run: driver, registry, agents, workers and what starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sonic_parsl.server.runtimes import SHARED_MEMORY
from tests.faults.clock import Clock
from tests.faults.runs import Analysis, write_site
from tests.leaks import assert_nothing_is_left

HOURS_S = 7200

RUN = """
import sys, time
from datetime import datetime
from pathlib import Path
import sonic_parsl as sonic
from tests.faults.clock import Clock
from tests.faults.runs import Analysis
from tests.leaks import wait_until

def ready():
    return {entry.info.id for entry in site.pool.table.ready}

def jump():
    clock.jump(by_s)
    wait_until(lambda: abs(time.time() - datetime.now().timestamp() - by_s) < 60, 5)

if __name__ == "__main__":
    folder, by_s, data, site_file = sys.argv[1:]
    clock, by_s, analysis = Clock(Path(folder)), int(by_s), Analysis(Path(data))
    with sonic.load_site(site_file) as site:
        site.wait_ready()
        # Large chunks: under this clock each takes half a second longer.
        analysis.check(analysis.run(site.coffea_executor(status=False), chunksize=400))
        before = ready()
        analysis.check(analysis.run_and(jump, site, chunksize=400))
        assert before == ready(), site.pool.departures
        assert site.report().retries == 0
    print("right", flush=True)
"""


@pytest.mark.parametrize("by_s", [HOURS_S, -HOURS_S])
def test_a_clock_that_jumps_in_mid_run_costs_nothing(by_s: int, analysis: Analysis, tmp_path: Path) -> None:
    script, clock = tmp_path / "run.py", Clock(tmp_path / "clock")
    script.write_text(RUN)
    there = set(SHARED_MEMORY.glob("*faketime*"))
    site = write_site(tmp_path, init=clock.shell, worker_init=clock.shell)
    arguments = map(str, [script, tmp_path / "clock", by_s, analysis.path, site])
    done = subprocess.run(
        [sys.executable, *arguments], env=clock.env, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
    assert_nothing_is_left()
    for left in set(SHARED_MEMORY.glob("*faketime*")) - there:
        left.unlink()  # the clock's own, of processes that were killed
