"""Models that are not those of the pool that a run attaches to: told before anything of the run starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import SonicError
from sonic_parsl.pool import named
from sonic_parsl.pool.attached import AttachedPool
from tests.bad_input.conftest import PACKAGED, Call, assert_says, told
from tests.leaks import assert_nothing_is_left, our_processes

Change: TypeAlias = Callable[[Path], object]
"""Changes a copy of the pool's repository."""

PROGRAM = Path(sys.executable).with_name("sonic-parsl")
SITE = """
workers: {workers-per-node: 1}
servers: {triton: {count: 1, lease: 6, start-timeout: 120}}
"""
ANALYSIS = """
from sonic_parsl.workflows.btag_ttbar import BTagTTbar
processor = BTagTTbar()
models = "models"
"""
START_S = 120.0
WAY_OUT = (
    "Name the repository that the pool was started with, or start a pool with this one: "
    "`sonic-parsl pool start --models {0} --name ...`."
)
OTHERS = "The pool does not serve the models of {0}: "


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder for state, with a pool named mine of the packaged models."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "one.yaml").write_text(SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        site = str(folder / "one.yaml")
        subprocess.run([PROGRAM, "pool", "start", "--site", site, "--name", "mine", "--daemon"], check=True)
        pool = AttachedPool(named.find("mine").ref_path)
        pool.start()
        pool.wait_ready(timeout_s=START_S)
        pool.close()
        yield folder / "state"
        subprocess.run([PROGRAM, "pool", "stop", "mine"], check=True)
    assert_nothing_is_left()


def other_weights(models: Path) -> None:
    with (models / "btag" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")


def another_name(models: Path) -> None:
    shutil.rmtree(models / "shape_demo")
    config = (models / "btag").rename(models / "ctag") / "config.pbtxt"
    config.write_text(config.read_text().replace('"btag"', '"ctag"'))


CASES: list[tuple[str, Change, str]] = [
    ("no folder", shutil.rmtree, "The model repository {0} has a problem:\n  There is no model repository …"),
    (
        "a model that differs",
        other_weights,
        OTHERS + "btag version 1 has source digest … in the pool and source digest … in the folder. " + WAY_OUT,
    ),
    (
        "a newer version",
        lambda models: (models / "btag" / "1").rename(models / "btag" / "2"),
        (
            OTHERS + "btag version 1 has source digest … in the pool and no file in the folder; "
            "btag version 2 has no file in the pool and source digest … in the folder. " + WAY_OUT
        ),
    ),
    (
        "another model only",
        another_name,
        OTHERS + "it serves none of ctag, only btag, shape_demo. " + WAY_OUT,
    ),
]


@pytest.mark.parametrize(("change", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_models_that_the_pool_does_not_serve_stop_a_run(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: Path,
    events: Path,
    change: Change,
    sentence: str,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    shutil.copytree(PACKAGED, tmp_path / "models")
    change(tmp_path / "models")
    (tmp_path / "mine.py").write_text(ANALYSIS)
    named_here = ("run", "btag_ttbar", events, "--models", "models", "--pool", "mine")
    assert_says(told(call(*named_here)), sentence.format("models"))
    assert_says(told(call("run", "mine.py", events, "--pool", "mine")), sentence.format(tmp_path / "models"))
    with pytest.raises(SonicError, match="models"):
        sonic.load_site(state.parent / "one.yaml", models=tmp_path / "models", pool="mine")
    assert not our_processes("worker_pool"), "workers were started for nothing"


def test_the_same_models_elsewhere_are_fine_and_no_models_too(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path, events: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    shutil.copytree(PACKAGED / "btag", tmp_path / "models" / "btag")
    result = call("run", "btag_ttbar", events, "--models", "models", "--pool", "mine")
    assert result.exit_code == 0, result.output
    with sonic.load_site(state.parent / "one.yaml", pool="mine") as site:
        site.wait_ready()
