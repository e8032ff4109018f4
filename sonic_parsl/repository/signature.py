"""What an ONNX file says of its own inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic_parsl.protocol import TensorSpec
from sonic_parsl.repository.onnx_session import open_onnx

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""KServe v2 datatype of each ONNX type that Triton's onnxruntime backend serves."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an ONNX file.

    Attributes
    ----------
    inputs, outputs
        Tensors with their whole shape, a batch dimension included; -1 is any
        size, an empty shape is a scalar or not known. A type that Triton cannot
        serve stands as ONNX Runtime calls it, such as ``seq(map(int64,tensor(float)))``.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def takes_batches(self) -> bool:
        """Whether the first dimension of every tensor is free."""
        return all(tensor.shape[:1] == (-1,) for tensor in self.inputs + self.outputs)


def load_signature(path: Path, name: str) -> Signature:
    """Read the signature of an ONNX file.

    Parameters
    ----------
    path
        The file.
    name
        What to call it in an error.

    Raises
    ------
    RepositoryError
        ONNX Runtime cannot load it.
    RuntimeMissingError
        ONNX Runtime is not installed here.
    """
    session = open_onnx(path, name, optimised=False)
    return Signature(
        inputs=tuple(map(_spec, session.get_inputs())),
        outputs=tuple(map(_spec, session.get_outputs())),
    )


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, DATATYPES.get(tensor.type, tensor.type), shape)
