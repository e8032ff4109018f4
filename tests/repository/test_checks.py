"""What is wrong with a model repository, in which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from sonic_parsl.repository import check

Write = Callable[..., Path]
Onnx = Callable[..., bytes]

BARE = 'backend: "onnxruntime" max_batch_size: 64 '
POLICY = "version_policy: { %s }"
PARAMETER = 'parameters { key: "%s" value { string_value: "%s" } }'
KINDS = "BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, STRING, BF16"
X = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]'

WRONG_CONFIGS = {
    "unparsable": (
        "dims: [ 3 ]",
        "dim: [ 3 ]",
        (
            ', line 4, cannot be parsed (Message type "inference.ModelInput" has no field named "dim"); '
            "correct it as Triton's ModelConfig asks."
        ),
    ),
    "name": (
        X,
        X + 'name: "b"',
        " names the model 'b', but its folder is 'btag'; give both one name, or leave the name out of the file.",
    ),
    "no backend": (
        'backend: "onnxruntime"',
        "",
        ' names no backend; add a line such as backend: "onnxruntime".',
    ),
    "platform": (
        'backend: "onnxruntime"',
        'platform: "caffe"',
        " names the unknown platform 'caffe'; name a backend instead.",
    ),
    "batch": (
        "max_batch_size: 64",
        "max_batch_size: -1",
        " has max_batch_size -1; give the most rows of a request, or 0 for a model without a batch dimension.",
    ),
    "policy names what is absent": (
        X,
        X + POLICY % "specific: { versions: [ 1, 7 ] }",
        " serves version 7, which has no folder (there are: 1); add btag/7, or take it out of version_policy.",
    ),
    "policy serves none": (
        X,
        X + POLICY % "latest: { }",
        " has a version_policy that serves no version; name one, or serve the latest.",
    ),
    "numeric kind": (
        X,
        X + PARAMETER % ("numeric_kind", "fp12"),
        " has the unknown numeric_kind 'fp12'; use fp32, fp16, bf16, int8 or ap_fixed<width,integer bits>.",
    ),
    "tags": (
        X,
        X + PARAMETER % ("tags.3", "prod"),
        " has tags for version 3, which has no folder (there are: 1); correct the parameter tags.3, or remove it.",
    ),
    "duplicate": (X, X + X, " has 2 inputs named 'x'; give each its own name."),
    "no datatype": (
        "data_type: TYPE_FP32",
        "",
        f" gives input 'x' no data_type that Triton knows; use TYPE_ and one of {KINDS}.",
    ),
    "zero dims": (
        "[ 3 ]",
        "[ 0 ]",
        " gives input 'x' the dims [0]; each is 1 or more, or -1 for any size.",
        (
            " gives input 'x' the dims [0], but in btag/1/model.onnx they are [3] after the batch dimension; "
            "make them agree."
        ),
    ),
    "no dims": (
        "dims: [ 3 ]",
        "",
        " gives input 'x' no dims; write its shape without the batch dimension, -1 for any size.",
        (
            " gives input 'x' the dims [], but in btag/1/model.onnx they are [3] after the batch dimension; "
            "make them agree."
        ),
    ),
    "tensor without a name": (
        'name: "x"',
        "",
        " has an input without a name; give it the name it has in the model.",
        " has no input 'x', which btag/1/model.onnx needs; add it to the input section.",
    ),
    "datatype": (
        "TYPE_FP32",
        "TYPE_FP64",
        " gives input 'x' the type FP64, but in btag/1/model.onnx it is FP32; make them agree.",
    ),
    "dims": (
        "[ 3 ]",
        "[ 5 ]",
        (
            " gives input 'x' the dims [5], but in btag/1/model.onnx they are [3] after the batch dimension; "
            "make them agree."
        ),
    ),
    "rank": (
        "[ 3 ]",
        "[ -1, 3 ]",
        (
            " gives input 'x' the dims [-1, 3], but in btag/1/model.onnx they are [3] after the batch dimension; "
            "make them agree."
        ),
    ),
    "output that is not there": (
        'name: "y"',
        'name: "z"',
        " has an output 'z' that btag/1/model.onnx lacks (it has: y); correct the name.",
    ),
}


@pytest.mark.parametrize(
    ("old", "new", "sentences"),
    [(old, new, sentences) for old, new, *sentences in WRONG_CONFIGS.values()],
    ids=list(WRONG_CONFIGS),
)
def test_a_wrong_configuration_is_told_in_a_sentence(
    tmp_path: Path, write: Write, config: str, old: str, new: str, sentences: list[str]
) -> None:
    write(text=config.replace(old, new, 1))
    assert check(tmp_path) == [f"btag/config.pbtxt{sentence}" for sentence in sentences]


def test_any_size_agrees_with_any_size(tmp_path: Path, write: Write, config: str, identity: Onnx) -> None:
    write("fixed", config.replace("[ 3 ]", "[ -1 ]"))
    write("free", files={"1/model.onnx": identity(("rows", "tracks"))})
    assert check(tmp_path) == []


def test_a_repository_that_is_not_there_is_told(tmp_path: Path, write: Write) -> None:
    absent = tmp_path / "models"
    assert check(absent) == [f"There is no model repository {absent}; name a folder that has one folder a model."]
    assert check(tmp_path) == [
        f"The model repository {tmp_path} has no models; put a folder with a config.pbtxt into it."
    ]
    write("btag")
    write("topo")
    known = "(it has: btag, topo); correct the name, or add its folder."
    assert check(tmp_path, ["btag", "qcd"]) == [f"The model repository {tmp_path} has no model 'qcd' {known}"]


def test_a_configuration_that_is_absent_or_no_text_is_told(tmp_path: Path, write: Write) -> None:
    (write("a") / "config.pbtxt").write_bytes(b'name: "\xff"')
    (write("b") / "config.pbtxt").unlink()
    assert check(tmp_path) == [
        "a/config.pbtxt is not UTF-8 text (byte 7); save it as plain text.",
        "b/config.pbtxt is missing; write one, or move the folder out of the repository.",
    ]


def test_a_backend_that_the_runtime_lacks_is_told_by_name(tmp_path: Path, write: Write, config: str) -> None:
    write(text=config.replace("onnxruntime", "tensorrt"))
    assert check(tmp_path) == []
    (problem,) = check(tmp_path, backends={"python", "onnxruntime"})
    assert problem == (
        "btag/config.pbtxt needs the backend 'tensorrt', which this Triton runtime lacks "
        "(it has: onnxruntime, python); use a runtime that has it, such as NVIDIA's container, "
        "or export the model for a backend that is here."
    )


def test_folders_that_are_no_versions_are_told(tmp_path: Path, write: Write) -> None:
    folder = write()
    for name in ("warmup", "configs", "__pycache__", ".cache"):
        (folder / name).mkdir()
    assert check(tmp_path) == []
    (folder / "1").rename(folder / "latest")
    (folder / "02").mkdir()
    rename = "is no version that Triton serves; rename it to a whole number without leading zeros, such as btag/1."
    assert check(tmp_path) == [f"btag/02 {rename}", f"btag/latest {rename}"]


def test_a_model_without_versions_is_told(tmp_path: Path, write: Write) -> None:
    write(files={})
    assert check(tmp_path) == ["btag has no version folder; put the model's files into btag/1."]


@pytest.mark.parametrize(
    ("backend", "more", "file"),
    [
        ("onnxruntime", "", "model.onnx"),
        ("python", "", "model.py"),
        ("onnxruntime", 'default_model_filename: "tagger.onnx"', "tagger.onnx"),
    ],
)
def test_a_missing_model_file_is_told_for_served_versions(
    tmp_path: Path, write: Write, config: str, identity: Onnx, backend: str, more: str, file: str
) -> None:
    text = config.replace("onnxruntime", backend) + more
    write(text=text, files={"1/README": b"", "2/README": b""})
    (problem,) = check(tmp_path)
    assert problem == f"btag/2/{file} is missing; put the model there, or name its file as default_model_filename."
    write(text=text, files={f"2/{file}": identity()})
    assert check(tmp_path) == []


def test_an_onnx_file_that_cannot_be_loaded_is_told_and_nothing_is_printed(
    tmp_path: Path, write: Write, graph: Onnx, capfd: pytest.CaptureFixture[str]
) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    write("damaged", files={"1/model.onnx": b"no onnx"})
    write("unknown", files={"1/model.onnx": graph([helper.make_node("Tag", ["x"], ["y"])], {"x": ["n", 3]}, output)})
    damaged, unknown = check(tmp_path)
    assert damaged == (
        "damaged/1/model.onnx cannot be loaded by ONNX Runtime (Protobuf parsing failed); export the model again."
    )
    assert re.fullmatch(
        r"unknown/1/model\.onnx cannot be loaded .*No Op registered for Tag .*; export the model again\.", unknown
    )
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_dimension_is_told(tmp_path: Path, write: Write, config: str, identity: Onnx) -> None:
    write(files={"1/model.onnx": identity((1, 3))})
    assert check(tmp_path) == [
        f"btag/1/model.onnx fixes the first dimension of {tensor} to 1, but max_batch_size is 64; "
        "export it with a free batch dimension, or set max_batch_size: 0."
        for tensor in ("input 'x'", "output 'y'")
    ]
    unbatched = config.replace("64", "0").replace("[ 3 ]", "[ 1, 3 ]")
    write(text=unbatched, files={"1/model.onnx": identity((1, 3))})
    assert check(tmp_path) == []


def test_an_input_that_the_configuration_leaves_out_is_told(tmp_path: Path, write: Write, graph: Onnx) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    add = graph([helper.make_node("Add", ["x", "w"], ["y"])], {"x": ["n", 3], "w": ["n", 3]}, output)
    write(files={"1/model.onnx": add})
    (problem,) = check(tmp_path)
    assert problem == "btag/config.pbtxt has no input 'w', which btag/1/model.onnx needs; add it to the input section."


def test_an_output_that_is_no_tensor_is_told(tmp_path: Path, write: Write, graph: Onnx) -> None:
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    sequence = graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], {"x": ["n", 3]}, output)
    write(text=BARE, files={"1/model.onnx": sequence})
    (problem,) = check(tmp_path)
    assert problem == (
        "btag/1/model.onnx has an output 'y' of type seq(tensor(float)), which Triton cannot serve; "
        "export the model with plain tensors (from scikit-learn: with zipmap off)."
    )


def test_an_output_whose_shape_is_unknown_needs_a_section(tmp_path: Path, write: Write, graph: Onnx) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    files = {"1/model.onnx": graph([node], {"x": ["n", 3], "s": ["n"]}, output, TensorProto.INT64)}
    write(text=BARE, files=files)
    (problem,) = check(tmp_path)
    assert problem == (
        "btag/1/model.onnx does not tell the shape of output 'y'; write an output section into btag/config.pbtxt."
    )
    write(text=BARE + 'output [ { name: "y" data_type: TYPE_INT64 dims: [ 3 ] } ]', files=files)
    assert check(tmp_path) == []


def test_versions_that_differ_without_sections_are_told(tmp_path: Path, write: Write, identity: Onnx) -> None:
    write(text=BARE + POLICY % "all: { }", files={"1/model.onnx": identity(("n", 5)), "2/model.onnx": identity()})
    assert check(tmp_path) == [
        f"btag/2/model.onnx gives {tensor} the dims [3], but in btag/1/model.onnx they are [5] "
        "after the batch dimension; make them agree."
        for tensor in ("input 'x'", "output 'y'")
    ]


def test_an_older_version_is_not_blamed_for_a_damaged_newer_one(tmp_path: Path, write: Write, identity: Onnx) -> None:
    write(text=BARE + POLICY % "all: { }", files={"1/model.onnx": identity(), "2/model.onnx": b"no onnx"})
    (problem,) = check(tmp_path)
    assert problem.startswith("btag/2/model.onnx cannot be loaded")


def test_an_ensemble_is_held_against_the_models_beside_it(tmp_path: Path, write: Write) -> None:
    ensemble = 'platform: "ensemble" max_batch_size: 8 '
    (write("chain", ensemble, {}) / "1").mkdir()
    assert check(tmp_path) == [
        "chain/config.pbtxt is an ensemble without steps; name its models under ensemble_scheduling."
    ]
    write("chain", ensemble + 'ensemble_scheduling { step [ { model_name: "btag" }, { model_name: "calib" } ] }', {})
    write("btag")
    (problem,) = check(tmp_path, ["chain"], backends=["onnxruntime"])
    assert problem == (
        "chain/config.pbtxt has a step that runs the model 'calib', which the repository lacks "
        "(it has: btag, chain); add its folder, or correct the step."
    )
