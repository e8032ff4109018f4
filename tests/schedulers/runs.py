"""Runs on a scheduler: site files with short times, and disturbances in mid-run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import sonic_parsl as sonic
from sonic_parsl import site as site_file
from sonic_parsl.executors.site import Site
from tests.faults.runs import Analysis, tritons, wait_whole, workers
from tests.leaks import assert_nothing_is_left, wait_until

LEASE_S = 6.0
START_S = 120
KINDS = {
    "a100": {"family": "gpu", "fidelity": "emulated"},
    "u250": {"family": "fpga", "fidelity": "emulated"},
    "mk2": {"family": "ipu", "fidelity": "emulated"},
}
"""The fixtures' devices are names only: CPUs compute what they would."""
OWN_PYTHON = f"export PATH={Path(sys.executable).parent}:$PATH"
LACKING = {
    "device: gpu": "device: a100",
    "runtime: apptainer": "runtime: wheel",
    "image: docker://": "# image: docker://",
}
"""What the fixtures' nodes do not have, in the packaged site files: GPUs and apptainer."""
GRIDENGINE_WORKERS: dict[str, Any] = {"provider": "gridengine", "queue": "all.q", "request": "-V"}
GRIDENGINE_SERVERS: dict[str, Any] = {
    **GRIDENGINE_WORKERS,
    "worker-init": OWN_PYTHON,
    "request": ["-V", "-l fpga=1"],
    "device": "u250",
}
GONE_S = 90.0
"""The queue is empty of a run's jobs so long after its driver's end."""


FIRST_PORT = 20_000 + os.getpid() % 10_000
PORTS = (FIRST_PORT, FIRST_PORT + 99)
"""The range of every run's ports, whose address is that of a named interface."""


def write_site(folder: Path, workers: dict[str, Any], servers: dict[str, dict[str, Any]]) -> Path:
    """Write a site file; what is the same everywhere is added to each group."""
    common = {"lease": LEASE_S, "start-timeout": START_S, "serve": ["btag"], "walltime": "00:30:00"}
    site = {
        "workers": {"workers-per-node": 2, "walltime": "00:30:00", "worker-init": OWN_PYTHON, **workers},
        "servers": {label: {**common, **group} for label, group in servers.items()},
        "devices": KINDS,
        "driver": {"run-dir": str(folder / "runs"), "address": "lo", "port-range": list(PORTS)},
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(site))
    return path


def packaged(name: str, edits: dict[str, str]) -> str:
    """Return a packaged site file with some of its words replaced, and emulated devices."""
    text = site_file.find(name).read_text()
    assert text.count("# EDIT") == 5
    for before, after in (LACKING | edits).items():
        assert before in text
        text = text.replace(before, after)
    return f"{text}\n{yaml.safe_dump({'devices': KINDS})}"


@contextmanager
def up(path: Path, analysis: Analysis, servers: int, jobs: Callable[[], list[str]]) -> Iterator[Site]:
    """Bring a site up, and take the histograms of an undisturbed run of it for right; at the end nothing is left.

    Parameters
    ----------
    jobs
        Returns what is in the queue.
    """
    with sonic.load_site(path) as site:
        wait_whole(site, servers)
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        yield site
    wait_until(lambda: not jobs(), GONE_S, what=jobs)
    assert_nothing_is_left()


@contextmanager
def driver(site: Path, data: Path, analysis: str | Path = "btag_ttbar") -> Iterator[subprocess.Popen[str]]:
    """Run an analysis as a user would; what it says is in ``driver.log`` beside the site file."""
    program = str(Path(sys.executable).with_name("sonic-parsl"))
    # Whoever started the tests in the background had them ignore Ctrl-C; a driver in a terminal does not.
    argv = ["env", "--default-signal=INT", program, "run", str(analysis), str(data), "--chunksize", "100"]
    log = (site.parent / "driver.log").open("w+")
    with (
        log,
        subprocess.Popen(
            [*argv, "--site", str(site), "--output", str(site.parent / "out")], stdout=log, stderr=log, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def at_work() -> bool:
    """Return whether chunks are being scored."""
    return bool(tritons()) and any(process.cpu_times().user > 3.0 for process in workers())
