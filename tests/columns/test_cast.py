"""Numbers go into the model's type unchanged, or the value that cannot is named."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.columns.cast import copy_exact
from sonic_parsl.errors import InputError

INTEGERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)]
FLOATS = ["f2", "f4", "f8"]
TYPES = st.sampled_from(["?", *INTEGERS, *FLOATS])


def holds(dtype: np.dtype[Any], value: bool | float) -> bool:
    """Tell by Python's own unlimited integers whether `dtype` can hold `value`."""
    if dtype.kind == "b":
        return value in {0, 1}
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return math.isfinite(value) and int(value) == value and limits.min <= value <= limits.max
    with np.errstate(over="ignore"):
        rounded = np.array(value).astype(dtype).item()
    if isinstance(value, float):
        return math.isfinite(rounded) or not math.isfinite(value)
    return math.isfinite(rounded) and int(rounded) == value


def copied(data: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    out = np.empty(data.shape, dtype)
    copy_exact(out, data, name="Field 'x'")
    return out


@given(data=TYPES.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 5))), target=TYPES)
def test_a_cast_keeps_every_value_or_is_refused(data: np.ndarray[Any, Any], target: str) -> None:
    dtype = np.dtype(target)
    if all(holds(dtype, value) for value in data.tolist()):
        rounded = data.astype(dtype)
        np.testing.assert_array_equal(copied(data, dtype), rounded)
    else:
        with pytest.raises(InputError, match=rf"Field 'x' holds .* which {dtype}, the model's type, cannot hold"):
            copied(data, dtype)


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        (2**63 - 1, "i8", "f8"),
        (2**63 - 1, "i8", "f4"),
        (2**64 - 1, "u8", "f4"),
        (-(2**63), "i8", "f2"),
        (2**24 + 1, "i4", "f4"),
        (-1, "i8", "u8"),
        (2**63, "u8", "i8"),
        (2.0**63, "f8", "i8"),
        (300.0, "f4", "u1"),
        (0.5, "f4", "i4"),
        (math.nan, "f8", "i8"),
        (math.inf, "f2", "i8"),
        (1e300, "f8", "f4"),
        (2, "i8", "?"),
    ],
)
def test_a_value_at_the_edge_is_refused_and_named(value: float, source: str, target: str) -> None:
    data = np.array([0, value], source)
    with pytest.raises(InputError, match="Field 'x' holds") as caught:
        copied(data, target)
    assert repr(data[1].item()) in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1, 1e-300])
def test_a_float_may_become_a_narrower_float(value: float) -> None:
    np.testing.assert_array_equal(copied(np.array([value]), "f4"), np.array([value]).astype("f4"))


def test_a_strided_target_and_foreign_byte_order_are_filled() -> None:
    out = np.zeros((3, 2), np.float32)
    copy_exact(out[:, 1], np.array([1, 2, 3], ">i4"), name="x")
    assert out.tolist() == [[0, 1], [0, 2], [0, 3]]


@pytest.mark.parametrize("data", [np.array(["a"]), np.array([1j]), np.array(["2020"], "M8[Y]"), np.array([None])])
def test_what_is_no_number_is_refused(data: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match="a tensor holds numbers"):
        copied(data, "f4")
