"""The packaged site files, and the README's configuration, run as they are, but for what no two sites have in common."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.faults.runs import Analysis
from tests.leaks import assert_nothing_is_left, wait_until
from tests.live.conftest import PACKAGED
from tests.schedulers.gridengine import SLOTS, GridEngine
from tests.schedulers.runs import GONE_S, OWN_PYTHON, START_S, packaged, up
from tests.schedulers.slurm import Slurm
from tests.test_docs import ROOT, python_blocks

FEW = {"workers-per-node: 8": "workers-per-node: 2"}


def test_on_slurm(slurm: Slurm, analysis: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(packaged("slurm", {**FEW, 'worker-init: ""': f"worker-init: {OWN_PYTHON}"}))
    with up(path, analysis, 1, slurm.jobs) as site:
        assert {job.partition for job in site.settings.jobs().values()} == {"cpu", "gpu"}
        assert [(line.group, line.kind, line.fidelity) for line in site.report().servers] == [
            ("gpu", "a100", "emulated")
        ]


def test_on_grid_engine(cell: GridEngine, analysis: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "gridengine.yaml"
    path.write_text(
        packaged("gridengine", {**FEW, "queue: gpu.q": "queue: all.q", "-pe smp 8": f"-pe smp {SLOTS // 2}"})
    )
    with up(path, analysis, 1, cell.jobs) as site:
        assert [(line.group, line.kind, line.fidelity) for line in site.report().servers] == [
            ("gpu", "a100", "emulated")
        ]


def test_parsl_configuration_of_the_readme_on_slurm(slurm: Slurm, tmp_path: Path) -> None:
    own, app = (
        next(block.code for block in python_blocks((ROOT / "README.md").read_text()) if word in block.code)
        for word in ("SlurmProvider(", "@parsl.python_app")
    )
    for before, after in {
        "10.0.0.1": "127.0.0.1",
        "/shared/my_repository": str(PACKAGED),
        'runtime="host"': 'runtime="wheel"',
    }.items():
        assert before in own
        own = own.replace(before, after)
    with_site = 'with sonic.load_site("local"):'
    assert app.count(with_site) == 1
    script = tmp_path / "analysis.py"
    script.write_text(f"import sonic_parsl as sonic\n{own}\n{app.replace(with_site, 'with parsl.load(config):')}")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=2 * START_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)
    assert_nothing_is_left()
