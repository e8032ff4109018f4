"""A lean KServe v2 gRPC stub: health, metadata, statistics, and inference without needless copies.

Inference does not pass through protobuf's objects: a request is one join of a small cached header and
the arrays' own memory, and outputs are views on the bytes that came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from sonic_parsl.credentials import Peer
from sonic_parsl.errors import (
    InferenceError,
    InputError,
    RejectedError,
    ResponseError,
)
from sonic_parsl.protocol import ServedModel, ServerLoad, TensorSpec
from sonic_parsl.rpc import answer_within, call_metadata, open_channel
from sonic_parsl.status import translate

Array = npt.NDArray[Any]

SERVICE = "inference.GRPCInferenceService"
DESCRIPTION_BYTES = 2**10
"""Of an output's name, type and shape; descriptions no longer than this are remembered."""
NO_BATCH_LIMIT = 2**31 - 1
"""Batch size of a server that tells no limit."""

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""KServe v2 datatypes and what they are in numpy."""
DATATYPES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}


# Requests and responses as bytes -----------------------------------------

_ID, _RAW_INPUT = b"\x1a", b"\x3a"  # ModelInferRequest: id = 3, raw_input_contents = 7
_MODEL_NAME, _RESPONSE_ID, _OUTPUT, _RAW_OUTPUT = 1, 3, 5, 6  # ModelInferResponse
_LENGTH_DELIMITED = 2
_FIXED_SIZE = {1: 8, 5: 4}


def pack(
    model: str, version: str, tensors: Mapping[str, Array], outputs: Sequence[str], *, request_id: str = ""
) -> bytes:
    """Return a ``ModelInferRequest`` as bytes: the tensors are copied once, into it.

    Raises
    ------
    InputError
        A tensor's type is not one that the protocol can carry as it is.
    """
    inputs = tuple((name, _datatype(name, array), array.shape) for name, array in tensors.items())
    name = request_id.encode()
    parts: list[bytes | memoryview] = [_header(model, version, inputs, tuple(outputs)), _ID, _varint(len(name)), name]
    for array in tensors.values():
        parts += (_RAW_INPUT, _varint(array.nbytes), np.ascontiguousarray(array).data)
    return b"".join(parts)


def _datatype(name: str, array: Array) -> str:
    try:
        return DATATYPES[array.dtype]
    except KeyError:
        raise InputError(
            f"Input '{name}' has type {array.dtype}, which no server takes.",
            hint="Texts and objects (BYTES) are not supported; convert them to numbers.",
        ) from None


@lru_cache(maxsize=1024)
def _header(
    model: str, version: str, inputs: tuple[tuple[str, str, tuple[int, ...]], ...], outputs: tuple[str, ...]
) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        message.outputs.add(name=name)
    return bytes(message.SerializeToString())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack(
    data: bytes, outputs: Sequence[str], *, rows: int | None = None, model: str = "", request_id: str = ""
) -> dict[str, Array]:
    """Return the outputs in a ``ModelInferResponse`` as read-only views on `data`.

    Parameters
    ----------
    data
        The response.
    outputs
        Names that were asked for; they come back in this order.
    rows
        Size that the first axis of each output must have; None where there is no batch dimension.
    model, request_id
        What the response must be the answer to, where it says so.

    Raises
    ------
    ResponseError
        The answer to something else; other outputs than these, of another length, or of a type that is
        not supported.
    """
    described: list[tuple[str, str, tuple[int, ...]]] = []
    buffers: list[tuple[int, int]] = []
    for number, start, end in _fields(data):
        if number == _RAW_OUTPUT:
            buffers.append((start, end))
        elif number == _OUTPUT:
            described.append(_described(data[start:end]))
        elif number == _MODEL_NAME and model:
            _check_same("model", data[start:end], model)
        elif number == _RESPONSE_ID and request_id and end > start:
            _check_same("request", data[start:end], request_id)
    found = {entry[0]: (entry, span) for entry, span in zip(described, buffers, strict=False)}
    if not len(described) == len(buffers) == len(found) or found.keys() != set(outputs):
        raise ResponseError(
            f"The server's answer has outputs {[entry[0] for entry in described]} with {len(buffers)} buffers, "
            f"asked for were {list(outputs)}."
        )
    return {name: _view(data, *found[name], rows) for name in outputs}


def _check_same(what: str, said: bytes, asked: str) -> None:
    if said != asked.encode():
        text = said[:80].decode(errors="replace")
        raise ResponseError(f"The server's answer is that to {what} '{text}', asked was {what} '{asked}'.")


def _view(data: bytes, entry: tuple[str, str, tuple[int, ...]], span: tuple[int, int], rows: int | None) -> Array:
    name, datatype, shape = entry
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise ResponseError(f"Output '{name}' is of type {datatype}, which is not supported.")
    if rows is not None and (not shape or shape[0] != rows):
        raise ResponseError(f"Output '{name}' has shape {shape}, expected were {rows} rows.")
    count, size = prod(shape), span[1] - span[0]
    if size != count * dtype.itemsize:
        raise ResponseError(
            f"Output '{name}' has {size} bytes, its shape {shape} of {datatype} needs {count * dtype.itemsize}.",
            hint="Empty outputs mean that the server's Python has numpy 2; it needs numpy < 2." if not size else "",
        )
    return np.frombuffer(data, dtype, count, span[0]).reshape(shape) if count else np.empty(shape, dtype)


def _described(data: bytes) -> tuple[str, str, tuple[int, ...]]:
    # A long one holds the numbers themselves, which is an error: nothing to keep.
    return _known_description(data) if len(data) <= DESCRIPTION_BYTES else _description(data)


def _description(data: bytes) -> tuple[str, str, tuple[int, ...]]:
    try:
        tensor = service_pb2.ModelInferResponse.InferOutputTensor.FromString(data)
    except DecodeError:
        raise ResponseError("The server's answer is damaged: the description of an output cannot be read.") from None
    if tensor.HasField("contents"):
        raise ResponseError(
            f"The server's answer has output '{tensor.name}' in typed `contents`.",
            hint="Let it answer in `raw_output_contents`, as Triton does.",
        )
    return tensor.name, tensor.datatype, tuple(tensor.shape)


_known_description = lru_cache(maxsize=1024)(_description)


def _fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field at the top level."""
    position, size = 0, len(data)
    try:
        while position < size:
            key, position = _read_varint(data, position)
            kind = key & 7
            if kind == _LENGTH_DELIMITED:
                length, start = _read_varint(data, position)
                position = start + length
                if position <= size:
                    yield key >> 3, start, position
            elif kind == 0:
                _, position = _read_varint(data, position)
            else:
                position += _FIXED_SIZE[kind]
    except (IndexError, KeyError):
        position = size + 1
    if position != size:
        raise ResponseError("The server's answer is damaged: its fields do not end where it ends.")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = data[position]
    if value < 0x80:  # most are a single byte
        return value, position + 1
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


