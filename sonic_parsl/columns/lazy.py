"""From a server's answer back to an awkward record, read when somebody looks at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from sonic_parsl.columns.rows import Layout, wrap
from sonic_parsl.columns.specs import Output, Outputs
from sonic_parsl.errors import ConfigError, ResponseError
from sonic_parsl.protocol import ServedModel

Array = npt.NDArray[Any]
Fetch = Callable[[], Mapping[str, Array]]

BLOCK_ROWS = 4096
"""Of a table that is split into its columns."""


class Answer:
    """The columns of an answer that may still be under way.

    The first that reads a column waits; then all columns are there. A failed call
    raises again at each read.

    Parameters
    ----------
    fetch
        Waits for the output tensors and returns them, or raises.
    outputs
        What was declared, with the tensors' names.
    rows
        Number of rows that were sent.
    context
        What an error says of the call.
    """

    def __init__(
        self, fetch: Fetch, outputs: Sequence[tuple[str, Output]], rows: int, *, context: Mapping[str, object]
    ) -> None:
        self._fetch: Fetch | None = fetch
        self._outputs = tuple(outputs)
        self._rows = rows
        self._context = context
        self._columns: dict[str, Array] = {}

    def columns(self) -> dict[str, Array]:
        """Return for each class a contiguous array of shape (rows,), in the declared type.

        Raises
        ------
        ResponseError
            The answer is not what was declared.
        SonicError
            Whatever the call failed with.
        """
        fetch = self._fetch
        if fetch is not None:
            # No lock: one held here by another thread would block a process forked meanwhile.
            self._columns = self._split(fetch())
            self._fetch = None  # the tensors may go now
        return self._columns

    def column(self, name: str) -> Array:
        """Return one of :meth:`columns`."""
        return self.columns()[name]

    def _split(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        try:
            for tensor, output in self._outputs:
                columns |= split_output(tensors.get(tensor), output, tensor=tensor, rows=self._rows)
        except ResponseError as error:
            raise error.at(**self._context) from None
        return columns


def split_output(array: Any, output: Output, *, tensor: str, rows: int) -> dict[str, Array]:
    """Return the classes in an output tensor, each contiguous, of shape (rows,).

    ``ak.from_buffers`` would take any bytes for the declared type and cut a longer array
    without a word, so nothing but the declared type and shape passes here.

    Parameters
    ----------
    array
        Shape (rows, classes); axes of size one do not matter.
    output
        What was declared.
    tensor
        Its name, for the message.
    rows
        Number of rows that were sent.

    Raises
    ------
    ResponseError
        The array is of another type or shape, or is none.
    """
    classes = len(output.names)
    wanted = f"{rows} rows of {classes} {output.dtype}"
    if not isinstance(array, np.ndarray):
        raise ResponseError(f"The answer has no tensor '{tensor}'; declared were {wanted}.")
    sizes = [size for size in array.shape[1:] if size != 1]
    same = array.shape[:1] == (rows,) and sizes == ([classes] if classes != 1 else [])
    if not same or array.dtype.newbyteorder("=") != np.dtype(output.dtype):
        raise ResponseError(
            f"The answer's tensor '{tensor}' has shape {array.shape} and type {array.dtype}; declared were {wanted}.",
            hint="Compare the model's outputs with what the server has.",
        )
    return dict(zip(output.names, _columns(array.reshape(rows, classes), output.dtype), strict=True))


def _columns(table: Array, dtype: npt.DTypeLike) -> Array:
    columns = np.empty(table.shape[::-1], dtype)
    for start in range(0, len(table), BLOCK_ROWS):  # numpy's own transposition of a wide table misses the cache
        columns[:, start : start + BLOCK_ROWS] = table[start : start + BLOCK_ROWS].T
    return columns


def resolve_outputs(outputs: Outputs, model: ServedModel) -> list[tuple[str, Output]]:
    """Return the outputs with their tensors' names.

    Raises
    ------
    ConfigError
        The model does not have them, or none is named and it has several.
    """
    known = [spec.name for spec in model.outputs]
    if len(outputs) == 1 and outputs[0][0] is None and len(known) == 1:
        return [(known[0], outputs[0][1])]
    if not {name for name, _ in outputs} <= set(known):
        given = [name for name, _ in outputs if name is not None] or "one unnamed tensor"
        raise ConfigError(
            f"Model '{model.name}' version {model.version} returns tensors {known}, declared were {given}.",
            hint="Name them: outputs={'tensor': [classes]}.",
        )
    return [(str(name), output) for name, output in outputs]


def lazy_record(axes: Sequence[Layout], outputs: Outputs, answer: Answer, rows: int) -> ak.Array:
    """Return the record array of all classes, in the lists of `axes`, that reads `answer` when looked at."""
    return wrap(axes, _record(outputs, rows, lambda name, _: partial(answer.column, name)))


def empty_record(axes: Sequence[Layout], outputs: Outputs) -> ak.Array:
    """Return what a call without rows answers."""
    return wrap(axes, _no_rows(outputs))


def traced_record(axes: Sequence[Layout], outputs: Outputs) -> ak.Array:
    """Return the typetracer of a result, in the lists of a typetracer."""
    return wrap(axes, _no_rows(outputs).to_typetracer(forget_length=True))


def _no_rows(outputs: Outputs) -> Layout:
    return _record(outputs, 0, lambda _, dtype: np.empty(0, dtype))


def _record(outputs: Outputs, rows: int, buffer: Callable[[str, str], Any]) -> Layout:
    classes = [(name, output.dtype) for _, output in outputs for name in output.names]
    contents = [ak.forms.NumpyForm(dtype, form_key=f"class{i}") for i, (_, dtype) in enumerate(classes)]
    buffers = {f"class{i}-data": buffer(name, dtype) for i, (name, dtype) in enumerate(classes)}
    form = ak.forms.RecordForm(contents, [name for name, _ in classes])
    return ak.from_buffers(form, rows, buffers, highlevel=False)
