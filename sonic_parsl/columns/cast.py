"""Copy numbers into another type, or say which value would be changed by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sonic_parsl.errors import InputError

Array = npt.NDArray[Any]


def copy_exact(out: Array, data: Array, *, name: str) -> None:
    """Copy `data` into `out`, which may be strided, in the type of `out`.

    Floats may be rounded to a narrower float; nothing else may change a value.

    Parameters
    ----------
    out, data
        Arrays of one shape, of booleans, integers or floats.
    name
        What `data` is called, for the message.

    Raises
    ------
    InputError
        A value cannot be told in the type of `out`, or `data` is not of numbers.
    """
    if data.dtype.kind not in "biuf":
        raise InputError(
            f"{name} is of type {data.dtype}, a tensor holds numbers.", hint="Convert it to numbers first."
        )
    wrong = _changed(data, out.dtype)
    if wrong is not None and wrong.any():
        raise _lossy(name, data[wrong][0], out.dtype)
    try:
        with np.errstate(over="raise", invalid="ignore"):
            np.copyto(out, data, casting="unsafe")
    except FloatingPointError:
        with np.errstate(over="ignore", invalid="ignore"):
            wrong = np.isfinite(data) & ~np.isfinite(data.astype(out.dtype))
        raise _lossy(name, data[wrong][0], out.dtype) from None


def _lossy(name: str, value: Any, dtype: np.dtype[Any]) -> InputError:
    return InputError(
        f"{name} holds {value.item()!r} ({value.dtype}), which {dtype}, the model's type, cannot hold.",
        hint="Correct or convert the field before the call.",
    )


def _changed(data: Array, dtype: np.dtype[Any]) -> Array | None:
    """Tell where casting to `dtype` changes a value; None where it never does."""
    kinds = data.dtype.kind + dtype.kind
    if data.dtype.kind == "b" or kinds == "ff" or not data.size:
        return None
    if dtype.kind == "b":
        return np.asarray((data != 0) & (data != 1))
    if dtype.kind == "f":
        return _rounded(data, dtype)
    return _truncated(data, dtype) if data.dtype.kind == "f" else _outside(data, dtype)


def _outside(data: Array, dtype: np.dtype[Any]) -> Array | None:
    if np.can_cast(data.dtype, dtype, "safe"):
        return None
    source, target = np.iinfo(data.dtype), np.iinfo(dtype)
    return np.asarray((data < max(source.min, target.min)) | (data > min(source.max, target.max)))


def _truncated(data: Array, dtype: np.dtype[Any]) -> Array:
    wide = data.astype(np.float64, copy=False)
    limits = np.iinfo(dtype)
    inside = (wide >= float(limits.min)) & (wide < _beyond(limits))
    with np.errstate(invalid="ignore"):
        return np.asarray(~inside | (np.trunc(wide) != wide))


def _rounded(data: Array, dtype: np.dtype[Any]) -> Array | None:
    exact = 2 ** (np.finfo(dtype).nmant + 1)
    limits = np.iinfo(data.dtype)
    if limits.max <= exact or (data.min() >= -exact and data.max() <= exact):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = data.astype(dtype)
        back = rounded.astype(data.dtype)
    # The largest integers round up to a float beyond the type: what comes back from there means nothing.
    beyond = rounded.astype(np.float64) >= _beyond(limits)
    return np.asarray((back != data) | ~np.isfinite(rounded) | beyond)


def _beyond(limits: np.iinfo[Any]) -> float:
    """Return the first number beyond an integer type: a power of two, hence an exact float."""
    return 2.0 * (int(limits.max) // 2 + 1)