# The server --------------------------------------------------------------


class KServe:
    """A server that speaks KServe v2 over gRPC; made and used inside one event loop."""

    def __init__(self, peer: Peer) -> None:
        self.address = peer.address
        self._channel = open_channel(peer)
        self._metadata = call_metadata(peer)
        self._infer = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")

    async def attempt(self, request: bytes, *, timeout_s: float) -> bytes:
        """Send what :func:`pack` made; :func:`unpack` reads what comes.

        Raises
        ------
        grpc.aio.AioRpcError
            There is no answer; :func:`translate` says what that means.
        ResponseError
            The server says that all is well, and nothing else.
        """
        answer: bytes | None = await answer_within(self._infer(request, metadata=self._metadata), timeout_s)
        if answer is None:
            raise ResponseError("The server ended the request well, and without an answer.")
        return answer

    async def infer(
        self,
        model: str,
        version: str,
        tensors: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        timeout_s: float,
        request_id: str = "",
        rows: int | None = None,
    ) -> dict[str, Array]:
        """Return the outputs, in the order asked for, as read-only arrays.

        Raises
        ------
        InputError, InferenceError
            A tensor cannot be sent; the server failed, refused or answered something else.
        """
        request = pack(model, version, tensors, outputs, request_id=request_id)
        try:
            answer = await self.attempt(request, timeout_s=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise translate(error, model=model, server=self.address).error from None
        return unpack(answer, outputs, rows=rows, model=model, request_id=request_id)

    async def ready(self, timeout_s: float) -> bool:
        """Tell whether the server is there and says that it is ready."""
        return await self._says_ready("ServerReady", timeout_s)

    async def require_ready(self, timeout_s: float) -> None:
        """Do nothing where the server is there and says that it is ready.

        Raises
        ------
        InferenceError
            It is not, or does not let this process in.
        """
        if not (await self._ask("ServerReady", timeout_s)).ready:
            raise InferenceError("The server says that it is not ready.", server=self.address)

    async def model_ready(self, name: str, version: str = "", *, timeout_s: float) -> bool:
        """Tell whether the server is there and the model can be asked."""
        return await self._says_ready("ModelReady", timeout_s, name=name, version=version)

    async def models(self, timeout_s: float) -> tuple[str, ...]:
        """Return the names of the models that are loaded, sorted."""
        index = await self._ask("RepositoryIndex", timeout_s, ready=True)
        return tuple(sorted({entry.name for entry in index.models}))

    async def takes_work(self, timeout_s: float) -> bool:
        """Tell whether the server lists its models; gateways that have no room refuse to.

        A server that knows no such list takes work: only Triton, and what stands before one, has it.
        """
        try:
            await self._call("RepositoryIndex", timeout_s, ready=True)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
        return True

    async def served(self, name: str, *, timeout_s: float) -> tuple[ServedModel, ...]:
        """Return each loaded version of a model, without tags and digests.

        Raises
        ------
        InferenceError
            The server cannot be reached, or does not have the model.
        """
        metadata = await self._ask("ModelMetadata", timeout_s, name=name)
        try:
            config = (await self._ask("ModelConfig", timeout_s, name=name)).config
        except RejectedError:
            # KServe v2 servers that are not Triton have no configuration to tell.
            limit, inputs, outputs = _from_metadata(metadata)
        else:
            limit, inputs, outputs = config.max_batch_size, _configured(config.input), _configured(config.output)
        versions = metadata.versions or ("",)
        return tuple(ServedModel(name, version, limit, inputs, outputs) for version in versions)

    async def load(self, timeout_s: float) -> ServerLoad:
        """Return what the server has done since its start, summed over its models."""
        answer = await self._ask("ModelStatistics", timeout_s)
        stats = [entry.inference_stats for entry in answer.model_stats]
        computed = sum(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns for s in stats)
        return ServerLoad(
            rows=sum(entry.inference_count for entry in answer.model_stats),
            requests=sum(s.success.count + s.fail.count for s in stats),
            failures=sum(s.fail.count for s in stats),
            queue_ms=sum(s.queue.ns for s in stats) / 1e6,
            compute_ms=computed / 1e6,
        )

    async def close(self) -> None:
        """Close the connection; what is in flight is cancelled."""
        await self._channel.close()

    async def _says_ready(self, method: str, timeout_s: float, **request: Any) -> bool:
        try:
            return bool((await self._ask(method, timeout_s, **request)).ready)
        except InferenceError:
            return False  # not there, or does not know the model: not ready either way

    async def _ask(self, method: str, timeout_s: float, **request: Any) -> Any:
        try:
            return await self._call(method, timeout_s, **request)
        except grpc.aio.AioRpcError as error:
            raise translate(error, model=request.get("name"), server=self.address).error from None

    async def _call(self, method: str, timeout_s: float, **request: Any) -> Any:
        kinds = {part: getattr(service_pb2, f"{method}{part}") for part in ("Request", "Response")}
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=kinds["Request"].SerializeToString,
            response_deserializer=kinds["Response"].FromString,
        )
        return await answer_within(call(kinds["Request"](**request), metadata=self._metadata), timeout_s)


def _configured(tensors: Any) -> tuple[TensorSpec, ...]:
    names = model_config_pb2.DataType
    return tuple(
        TensorSpec(t.name, names.Name(t.data_type).removeprefix("TYPE_").replace("STRING", "BYTES"), tuple(t.dims))
        for t in tensors
    )


def _from_metadata(metadata: Any) -> tuple[int, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    batched = all(t.shape and t.shape[0] == -1 for t in (*metadata.inputs, *metadata.outputs))
    inputs, outputs = (
        tuple(TensorSpec(t.name, t.datatype, tuple(t.shape[1:] if batched else t.shape)) for t in tensors)
        for tensors in (metadata.inputs, metadata.outputs)
    )
    return (NO_BATCH_LIMIT if batched else 0), inputs, outputs
