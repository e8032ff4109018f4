"""A user's machine: a site of two servers, and a repository with a model for each thing that may happen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sonic_parsl import workflows
from sonic_parsl.executors.site import Site, load_site

PACKAGED = Path(workflows.__file__).parent / "models"
TEST_MODELS = Path(__file__).parents[1] / "models"
LEASE_S = 6.0
SERVICE_S = 0.3
"""How long the model named slow takes for a request."""

SITE = """
workers: {{provider: local, workers-per-node: {workers}}}
servers:
  triton: {{device: cpu, count: {count}, lease: {lease_s:g}, start-timeout: 120, models: {models}}}
driver: {{run-dir: {folder}/runs}}
"""

PYTHON_MODEL = """
name: "%s"
backend: "python"
max_batch_size: 64
input [{ name: "x" data_type: %s dims: [2] }]
output [{ name: "y" data_type: %s dims: [2] }]
%s
"""

TIMES_VERSION = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", self.version * x)]) for x in rows]
"""

BROKEN = """
class TritonPythonModel:
    def execute(self, requests):
        raise ValueError("this model breaks on every input")
"""

TWO_VERSIONS = """version_policy { all { } }
parameters { key: "tags.1" value { string_value: "run2" } }
parameters { key: "tags.2" value { string_value: "run3,new" } }
"""


def write_site(folder: Path, *, count: int = 2, workers: int = 2, models: Path | str = "packaged") -> Path:
    """Write a site file whose runs stay in `folder`."""
    path = folder / "live-site.yaml"
    path.write_text(SITE.format(folder=folder, count=count, workers=workers, models=models, lease_s=LEASE_S))
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged models, identity, and models that are slow, whole-numbered, broken or there in two versions."""
    root = tmp_path_factory.mktemp("repository") / "models"
    shutil.copytree(PACKAGED, root)
    shutil.copytree(TEST_MODELS / "identity", root / "identity")
    slow = shutil.copytree(TEST_MODELS / "timed", root / "slow") / "config.pbtxt"
    slow.write_text(slow.read_text().replace('"timed"', '"slow"').replace('"10"', f'"{1e3 * SERVICE_S:g}"'))
    _write_python_model(root / "twice", TIMES_VERSION, versions=2, more=TWO_VERSIONS)
    _write_python_model(root / "whole", TIMES_VERSION, datatype="TYPE_INT32")
    _write_python_model(root / "broken", BROKEN)
    return root


def _write_python_model(
    folder: Path, code: str, *, versions: int = 1, datatype: str = "TYPE_FP32", more: str = ""
) -> None:
    for version in range(1, versions + 1):
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(PYTHON_MODEL % (folder.name, datatype, datatype, more))


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two servers and two workers on this machine."""
    with load_site(write_site(tmp_path_factory.mktemp("site"), models=repository)) as opened:
        opened.wait_ready()
        yield opened
