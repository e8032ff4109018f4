"""A backend named ``onnxruntime`` for Tritons that have only the python backend.

Triton runs this file inside the server's own Python, where sonic_parsl is not
installed: it imports NumPy, ONNX Runtime and Triton's utilities, nothing else.
A model's folder is the one NVIDIA's own onnxruntime backend reads:
``<version>/model.onnx`` and a ``config.pbtxt`` whose input and output sections
may be left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

DEFAULT_FILENAME = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4
"""What NVIDIA's backend sets where a configuration has neither tensors nor max_batch_size."""

DEFAULT_INTRA_OP_THREADS = 1
"""One thread an instance: an ONNX Runtime pool over all cores spins between requests and starves
the workers and servers beside it. More instances, or ``intra_op_thread_count``, use more cores."""

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
UNSUPPORTED = ("batch_input", "batch_output", "model_operations", "sequence_batching")
"""Sections of a configuration that NVIDIA's backend knows and this one does not."""

GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

Arrays = dict[str, np.ndarray[Any, Any]]


class TritonPythonModel:
    """One instance of a model: an ONNX Runtime session."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill absent input and output sections from the ONNX file, as NVIDIA's backend does."""
        config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config
        session = open_session(version_folder_of_this_process(), config)
        if not config["max_batch_size"] and is_batched(session):
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
        if config["max_batch_size"] > 1:
            auto_complete_model_config.set_dynamic_batching()
        for section, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
            if not config[section]:
                config[section] = [describe(tensor, batched=config["max_batch_size"] > 0) for tensor in tensors]
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session and hold the configuration against it."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            raise pb.TritonModelException(
                f"model '{config['name']}': this onnxruntime backend computes on the CPU; give the instance_group "
                "kind: KIND_CPU, or use a Triton that has NVIDIA's onnxruntime backend"
            )
        self.session = open_session(Path(args["model_repository"], args["model_version"]), config)
        self.batched = config["max_batch_size"] > 0
        check(config, self.session)
        self.outputs = [output["name"] for output in config["output"]]
        self.strings = {entry["name"] for entry in config["input"] if entry["data_type"] == "TYPE_STRING"}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests: those of one shape together, in one run."""
        responses: list[Any] = [None] * len(requests)
        inputs = [self.read(request) for request in requests]
        for members in self.group(inputs):
            answers = self.answer([requests[i] for i in members], [inputs[i] for i in members])
            for i, response in zip(members, answers, strict=True):
                responses[i] = response
        return responses

    def read(self, request: Any) -> Arrays:
        """Return a request's inputs as views of shared memory; strings as str."""
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name in self.strings.intersection(arrays):
            arrays[name] = np.vectorize(bytes.decode, otypes=[object])(arrays[name])
        return arrays

    def group(self, inputs: list[Arrays]) -> list[list[int]]:
        """Return which requests agree in all but the number of rows."""
        if not self.batched:
            return [[i] for i in range(len(inputs))]
        groups: dict[Any, list[int]] = {}
        for i, arrays in enumerate(inputs):
            shapes = tuple(sorted((name, array.shape[1:]) for name, array in arrays.items()))
            groups.setdefault(shapes, []).append(i)
        return list(groups.values())

    def answer(self, requests: list[Any], inputs: list[Arrays]) -> list[Any]:
        """Return one response a request; what fails together is tried one by one, so that only the guilty fail."""
        try:
            return self.run(requests, inputs)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the request's answer
            if len(requests) == 1:
                return [pb.InferenceResponse([], error=triton_error(error))]
        return [self.answer([request], [arrays])[0] for request, arrays in zip(requests, inputs, strict=True)]

    def run(self, requests: list[Any], inputs: list[Arrays]) -> list[Any]:
        """Run once over all rows and hand each request its own."""
        wanted = [name for name in self.outputs if any(name in r.requested_output_names() for r in requests)]
        feed = inputs[0]
        if len(inputs) > 1:
            feed = {name: np.concatenate([arrays[name] for arrays in inputs]) for name in feed}
        results = dict(zip(wanted, self.session.run(wanted, feed), strict=True))
        if not self.batched:
            return [response({name: np.atleast_1d(array) for name, array in results.items()})]
        stops = np.cumsum([len(next(iter(arrays.values()))) for arrays in inputs])
        for name, array in results.items():
            if array.ndim == 0 or len(array) != stops[-1]:
                raise ValueError(f"output '{name}' has shape {array.shape} for {stops[-1]} rows of input")
        parts = {name: np.split(array, stops[:-1]) for name, array in results.items()}
        return [
            response({name: parts[name][i] for name in wanted if name in request.requested_output_names()})
            for i, request in enumerate(requests)
        ]


