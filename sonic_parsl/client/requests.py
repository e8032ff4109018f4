"""A call's rows as requests, and the requests' answers as the call's rows. No row is padded, lost or doubled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from sonic_parsl.errors import InputError, ResponseError
from sonic_parsl.kserve import DTYPES, Array
from sonic_parsl.protocol import ServedModel, TensorSpec

MAX_REQUEST_BYTES = 64 * 2**20
"""Larger requests cost latency and memory on both sides and gain no throughput."""

GIL_KEPT_BYTES = 2**20
"""Larger arrays are copied by numpy, which lets other threads run; for smaller ones, getting back costs more."""


def check_inputs(model: ServedModel, tensors: Mapping[str, Array], rows: int) -> None:
    """Check that tensors have the names of a model's inputs, and so many rows.

    Raises
    ------
    InputError
        They do not.
    """
    names = [spec.name for spec in model.inputs]
    if sorted(tensors) != sorted(names):
        raise InputError(f"The model's inputs are {names}, given were {list(tensors)}.", model=model.name)
    for name, array in tensors.items():
        if model.max_batch_size and array.shape[:1] != (rows,):
            raise InputError(f"Input '{name}' has shape {array.shape}, expected were {rows} rows.", model=model.name)


def split(rows: int, bytes_per_row: int, max_batch_size: int, max_bytes: int = MAX_REQUEST_BYTES) -> list[slice]:
    """Return the rows of each request: as few requests as the limits allow, as even as possible.

    Even ones finish together, where full ones and a rest would not.

    Parameters
    ----------
    rows
        Rows of the call.
    bytes_per_row
        Size of all inputs of one row.
    max_batch_size
        Most rows of one request; 0 where the model has no batch dimension: then there is one request.
    max_bytes
        Most bytes of one request; a row that is larger is a request of its own.
    """
    if rows <= 0:
        return []
    if max_batch_size == 0:
        return [slice(0, rows)]
    most = min(max_batch_size, max(1, max_bytes // max(1, bytes_per_row)))
    count = -(-rows // most)
    bounds = [rows * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def empty(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the outputs of a call without rows; sizes that the model leaves open are 0."""
    return {spec.name: np.empty((0, *(max(size, 0) for size in spec.shape)), DTYPES[spec.datatype]) for spec in specs}


class Gather:
    """Puts the answers of a call's requests together, each row once, in order.

    Parameters
    ----------
    specs
        The model's outputs: their types are checked.
    parts
        What :func:`split` returned.
    batched
        Whether the model has a batch dimension, which its shapes do not tell of.
    """

    def __init__(self, specs: Sequence[TensorSpec], parts: Sequence[slice], *, batched: bool) -> None:
        self._dtypes = {spec.name: DTYPES.get(spec.datatype) for spec in specs}
        self._shapes = {spec.name: spec.shape for spec in specs}
        self._batched = batched
        self._missing = {part.start: part.stop for part in parts}
        self._single = len(parts) == 1
        self._rows = parts[-1].stop if parts else 0
        self._outputs: dict[str, Array] = {}
        self._numeric_kind: str | None = None

    @property
    def complete(self) -> bool:
        """True when every row is there."""
        return not self._missing

    def place(self, part: slice, outputs: Mapping[str, Array], *, numeric_kind: str) -> None:
        """Put the answer to the request of rows `part` in its place.

        Raises
        ------
        ResponseError
            It does not fit the model or the answers before it, or is there already.
        """
        if self._missing.get(part.start) != part.stop:
            raise ResponseError(f"Rows {part.start} to {part.stop} were not asked for, or came twice.")
        self._check(outputs, numeric_kind)
        if self._single:
            self._outputs = {name: _aligned(array) for name, array in outputs.items()}
        else:
            self._fill(part, outputs)
        self._numeric_kind = numeric_kind
        del self._missing[part.start]

    def result(self) -> dict[str, Array]:
        """Return the outputs: read-only arrays, row by row the answers to the inputs.

        Raises
        ------
        ResponseError
            Rows are missing.
        """
        if self._missing:
            raise ResponseError(f"{len(self._missing)} requests of the call are not answered.")
        for array in self._outputs.values():
            array.flags.writeable = False
        return self._outputs

    def _check(self, outputs: Mapping[str, Array], numeric_kind: str) -> None:
        if outputs.keys() != self._dtypes.keys():
            raise ResponseError(f"The server answered outputs {sorted(outputs)}, the model has {sorted(self._dtypes)}.")
        for name, array in outputs.items():
            if array.dtype != self._dtypes[name]:
                raise ResponseError(f"Output '{name}' came as {array.dtype}, the model promises {self._dtypes[name]}.")
            shape, promised = array.shape[self._batched :], self._shapes[name]
            if len(shape) != len(promised) or any(p not in {-1, s} for s, p in zip(shape, promised, strict=True)):
                raise ResponseError(f"Output '{name}' has shape {shape} in each row, the model promises {promised}.")
        if self._numeric_kind not in {None, numeric_kind}:
            raise ResponseError(f"A call was answered in {self._numeric_kind} and in {numeric_kind}: they do not mix.")

    def _fill(self, part: slice, outputs: Mapping[str, Array]) -> None:
        if not self._outputs:
            self._outputs = {name: np.empty((self._rows, *a.shape[1:]), a.dtype) for name, a in outputs.items()}
        for name, array in outputs.items():
            place = self._outputs[name][part]
            if array.shape != place.shape:
                raise ResponseError(f"Output '{name}' has shape {array.shape} in one answer, expected {place.shape}.")
            place[...] = array


def count_nans(outputs: Mapping[str, Array]) -> int:
    """Return how many numbers of a call's outputs are not numbers (NaN)."""
    return sum(_nans(array) for array in outputs.values() if array.dtype.kind == "f" and array.size)


def _nans(array: Array) -> int:
    with np.errstate(invalid="ignore"):
        if not np.isnan(array.min()):  # which a single NaN makes NaN: much faster than looking at each
            return 0
    return int(np.count_nonzero(np.isnan(array)))


def _aligned(array: Array) -> Array:
    # A response starts its tensors anywhere; readers in compiled code may count on alignment.
    if array.flags.aligned:
        return array
    aligned: Array
    if array.nbytes > GIL_KEPT_BYTES:
        aligned = array.copy()
    else:
        aligned = np.frombuffer(bytes(array.data), array.dtype).reshape(array.shape)
    return aligned
