"""The command line in this process, and one site that is up, to be given what is wrong."""

from __future__ import annotations

import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import CliRunner, Result

from sonic_parsl import workflows
from sonic_parsl.cli import main
from sonic_parsl.executors.site import Site, load_site
from sonic_parsl.workflows import samples

PACKAGED = Path(workflows.__file__).parent / "models"

Call: TypeAlias = Callable[..., Result]

SITE = """
workers: {workers-per-node: 1}
servers: {triton: {count: 1, lease: 6, start-timeout: 120, models: models}}
driver: {run-dir: runs}
"""

PYTHON_MODEL = """
backend: "python"
max_batch_size: 64
input [{ name: "x" data_type: %s dims: [2] }]
output [{ name: "y" data_type: %s dims: [2] }]
version_policy { all { } }
parameters { key: "tags.1" value { string_value: "run2" } }
"""

SAME = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in rows]
"""

BROKEN = """
class TritonPythonModel:
    def execute(self, requests):
        raise ValueError("this model breaks on every input")
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Return a function that runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger("parsl").level
    yield lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("parsl").setLevel(level)


def told(result: Result) -> str:
    """Return what a failed command says, without the word Error before it."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.removeprefix("Error: ").removesuffix("\n")


def assert_says(text: str, sentence: str) -> None:
    """Check that a text is this sentence, where ``…`` stands for anything."""
    assert re.fullmatch(re.escape(sentence).replace("…", "(?s:.*)"), text), text


@pytest.fixture(scope="session")
def events() -> Path:
    """A file of 200 real events."""
    return samples.path("nano_tt_v12")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker, and one server with the packaged models and three small ones."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGED, folder / "models")
    _write_model(folder / "models" / "small", "TYPE_FP32", SAME)
    _write_model(folder / "models" / "whole", "TYPE_INT32", SAME)
    _write_model(folder / "models" / "broken", "TYPE_FP32", BROKEN)
    (folder / "one.yaml").write_text(SITE.replace("runs", str(folder / "runs")))
    with load_site(folder / "one.yaml") as opened:
        opened.wait_ready()
        yield opened


def _write_model(folder: Path, datatype: str, code: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(PYTHON_MODEL % (datatype, datatype))
