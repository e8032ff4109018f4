"""Opens ONNX files with ONNX Runtime: to look at what they hold, and to compute."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from sonic_parsl.errors import RepositoryError, RuntimeMissingError

SILENT = 4
"""ONNX Runtime's log level above which it writes nothing but fatal errors."""

PREAMBLE = r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(/\S+:\d+ .*?\) )?"
"""What ONNX Runtime puts before the reason: its code, the path, a line of its own source."""


def onnx_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its errors share no base class, and which there are changes with its version."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(cls for cls in vars(state).values() if isinstance(cls, type) and issubclass(cls, Exception))


def open_onnx(path: Path, name: str, *, optimised: bool) -> Any:
    """Return a session of ONNX Runtime on the CPU.

    It has one thread: workers are processes of one core each, as many as there are cores, and ONNX Runtime's own
    pool of threads over all of them would spin between runs and starve the others.

    Parameters
    ----------
    path, name
        The ONNX file, and what to call it in an error.
    optimised
        Whether it is to compute, and not only to say what the file holds.

    Raises
    ------
    RuntimeMissingError
        ONNX Runtime is not installed here.
    RepositoryError
        It cannot load the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            f"{name} needs ONNX Runtime, which {socket.gethostname()} lacks ({error}).",
            hint="Run `pip install onnxruntime` in the environment of driver and workers.",
        ) from None
    level = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except onnx_errors() as error:
        raise RepositoryError(
            f"{name} cannot be loaded by ONNX Runtime ({onnx_reason(error)}); export the model again."
        ) from None


def onnx_reason(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, without what only its developers read."""
    return re.sub(PREAMBLE, "", " ".join(str(error).split())).rstrip(".")
