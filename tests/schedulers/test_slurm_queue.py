"""A real Slurm that does not start what it is asked for, and drivers that leave jobs in its queue."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from tests.faults.runs import EVENTS, Analysis
from tests.leaks import assert_nothing_is_left, wait_until
from tests.schedulers.daemons import command
from tests.schedulers.runs import GONE_S, at_work, driver, write_site
from tests.schedulers.slurm import CPUS, Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}
START_S, RUN_S = 90.0, 180.0
SMALL = 25
"""Events of a chunk, where a run should go on for a while."""
ENOUGH, SHARE = 0.1, 0.25
"""Of a run's rows, so many are to be asked for after a server has joined; of these, so many are its own at least."""
BROKEN = """
from sonic_parsl.workflows.btag_ttbar import BTagTTbar, schema


class Broken(BTagTTbar):
    def process(self, events):
        raise ValueError("it breaks on every chunk")
"""


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


def test_a_run_starts_with_its_first_server_and_later_ones_take_their_share(
    slurm: Slurm, analysis: Analysis, tmp_path: Path
) -> None:
    fpgas = {"provider": "slurm", "partition": "fpga", "request": "--gres=fpga:1", "device": "u250", "count": 2}
    ask = ["--partition=fpga", "--gres=fpga:1", "--output=/dev/null", "--parsable"]
    other = command("sbatch", *ask, "--wrap", "sleep 600").strip()
    with sonic.load_site(write_site(tmp_path, WORKERS, {"fpga": fpgas})) as site:
        wait_until(lambda: len(site.pool.table.ready) == 1, START_S, what=slurm.jobs)
        assert any(" fpga PENDING " in line for line in slurm.jobs())

        before: list[int] = []

        def release() -> None:
            command("scancel", other)
            wait_until(lambda: len(site.pool.table.ready) == 2, START_S, what=slurm.jobs)
            before.append(max(entry.load.rows for entry in site.pool.table.ready))

        analysis.check(analysis.run_and(release, site, chunksize=SMALL))
        first, later = site.report().servers
        together = first.rows + later.rows - before[0]
        assert together > ENOUGH * (first.rows + later.rows), "the run ended too soon after it had joined"
        assert later.rows > SHARE * together, (first, later, before)
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)


def test_two_runs_share_a_range_of_ports(slurm: Slurm, analysis: Analysis, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    with ExitStack() as stack:
        drivers = []
        for folder in folders:
            folder.mkdir()
            drivers.append(stack.enter_context(driver(write_site(folder, WORKERS, {"ipu": group()}), analysis.path)))
        for folder, process in zip(folders, drivers, strict=True):
            assert process.wait(timeout=RUN_S) == 0, (folder / "driver.log").read_text()
            report = json.loads((folder / "out" / "report.json").read_text())
            assert report["events_in"] == report["events_out"] == EVENTS
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


def test_an_analysis_that_fails_leaves_no_job(slurm: Slurm, analysis: Analysis, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    with driver(write_site(tmp_path, WORKERS, {"ipu": group()}), analysis.path, broken) as process:
        assert process.wait(timeout=RUN_S) == 1
    assert "it breaks on every chunk" in (tmp_path / "driver.log").read_text()
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
