"""ONNX models in Triton's repository layout, small enough to be made by each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from sonic_parsl.poolref import Fallback, LocalModel
from sonic_parsl.repository import read

WEIGHTS = np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)
ROW = 'input [{ name: "x" data_type: TYPE_FP32 dims: [4] }] output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]'
TIMED = 'input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [4] }] output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] }]'
NUMBER = (
    'input [{ name: "x" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }] '
    'output [{ name: "y" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }]'
)


def _value(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def linear() -> Any:
    """Return a model of four features in and three scores out."""
    weights = [numpy_helper.from_array(WEIGHTS, "weights")]
    node = helper.make_node("MatMul", ["x", "weights"], ["y"])
    return _graph([node], [_value("x", "n", 4)], [_value("y", "n", 3)], weights)


def same(name: str, other: str, *shape: int | str) -> Any:
    """Return a model that gives back what it gets."""
    node = helper.make_node("Identity", [name], [other])
    return _graph([node], [_value(name, *shape)], [_value(other, *shape)], [])


def write(repository: Path, name: str, onnx: Any, tensors: str, *, max_batch_size: int = 64, more: str = "") -> Path:
    """Write a model's folder."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        f'name: "{name}" backend: "onnxruntime" max_batch_size: {max_batch_size} {tensors} {more}'
    )
    save(onnx, folder / "1" / "model.onnx")
    return folder


def kind(name: str) -> str:
    """Return the line of a configuration that says how its model counts."""
    return f'parameters {{ key: "numeric_kind" value {{ string_value: "{name}" }} }}'


def fallback(repository: Path, *, mix_numerics: bool = False) -> Fallback:
    """Return what a pool's owner says of all models of a repository."""
    models = (LocalModel(one.name, str(one.path), one.artifact_digest) for one in read(repository))
    return Fallback(tuple(models), mix_numerics)
