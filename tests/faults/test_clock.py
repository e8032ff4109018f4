"""A wall clock that jumps under a whole run: driver, registry, agents, workers and what starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sonic_parsl.server.runtimes import SHARED_MEMORY
from tests.faults.clock import Clock
from tests.faults.runs import Analysis, write_site
from tests.leaks import assert_nothing_is_left

RUN = """
import sys
from pathlib import Path
import sonic_parsl as sonic
from tests.faults.clock import Clock
from tests.faults.runs import Analysis

def ready():
    return {entry.info.id for entry in site.pool.table.ready}

if __name__ == "__main__":
    path, by, data, site_file = sys.argv[1:]
    clock, analysis = Clock(Path(path)), Analysis(Path(data))
    with sonic.load_site(site_file) as site:
        site.wait_ready()
        analysis.learn_undisturbed(analysis.run(site.coffea_executor(status=False), chunksize=400))
        before = ready()
        # Large chunks: under this clock each takes half a second longer.
        analysis.check(analysis.run_and(lambda: clock.jump(by), site, chunksize=400))
        assert before == ready(), site.pool.departures
        assert site.report().retries == 0
    print("right", flush=True)
"""


@pytest.mark.parametrize("by", ["+2h", "-2h"])
def test_a_clock_that_jumps_in_mid_run_costs_nothing(by: str, analysis: Analysis, tmp_path: Path) -> None:
    script, clock = tmp_path / "run.py", Clock(tmp_path / "clock")
    script.write_text(RUN)
    there = set(SHARED_MEMORY.glob("*faketime*"))
    arguments = map(str, [script, tmp_path / "clock", by, analysis.path, write_site(tmp_path)])
    done = subprocess.run(
        ["bash", "-c", f'{clock.shell}; exec "$@"', "bash", sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
    assert_nothing_is_left()
    for left in set(SHARED_MEMORY.glob("*faketime*")) - there:
        left.unlink()  # the clock's own, of processes that were killed
