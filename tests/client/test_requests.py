from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.client.requests import Gather, empty, split
from sonic_parsl.errors import ResponseError
from sonic_parsl.protocol import TensorSpec

SPECS = (TensorSpec("score", "FP32", (2,)),)


def scores(rows: slice, width: int = 2) -> dict[str, npt.NDArray[np.float32]]:
    values = np.arange(rows.start * width, rows.stop * width, dtype=np.float32)
    return {"score": values.reshape(-1, width)}


@given(
    rows=st.integers(0, 5000),
    bytes_per_row=st.integers(0, 2000),
    max_batch_size=st.integers(1, 600),
    max_bytes=st.integers(1, 50_000),
)
def test_every_row_is_in_one_request_and_no_request_is_too_large(
    rows: int, bytes_per_row: int, max_batch_size: int, max_bytes: int
) -> None:
    parts = split(rows, bytes_per_row, max_batch_size, max_bytes)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert all(0 < size <= max_batch_size for size in sizes)
    assert all(size * bytes_per_row <= max_bytes or size == 1 for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    most = min(max_batch_size, max(1, max_bytes // max(bytes_per_row, 1)))
    assert len(parts) == -(-rows // most)


def test_a_model_without_batch_dimension_gets_one_request() -> None:
    assert split(10_000, 10**6, 0) == [slice(0, 10_000)]


@given(rows=st.integers(1, 300), max_batch_size=st.integers(1, 50), data=st.data())
def test_answers_in_any_order_become_the_rows_in_order(rows: int, max_batch_size: int, data: st.DataObject) -> None:
    parts = split(rows, 8, max_batch_size)
    gather = Gather(SPECS, parts, batched=True)
    for part in data.draw(st.permutations(parts)):
        assert not gather.complete
        gather.place(part, scores(part), numeric_kind="fp32")
    assert gather.complete
    np.testing.assert_array_equal(gather.result()["score"], scores(slice(0, rows))["score"])


def test_a_single_answer_is_not_copied() -> None:
    answer = scores(slice(0, 5))
    gather = Gather(SPECS, [slice(0, 5)], batched=True)
    gather.place(slice(0, 5), answer, numeric_kind="fp32")
    assert gather.result()["score"] is answer["score"]


def test_an_answer_that_lies_crooked_in_memory_is_put_straight() -> None:
    data = bytes(1) + scores(slice(0, 5))["score"].tobytes()
    answer = np.frombuffer(data, np.float32, offset=1).reshape(5, 2)
    gather = Gather(SPECS, [slice(0, 5)], batched=True)
    gather.place(slice(0, 5), {"score": answer}, numeric_kind="fp32")
    score = gather.result()["score"]
    assert (answer.flags.aligned, score.flags.aligned) == (False, True)
    np.testing.assert_array_equal(score, answer)


def test_a_row_is_taken_once() -> None:
    parts = split(10, 8, 5)
    gather = Gather(SPECS, parts, batched=True)
    gather.place(parts[0], scores(parts[0]), numeric_kind="fp32")
    with pytest.raises(ResponseError, match="Rows 0 to 5 were not asked for, or came twice"):
        gather.place(parts[0], scores(parts[0]), numeric_kind="fp32")
    with pytest.raises(ResponseError, match="1 requests of the call are not answered"):
        gather.result()


@pytest.mark.parametrize(
    ("answer", "numeric_kind", "message"),
    [
        ({"score": np.zeros((5, 3), np.float32)}, "fp32", r"shape \(3,\) in each row, the model promises \(2,\)"),
        ({"score": np.zeros((4, 2), np.float32)}, "fp32", r"shape \(4, 2\) in one answer"),
        ({"score": np.zeros((5, 2), np.float64)}, "fp32", "came as float64, the model promises float32"),
        ({"other": np.zeros((5, 2), np.float32)}, "fp32", r"answered outputs \['other'\]"),
        ({"score": np.zeros((5, 2), np.float32)}, "fp16", "in fp32 and in fp16: they do not mix"),
    ],
)
def test_answers_that_do_not_fit_together_are_an_error(
    answer: dict[str, npt.NDArray[np.float32]], numeric_kind: str, message: str
) -> None:
    parts = split(10, 8, 5)
    gather = Gather(SPECS, parts, batched=True)
    gather.place(parts[0], scores(parts[0]), numeric_kind="fp32")
    with pytest.raises(ResponseError, match=message):
        gather.place(parts[1], answer, numeric_kind=numeric_kind)


def test_a_call_without_rows_has_outputs_of_the_right_type() -> None:
    outputs = empty((TensorSpec("score", "FP16", (3,)), TensorSpec("track", "INT64", (-1, 2))))
    assert {name: (array.shape, array.dtype.name) for name, array in outputs.items()} == {
        "score": ((0, 3), "float16"),
        "track": ((0, 0, 2), "int64"),
    }
