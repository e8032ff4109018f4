"""What an ONNX file says of its own inputs and outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic_parsl.errors import RepositoryError
from sonic_parsl.protocol import TensorSpec

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

SILENT = 4
"""ONNX Runtime's log level above which it writes nothing but fatal errors."""

PREAMBLE = r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(/\S+:\d+ .*?\) )?"
"""What ONNX Runtime puts before the reason: its code, the path, a line of its own source."""


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
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # ONNX Runtime's errors share no base class, and which there are changes with its version.
    errors = tuple(cls for cls in vars(state).values() if isinstance(cls, type) and issubclass(cls, Exception))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except errors as error:
        reason = re.sub(PREAMBLE, "", " ".join(str(error).split())).rstrip(".")
        raise RepositoryError(f"{name} cannot be loaded by ONNX Runtime ({reason}); export the model again.") from None
    return Signature(
        inputs=tuple(map(_spec, session.get_inputs())),
        outputs=tuple(map(_spec, session.get_outputs())),
    )


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, DATATYPES.get(tensor.type, tensor.type), shape)
