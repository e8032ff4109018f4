"""The packaged site files run as they are, but for the lines that no two sites have in common."""

from __future__ import annotations

from pathlib import Path

import yaml

from sonic_parsl import site as site_file
from tests.faults.runs import Analysis
from tests.schedulers.gridengine import SLOTS, GridEngine
from tests.schedulers.runs import KINDS, OWN_PYTHON, up
from tests.schedulers.slurm import Slurm

LACKING = {
    "device: gpu": "device: a100",
    "runtime: apptainer": "runtime: wheel",
    "image: docker://": "# image: docker://",
    "workers-per-node: 8": "workers-per-node: 2",
}
"""What the fixtures' nodes do not have: GPUs, apptainer, and as many cores as they say."""


def edited(name: str, folder: Path, edits: dict[str, str]) -> Path:
    """Return a packaged site file with some of its words replaced, and emulated devices."""
    text = site_file.find(name).read_text()
    assert text.count("# EDIT") == 5
    for before, after in (LACKING | edits).items():
        assert before in text
        text = text.replace(before, after)
    path = folder / f"{name}.yaml"
    path.write_text(f"{text}\n{yaml.safe_dump({'devices': KINDS})}")
    return path


def test_on_slurm(slurm: Slurm, analysis: Analysis, tmp_path: Path) -> None:
    path = edited("slurm", tmp_path, {'worker-init: ""': f"worker-init: {OWN_PYTHON}"})
    with up(path, analysis, 1, slurm.jobs) as site:
        assert {job.partition for job in site.settings.jobs().values()} == {"cpu", "gpu"}
        assert [(line.group, line.kind, line.fidelity) for line in site.report().servers] == [
            ("gpu", "a100", "emulated")
        ]


def test_on_grid_engine(cell: GridEngine, analysis: Analysis, tmp_path: Path) -> None:
    path = edited("gridengine", tmp_path, {"queue: gpu.q": "queue: all.q", "-pe smp 8": f"-pe smp {SLOTS // 2}"})
    with up(path, analysis, 1, cell.jobs) as site:
        assert [(line.group, line.kind, line.fidelity) for line in site.report().servers] == [
            ("gpu", "a100", "emulated")
        ]
