"""Each benchmark runs and says what it is to say; how fast is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.leaks import assert_nothing_is_left
from tests.schedulers.apt import cannot

ROOT = Path(__file__).parents[1]
AS_ROOT = ("elasticity",)
"""These start a scheduler."""
NAMES = ("overhead", "overlap", "peer_coffea", "balance", "recovery", *AS_ROOT)
RUN = [name for name in NAMES if os.geteuid() == 0 or name not in AS_ROOT]
KEYS = {"what", "ours", "peer", "unit", "ratio", "reach"}
RUN_S = 480
"""On a busy machine; it takes about two minutes otherwise."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What each benchmark writes; they run side by side, since most of their time they wait."""
    folder = tmp_path_factory.mktemp("benchmarks")
    running = {name: start(name, folder) for name in RUN}
    try:
        said = {name: process.communicate(timeout=RUN_S)[0] for name, process in running.items()}
    finally:
        for process in running.values():
            end(process)
    assert not {name: said[name] for name, process in running.items() if process.returncode}
    yield {name: json.loads((folder / f"{name}.json").read_text()) for name in RUN}
    assert_nothing_is_left()


def start(name: str, folder: Path) -> psutil.Popen:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(folder / f"{name}.json")]
    return psutil.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: psutil.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(RUN_S + 60)
def test_each_benchmark_writes_rows_of_the_same_form(name: str, rows: dict[str, Any]) -> None:
    if name not in RUN:
        cannot("only root can start a scheduler")
    assert rows[name]
    for row in rows[name]:
        assert row.keys() == KEYS
        assert isinstance(row["what"], str)
        assert isinstance(row["unit"], str)
        assert all(row[key] > 0 for key in ("ours", "peer", "ratio"))
        assert row["reach"] is None or row["reach"] > 0
    assert len({row["what"] for row in rows[name]}) == len(rows[name])
