"""Small models, and folders of a model repository to put them into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper


@pytest.fixture
def config() -> str:
    """Return the configuration of what `identity` makes."""
    return """
        backend: "onnxruntime"
        max_batch_size: 64
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
    """


@pytest.fixture(scope="session")
def graph() -> Callable[..., bytes]:
    """Return a function that makes an ONNX file of nodes, input shapes and outputs; the inputs have one type."""

    def make(
        nodes: Iterable[Any], inputs: Mapping[str, list[Any]], output: Any, dtype: int = TensorProto.FLOAT
    ) -> bytes:
        tensors = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()]
        model = helper.make_model(
            helper.make_graph(list(nodes), "g", tensors, [output]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        return bytes(model.SerializeToString())

    return make


@pytest.fixture(scope="session")
def identity(graph: Callable[..., bytes]) -> Callable[..., bytes]:
    """Return a function that makes an ONNX file with an input x and an output y of one shape."""

    def make(shape: tuple[Any, ...] = ("rows", 3), dtype: int = TensorProto.FLOAT) -> bytes:
        output = helper.make_tensor_value_info("y", dtype, shape)
        return graph([helper.make_node("Identity", ["x"], ["y"])], {"x": shape}, output, dtype)

    return make


@pytest.fixture
def write(tmp_path: Path, config: str, identity: Callable[..., bytes]) -> Callable[..., Path]:
    """Return a function that writes a model folder: its configuration and, by relative path, its files."""

    def write_model(name: str = "btag", text: str = config, files: Mapping[str, bytes] | None = None) -> Path:
        contents = {"1/model.onnx": identity()} if files is None else files
        for path, content in {"config.pbtxt": text.encode(), **contents}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return tmp_path / name

    return write_model