def response(arrays: Arrays) -> Any:
    """Return Triton's response with these outputs."""
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays.items()])


def triton_error(error: Exception) -> Any:
    """Return an exception as Triton's error; what ONNX Runtime says is the request's fault says so."""
    code = pb.TritonError.INVALID_ARG if type(error).__name__ == "InvalidArgument" else pb.TritonError.INTERNAL
    return pb.TritonError(f"onnxruntime: {error}", code)


def version_folder_of_this_process() -> Path:
    """Return the model's version folder, which auto_complete_config is not told.

    Triton starts the process with ``<repository>/<model>/<version>/<file>`` as its first argument.
    """
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return Path(arguments[1].decode()).parent


def open_session(folder: Path, config: dict[str, Any]) -> ort.InferenceSession:
    """Open the ONNX file of a version folder with the options of the configuration."""
    path = folder / (config.get("default_model_filename") or DEFAULT_FILENAME)
    if path.is_dir():
        path = path / DEFAULT_FILENAME
    if not path.is_file():
        raise pb.TritonModelException(f"model '{config['name']}': there is no file {path}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = parameter(config, "intra_op_thread_count", DEFAULT_INTRA_OP_THREADS)
    options.inter_op_num_threads = parameter(config, "inter_op_thread_count", 0)
    options.execution_mode = ort.ExecutionMode(parameter(config, "execution_mode", 0))
    level = (config.get("optimization") or {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def parameter(config: dict[str, Any], name: str, default: int) -> int:
    """Return an integer out of the configuration's parameters."""
    entry = (config.get("parameters") or {}).get(name)
    return default if entry is None else int(entry["string_value"])


def shape_of(tensor: Any) -> list[int]:
    """Return an ONNX tensor's shape, -1 for a size that is symbolic or unknown."""
    return [size if isinstance(size, int) else -1 for size in tensor.shape]


def is_batched(session: ort.InferenceSession) -> bool:
    """Return whether the first dimension of every input and output is free."""
    return all(shape_of(tensor)[:1] == [-1] for tensor in (*session.get_inputs(), *session.get_outputs()))


def describe(tensor: Any, *, batched: bool) -> dict[str, Any]:
    """Return an ONNX tensor as an entry of Triton's configuration."""
    if tensor.type not in TRITON_TYPES:
        raise pb.TritonModelException(f"tensor '{tensor.name}' is a {tensor.type}, which Triton has no type for")
    dims = shape_of(tensor)[1 if batched else 0 :]
    entry = {"name": tensor.name, "data_type": TRITON_TYPES[tensor.type], "dims": dims or [1]}
    if batched and not dims:
        entry["reshape"] = {"shape": []}
    return entry


def check(config: dict[str, Any], session: ort.InferenceSession) -> None:
    """Raise where the configuration does not describe the ONNX file, or asks for what is not done here."""
    where = f"model '{config['name']}'"
    for section in UNSUPPORTED:
        if config.get(section):
            raise pb.TritonModelException(f"{where}: this onnxruntime backend does not know {section}")
    for section, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        known = {tensor.name: tensor for tensor in tensors}
        for entry in config[section]:
            if entry["name"] not in known:
                raise pb.TritonModelException(f"{where}: the ONNX file has no {section} '{entry['name']}'")
            problem = mismatch(entry, known[entry["name"]], batched=config["max_batch_size"] > 0)
            if problem:
                raise pb.TritonModelException(f"{where}, {section} '{entry['name']}': {problem}")
    missing = {tensor.name for tensor in session.get_inputs()} - {entry["name"] for entry in config["input"]}
    if missing:
        raise pb.TritonModelException(f"{where}: the configuration lacks the inputs {sorted(missing)}")


def mismatch(entry: dict[str, Any], tensor: Any, *, batched: bool) -> str | None:
    """Return what an entry of the configuration gets wrong about an ONNX tensor, or None."""
    if TRITON_TYPES.get(tensor.type) != entry["data_type"]:
        return f"the configuration says {entry['data_type']}, the ONNX file {tensor.type}"
    actual = shape_of(tensor)
    if batched and actual[:1] != [-1]:
        return f"max_batch_size is not 0, but the first dimension of {actual} is not free"
    if not batched and not actual:
        actual = [1]  # Triton has no scalars
    configured = (entry.get("reshape") or {"shape": entry["dims"]})["shape"]
    configured = [-1, *map(int, configured)] if batched else [int(size) for size in configured]
    agrees = len(configured) == len(actual) and all(b in (-1, a) for a, b in zip(configured, actual, strict=True))
    return None if agrees else f"the configuration says {configured}, the ONNX file {actual}"
