"""An answer becomes a lazy record, and an answer of another type or shape becomes an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import awkward as ak
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.columns.lazy import BLOCK_ROWS, Answer, empty_record, lazy_record, resolve_outputs, split_output
from sonic_parsl.columns.specs import Output, read_outputs
from sonic_parsl.errors import ConfigError, InferenceError, ResponseError
from sonic_parsl.protocol import ServedModel, TensorSpec

Array = np.ndarray[Any, Any]
OUTPUT = Output(["a", "b", "c"])
ANY_ARRAY = hnp.arrays(
    st.sampled_from(["f2", "f4", ">f4", "f8", "i4", "u1", "?"]), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
)


def record(fetch: Callable[[], Mapping[str, Array]], rows: int = 2) -> ak.Array:
    answer = Answer(fetch, [("p", OUTPUT)], rows, context={"model": "btag version 1", "chunk": "7"})
    return lazy_record((), ((None, OUTPUT),), answer, rows)


@given(array=ANY_ARRAY, rows=st.integers(1, 4))
def test_only_the_declared_type_and_shape_pass(array: Array, rows: int) -> None:
    sizes = [size for size in array.shape[1:] if size != 1]
    if array.dtype.newbyteorder("=") == np.float32 and array.shape[:1] == (rows,) and sizes == [3]:
        columns = split_output(array, OUTPUT, tensor="p", rows=rows)
        for i, column in enumerate(columns.values()):
            np.testing.assert_array_equal(column, array.reshape(rows, 3)[:, i])
    else:
        with pytest.raises(ResponseError, match=rf"'p' .* declared were {rows} rows of 3 float32"):
            split_output(array, OUTPUT, tensor="p", rows=rows)


@pytest.mark.parametrize("rows", [BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 1])
def test_a_table_is_split_block_by_block_and_wholly(rows: int) -> None:
    table = np.random.default_rng(1).normal(size=(rows, len(OUTPUT.names))).astype(OUTPUT.dtype)
    columns = split_output(table, OUTPUT, tensor="p", rows=rows)
    np.testing.assert_array_equal(np.stack(list(columns.values()), axis=1), table)
    assert all(column.flags.c_contiguous for column in columns.values())


@pytest.mark.parametrize(
    "right",
    [
        np.arange(6, dtype="f4").reshape(2, 3),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        np.arange(24, dtype="f4").reshape(4, 6)[::2, :6:2] * 0 + np.arange(6, dtype="f4").reshape(2, 3),
        np.arange(12, dtype="f4").reshape(2, 6)[:, ::2] - np.array([[0, 1, 2], [3, 4, 5]], "f4"),
        np.arange(6, dtype="f4").reshape(2, 1, 3),
    ],
    ids=["plain", "big endian", "columns first", "sum", "strided", "extra axis"],
)
def test_values_arrive_contiguous_and_native_however_they_lie_in_memory(right: Array) -> None:
    array = record(lambda: {"p": right})
    assert array.type == ak.types.ArrayType(
        ak.types.RecordType([ak.types.NumpyType("float32")] * 3, ["a", "b", "c"]), 2
    )
    for i, name in enumerate("abc"):
        column = ak.to_numpy(array[name])
        assert column.flags.c_contiguous
        assert column.dtype == np.dtype("f4")
        assert column.tolist() == right.reshape(2, 3)[:, i].tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3), "f8"),
        np.zeros((2, 3), "i4"),
        np.zeros((1, 3), "f4"),
        np.zeros((4, 3), "f4"),
        np.zeros((2, 6), "f4"),
        np.zeros((3, 2), "f4"),
        np.zeros(6, "f4"),
        np.zeros((0, 3), "f4"),
        None,
    ],
)
def test_what_from_buffers_would_reinterpret_is_an_error_at_each_read(wrong: Any) -> None:
    array = record(lambda: {"p": wrong})
    for name in "aab":
        with pytest.raises(ResponseError, match="declared were 2 rows of 3 float32") as caught:
            ak.to_numpy(array[name])
        assert caught.value.context == {"model": "btag version 1", "chunk": "7"}


def test_a_missing_tensor_is_an_error() -> None:
    with pytest.raises(ResponseError, match="has no tensor 'p'"):
        ak.to_numpy(record(lambda: {"q": np.zeros((2, 3), "f4")}).a)


def test_a_failed_call_raises_again_at_each_read() -> None:
    def fail() -> dict[str, Array]:
        raise InferenceError("The server burned down.", chunk="7")

    array = record(fail)
    for _ in range(2):
        with pytest.raises(InferenceError, match=r"burned down\. \(chunk 7\)"):
            ak.sum(array.b)


def test_the_answer_is_fetched_once_and_not_before_it_is_read() -> None:
    fetched: list[int] = []

    def fetch() -> dict[str, Array]:
        fetched.append(1)
        return {"p": np.arange(6, dtype="f4").reshape(2, 3)}

    array = record(fetch)
    kept = array[np.array([True, False])]
    zipped = ak.zip({"b": kept.b, "x": np.array([1.0])}, depth_limit=1)
    assert not fetched
    assert zipped.b.to_list() == [1.0]
    assert array.to_list() == [{"a": 0, "b": 1, "c": 2}, {"a": 3, "b": 4, "c": 5}]
    assert fetched == [1]


def test_a_single_number_a_row_may_lack_the_axis_of_classes() -> None:
    output = Output("score", dtype="int64")
    for shape in [(3,), (3, 1), (3, 1, 1)]:
        columns = split_output(np.arange(3).reshape(shape), output, tensor="p", rows=3)
        assert columns["score"].tolist() == [0, 1, 2]


def test_several_tensors_become_one_flat_record() -> None:
    outputs = read_outputs({"p": ["a", "b"], "mass": "m", "n": Output("n", dtype="uint8")})
    tensors = {"p": np.array([[1, 2]], "f4"), "mass": np.array([[5]], "f4"), "n": np.array([7], "u1")}
    resolved = [(str(name), output) for name, output in outputs]
    array = lazy_record((), outputs, Answer(lambda: tensors, resolved, 1, context={}), 1)
    assert array.to_list() == [{"a": 1, "b": 2, "m": 5, "n": 7}]
    assert str(array.type) == "1 * {a: float32, b: float32, m: float32, n: uint8}"
    assert empty_record((), outputs).type.content == array.type.content


def test_outputs_are_matched_with_what_the_server_has() -> None:
    def served(*names: str) -> ServedModel:
        return ServedModel("btag", "1", 8, (), tuple(TensorSpec(name, "FP32", (3,)) for name in names))

    assert resolve_outputs(((None, OUTPUT),), served("p")) == [("p", OUTPUT)]
    assert resolve_outputs((("p", OUTPUT),), served("p", "q")) == [("p", OUTPUT)]
    with pytest.raises(ConfigError, match=r"returns tensors \['p', 'q'\], declared were one unnamed tensor"):
        resolve_outputs(((None, OUTPUT),), served("p", "q"))
    with pytest.raises(ConfigError, match=r"returns tensors \['p'\], declared were \['x'\]"):
        resolve_outputs((("x", OUTPUT),), served("p"))
