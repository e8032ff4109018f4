from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.grpc import service_pb2

from sonic_parsl import kserve
from sonic_parsl.errors import (
    DeadlineError,
    InputError,
    ModelFailedError,
    ModelNotFoundError,
    RejectedError,
    ResponseError,
)
from sonic_parsl.kserve import DTYPES, pack, unpack
from sonic_parsl.status import STATUS, translate

Array = npt.NDArray[Any]
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: npst.arrays(DTYPES[name], npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


def response(tensors: dict[str, Array], *, shape: list[int] | None = None, datatype: str | None = None) -> bytes:
    message = service_pb2.ModelInferResponse(model_name="m", model_version="1", id="1/2")
    message.parameters["sequence_end"].bool_param = True
    for name, array in tensors.items():
        message.outputs.add(name=name, datatype=datatype or DATATYPES[array.dtype], shape=shape or array.shape)
        message.raw_output_contents.append(array.tobytes())
    return bytes(message.SerializeToString())


def test_an_answer_in_typed_contents_is_an_error_that_says_so_and_is_not_remembered() -> None:
    message = service_pb2.ModelInferResponse(model_name="m")
    output = message.outputs.add(name="y", datatype="FP32", shape=[1000])
    output.contents.fp32_contents.extend([1.0] * 1000)
    remembered = kserve._known_description.cache_info().currsize
    with pytest.raises(ResponseError, match=r"has output 'y' in typed `contents`.*answer in `raw_output_contents`"):
        unpack(message.SerializeToString(), ["y"])
    assert kserve._known_description.cache_info().currsize == remembered


@given(tensors=st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=3), outputs=st.lists(NAMES), request_id=NAMES)
def test_a_request_is_what_protobuf_would_make(tensors: dict[str, Array], outputs: list[str], request_id: str) -> None:
    message = service_pb2.ModelInferRequest.FromString(pack("m", "7", tensors, outputs, request_id=request_id))
    assert (message.model_name, message.model_version, message.id) == ("m", "7", request_id)
    assert [output.name for output in message.outputs] == outputs
    sent = zip(message.inputs, message.raw_input_contents, strict=True)
    for (name, array), (described, data) in zip(tensors.items(), sent, strict=True):
        assert (described.name, DTYPES[described.datatype]) == (name, array.dtype)
        assert (tuple(described.shape), data) == (array.shape, array.tobytes())


def test_an_array_with_holes_is_sent_without_them() -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, 1::2]
    message = service_pb2.ModelInferRequest.FromString(pack("m", "1", {"x": array}, ["y"]))
    assert message.raw_input_contents[0] == array.tobytes()


@pytest.mark.parametrize("array", [np.array(["b"]), np.array([None]), np.zeros(3, ">f4"), np.zeros(3, "c8")])
def test_what_no_server_takes_is_refused(array: Array) -> None:
    with pytest.raises(InputError, match="Input 'x' has type"):
        pack("m", "1", {"x": array}, ["y"])


@given(tensors=st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=3))
def test_a_response_is_read_as_protobuf_would(tensors: dict[str, Array]) -> None:
    outputs = unpack(response(tensors), list(reversed(tensors)))
    assert list(outputs) == list(reversed(tensors))
    for name, array in tensors.items():
        np.testing.assert_array_equal(outputs[name], array)
        assert (outputs[name].dtype, outputs[name].shape) == (array.dtype, array.shape)


def test_outputs_are_views_on_the_response() -> None:
    data = response({"y": np.ones((4, 3), np.float32)})
    output = unpack(data, ["y"], rows=4)["y"]
    assert not output.flags.writeable
    assert np.shares_memory(output, np.frombuffer(data, np.uint8))


WHOLE = response({"y": np.ones((40, 3), np.float32)})


@given(length=st.integers(0, len(WHOLE) - 1))
def test_a_response_that_is_cut_off_is_an_error(length: int) -> None:
    with pytest.raises(ResponseError):
        unpack(WHOLE[:length], ["y"], rows=40)


@given(position=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_damaged_response_is_an_error_or_has_the_right_rows(position: int, value: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[position] = value
    with suppress(ResponseError):
        output = unpack(bytes(damaged), ["y"], rows=40)["y"]
        assert len(output) == 40


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (response({"z": np.ones((4, 3), np.float32)}), r"outputs \['z'\] with 1 buffers, asked for were \['y'\]"),
        (response({"y": np.ones((5, 3), np.float32)}), r"shape \(5, 3\), expected were 4 rows"),
        (response({"y": np.ones((4, 3), np.float32)}, shape=[4, 2]), r"48 bytes, its shape \(4, 2\) of FP32 needs 32"),
        (response({"y": np.ones((0, 3), np.float32)}, shape=[4, 3]), "0 bytes.*needs numpy < 2"),
        (response({"y": np.ones((4, 3), np.float32)}, datatype="BYTES"), "type BYTES, which is not supported"),
    ],
)
def test_an_answer_to_something_else_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(ResponseError, match=message):
        unpack(data, ["y"], rows=4)


def error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def test_each_status_has_a_meaning() -> None:
    assert {code.name for code in grpc.StatusCode} - set(STATUS) == {"OK"}


@pytest.mark.parametrize(
    ("code", "details", "cls", "retry"),
    [
        ("INVALID_ARGUMENT", "unexpected shape", RejectedError, "never"),
        ("UNAUTHENTICATED", "no token", RejectedError, "never"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineError, "elsewhere"),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ModelNotFoundError, "elsewhere"),
        ("INTERNAL", "Request for unknown model: 'm' has no available versions", ModelNotFoundError, "elsewhere"),
        ("INVALID_ARGUMENT", "'m' version 1 is not at ready state", ModelNotFoundError, "elsewhere"),
        ("INTERNAL", "Stub process 'm_0' is not healthy.", ModelFailedError, "again"),
    ],
)
def test_a_status_says_whether_another_server_may_be_asked(code: str, details: str, cls: type, retry: str) -> None:
    fault = translate(error(grpc.StatusCode[code], details), model="m", server="s")
    assert (type(fault.error), fault.retry, fault.status) == (cls, retry, code)
    assert details in str(fault.error)
    assert "(model m, server s)" in str(fault.error)


def test_internal_errors_are_asked_once_more() -> None:
    assert {name for name, rule in STATUS.items() if rule.retry == "once"} == {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
