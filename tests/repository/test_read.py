"""What is read from a model repository, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from sonic_parsl.errors import RepositoryError
from sonic_parsl.protocol import TensorSpec
from sonic_parsl.repository import check, read, require, served

Write = Callable[..., Path]
Identity = Callable[..., bytes]

BARE = 'backend: "onnxruntime" max_batch_size: 64 '


def test_a_model_is_read_as_its_configuration_says(tmp_path: Path, write: Write) -> None:
    path = write("btag")
    (folder,) = read(tmp_path)
    assert (folder.name, folder.path, folder.backend) == ("btag", path, "onnxruntime")
    assert (folder.max_batch_size, folder.versions, folder.tags, folder.numeric_kind) == (64, ("1",), {}, "fp32")
    assert folder.inputs == (TensorSpec("x", "FP32", (3,)),)
    assert folder.outputs == (TensorSpec("y", "FP32", (3,)),)
    assert check(tmp_path, backends=["onnxruntime"]) == []


def test_strings_have_the_kserve_datatype_bytes(tmp_path: Path, write: Write, config: str, identity: Identity) -> None:
    strings = identity(dtype=TensorProto.STRING)
    write(text=config.replace("FP32", "STRING"), files={"1/model.onnx": strings})
    write("bare", BARE, {"1/model.onnx": strings})
    assert [folder.inputs for folder in require(tmp_path)] == [(TensorSpec("x", "BYTES", (3,)),)] * 2


@pytest.mark.parametrize(
    ("config", "shape", "batch", "row"),
    [
        (BARE, ("rows", "tracks", 5), 64, (-1, 5)),
        (BARE, ("rows",), 64, (1,)),
        ('platform: "onnxruntime_onnx"', ("rows", 3), 4, (3,)),
        ('backend: "onnxruntime"', (2, 3), 0, (2, 3)),
    ],
    ids=["symbolic", "a-number-a-row", "batch-filled-in", "no-batch"],
)
def test_without_sections_the_tensors_come_from_the_onnx_file(
    tmp_path: Path,
    write: Write,
    identity: Identity,
    config: str,
    shape: tuple[Any, ...],
    batch: int,
    row: tuple[int, ...],
) -> None:
    write(text=config, files={"1/model.onnx": identity(shape, TensorProto.INT64)})
    (folder,) = require(tmp_path)
    assert (folder.backend, folder.max_batch_size) == ("onnxruntime", batch)
    assert folder.inputs == (TensorSpec("x", "INT64", row),)
    assert folder.outputs == (TensorSpec("y", "INT64", row),)


def test_an_onnx_model_may_be_a_folder(tmp_path: Path, write: Write, identity: Identity) -> None:
    write(text=BARE, files={"1/model.onnx/model.onnx": identity()})
    assert require(tmp_path)[0].inputs == (TensorSpec("x", "FP32", (3,)),)


def test_a_reshaped_tensor_is_held_against_the_shape_that_the_model_sees(
    tmp_path: Path, write: Write, config: str, identity: Identity
) -> None:
    reshaped = config.replace("dims: [ 3 ]", "dims: [ 1 ] reshape: { shape: [ ] }")
    write(text=reshaped, files={"1/model.onnx": identity(("rows",))})
    assert require(tmp_path)[0].inputs == (TensorSpec("x", "FP32", (1,)),)


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", ("10",)),
        ("version_policy: { latest: { num_versions: 2 } }", ("9", "10")),
        ("version_policy: { latest: { num_versions: 7 } }", ("2", "9", "10")),
        ("version_policy: { all: { } }", ("2", "9", "10")),
        ("version_policy: { specific: { versions: [ 10, 2 ] } }", ("2", "10")),
    ],
)
def test_versions_are_those_that_the_policy_serves(
    tmp_path: Path, write: Write, config: str, identity: Identity, policy: str, versions: tuple[str, ...]
) -> None:
    write(text=config + policy, files={f"{version}/model.onnx": identity() for version in (10, 2, 9)})
    assert require(tmp_path)[0].versions == versions


def test_each_version_is_served_with_its_tags_and_digests(
    tmp_path: Path, write: Write, config: str, identity: Identity
) -> None:
    parameters = """version_policy: { all: { } }
        parameters { key: "tags.2" value { string_value: "run3, prod" } }
        parameters { key: "numeric_kind" value { string_value: "ap_fixed<16,6>" } }"""
    write(text=config + parameters, files={"1/model.onnx": identity(), "2/model.onnx": identity(("n", 3))})
    (folder,) = require(tmp_path)
    first, second = served(folder)
    assert (first.version, first.tags, second.version, second.tags) == ("1", (), "2", ("run3", "prod"))
    assert first.source_digest == folder.source_digest("1") != second.source_digest
    assert first.artifact_digest == second.artifact_digest == folder.artifact_digest
    assert (second.name, second.max_batch_size, second.numeric_kind) == ("btag", 64, "ap_fixed<16,6>")
    assert (second.inputs, second.outputs) == (folder.inputs, folder.outputs)


def test_models_come_in_the_order_asked_for_and_hidden_folders_are_none(tmp_path: Path, write: Write) -> None:
    for name in ("b", "a", ".git", "c"):
        write(name)
    (tmp_path / "README.md").touch()
    assert [folder.name for folder in read(tmp_path)] == ["a", "b", "c"]
    assert [folder.name for folder in read(tmp_path, ["c", "a", "c"])] == ["c", "a"]


def test_what_cannot_be_told_is_refused_and_all_of_it_named(tmp_path: Path, write: Write) -> None:
    write("a", "nonsense")
    write("b")
    with pytest.raises(RepositoryError, match=r"has 2 problems:\n  .*no model 'z'.*\n  a/config.pbtxt, line 1, cannot"):
        read(tmp_path, ["a", "b", "z"])
    write("a", BARE, {"1/model.onnx": b"no onnx"})
    with pytest.raises(RepositoryError, match=r"a/1/model\.onnx cannot be loaded"):
        read(tmp_path)


def test_requiring_raises_every_problem_in_one_message(tmp_path: Path, write: Write, config: str) -> None:
    write("a", config.replace("FP32", "FP16"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError) as caught:
        require(tmp_path, backends=["python"])
    problems = check(tmp_path, backends=["python"])
    assert len(problems) == 4
    assert str(caught.value) == f"The model repository {tmp_path} has 4 problems:\n  " + "\n  ".join(problems)


def test_onnxruntime_is_imported_only_when_an_onnx_file_is_opened() -> None:
    code = "import sys, sonic_parsl.repository; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
