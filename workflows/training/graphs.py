"""Write ONNX graphs and the Triton configuration that serves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPSET = 17
IR_VERSION = 8
"""Old enough for every ONNX Runtime since 1.14, the servers' included."""


@dataclass(frozen=True)
class Tensor:
    """A named float32 input or output; ``dims`` are those of one row."""

    name: str
    dims: tuple[int, ...]


@dataclass
class Graph:
    """An ONNX graph while it is written: nodes in the order of evaluation, constants by name."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add a constant and return its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, op: str, *inputs: str, to: str, **attributes: object) -> str:
        """Add a node with one output and return the output's name."""
        self.nodes.append(helper.make_node(op, list(inputs), [to], name=to, **attributes))
        return to

    def dense(self, value: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any], *, to: str, relu: bool) -> str:
        """Add ``value @ weight + bias`` over the last axis, and a ReLU where asked."""
        product = self.add("MatMul", value, self.constant(f"{to}_weight", weight), to=f"{to}_product")
        total = self.add("Add", product, self.constant(f"{to}_bias", bias), to=f"{to}_total" if relu else to)
        return self.add("Relu", total, to=to) if relu else total


def save(graph: Graph, path: Path, *, name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Check the graph and write it; rows are the first, dynamic axis of every tensor."""
    proto = helper.make_graph(graph.nodes, name, [_info(t) for t in inputs], [_info(output)], graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def triton_config(
    *,
    name: str,
    remarks: tuple[str, ...],
    max_batch_size: int,
    inputs: tuple[Tensor, ...],
    output: Tensor,
    parameters: dict[str, tuple[str, ...]],
) -> str:
    """Return the text of a ``config.pbtxt`` for the onnxruntime backend with dynamic batching."""
    lines = [f"# {remark}" for remark in remarks]
    lines += [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {max_batch_size}"]
    lines += ["input [", *_tensor_lines(inputs), "]", "output [", *_tensor_lines((output,)), "]"]
    lines += ["dynamic_batching { }"]
    for key, values in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{",".join(values)}" }} }}')
    return "\n".join(lines) + "\n"


def _info(tensor: Tensor) -> Any:
    return helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, ["batch", *tensor.dims])


def _tensor_lines(tensors: tuple[Tensor, ...]) -> list[str]:
    text = [f'  {{ name: "{t.name}" data_type: TYPE_FP32 dims: {list(t.dims)} }}' for t in tensors]
    return [",\n".join(text)]
