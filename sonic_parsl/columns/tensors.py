"""From an array to the tensors that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import awkward as ak
import numpy as np
import numpy.typing as npt

from sonic_parsl.columns.cast import copy_exact
from sonic_parsl.columns.rows import Column, Layout, Rows, find_rows, read_column, touch_column
from sonic_parsl.columns.specs import Columns, Fields, Fill, Inputs, Mask, Padded, Prepare
from sonic_parsl.errors import InputError
from sonic_parsl.kserve import DTYPES
from sonic_parsl.protocol import ServedModel, TensorSpec

Array = npt.NDArray[Any]
Write: TypeAlias = Callable[[Array], None]


@dataclass(frozen=True)
class Part:
    """What becomes one tensor.

    Attributes
    ----------
    tensor
        Its name; None for the one input of a model that has one.
    shape
        Shape of a row.
    write
        Fills an array of shape (rows, *shape), of any type of number.
    """

    tensor: str | None
    shape: tuple[int, ...]
    write: Write


@dataclass(frozen=True)
class Batch:
    """What goes into one call. Nothing in it is lazy.

    Attributes
    ----------
    axes
        Lists around the rows, outermost first.
    rows
        Number of rows.
    parts
        What becomes the tensors.
    """

    axes: tuple[Layout, ...]
    rows: int
    parts: tuple[Part, ...] = ()

    def tensors(self, model: ServedModel) -> dict[str, Array]:
        """Return the model's tensors, each of shape (rows, ...), in the types the model takes.

        Raises
        ------
        InputError
            Names, shapes or values do not fit the model.
        """
        specs = _match([part.tensor for part in self.parts], model)
        return {spec.name: self._tensor(model, spec, part) for spec, part in zip(specs, self.parts, strict=True)}

    def _tensor(self, model: ServedModel, spec: TensorSpec, part: Part) -> Array:
        if spec.datatype not in DTYPES:
            raise InputError(f"Tensor '{spec.name}' is of type {spec.datatype}, which cannot be made from numbers.")
        shape = fit(part.shape, _row_shape(model, spec, self.rows), tensor=spec.name)
        out = np.empty((self.rows, *part.shape), DTYPES[spec.datatype])
        part.write(out)
        return out.reshape(self.rows, *shape)


def gather(array: ak.Array, inputs: Inputs | Prepare, fill: Fill) -> Batch:
    """Read what `inputs` names from an array of records.

    Raises
    ------
    InputError
        The array does not have it, or something is missing.
    """
    if callable(inputs):
        rows = find_rows(array)
        count = int(rows.layout.length)
        parts = _array_parts(_named(inputs(_flat(rows, array))), count) if count else ()
        return Batch(rows.axes, count, parts)
    rows = find_rows(array, [columns for _, columns in inputs])
    count = int(rows.layout.length)
    return Batch(rows.axes, count, tuple(_part(rows, tensor, each, fill) for tensor, each in inputs))


def gather_arrays(arrays: Any) -> Batch:
    """Take numpy arrays, by tensor name or a single one, whose first axis is the rows.

    Raises
    ------
    InputError
        They are no arrays of numbers or differ in their number of rows.
    """
    named = _named(arrays)
    first = next(iter(named.values()), None)
    if first is None or not np.ndim(first):
        raise InputError("There is no array with a first axis, which are the rows.")
    count = len(first)
    return Batch((), count, _array_parts(named, count))


def touch(array: ak.Array, inputs: Inputs | Prepare) -> tuple[Layout, ...]:
    """As :func:`gather` for a typetracer: touch what would be read, and return the lists around the rows."""
    if callable(inputs):
        rows = find_rows(array)
        for tensor in _named(inputs(_flat(rows, array))).values():
            ak.typetracer.touch_data(tensor)
        return rows.axes
    rows = find_rows(array, [columns for _, columns in inputs])
    for _, columns in inputs:
        lists, values = int(not isinstance(columns, Fields)), not isinstance(columns, Mask)
        for name in columns.fields:
            touch_column(rows, name, lists=lists, values=values)
    return rows.axes


def _flat(rows: Rows, array: ak.Array) -> ak.Array:
    return ak.Array(rows.layout, behavior=array.behavior, attrs=array.attrs)


# From columns ----------------------------------------------------------------


def _part(rows: Rows, tensor: str | None, columns: Columns, fill: Fill) -> Part:
    lists, values = int(not isinstance(columns, Fields)), not isinstance(columns, Mask)
    read = [read_column(rows, name, lists=lists, values=values) for name in columns.fields]
    for column in read:
        _check_missing(column, fill)
    if isinstance(columns, Fields):
        return Part(tensor, (len(read),), partial(_stack, read, fill))
    counts = _common_counts(read)
    if isinstance(columns, Mask):
        return Part(tensor, (columns.length,), partial(_write_mask, counts))
    sizes = (len(read), columns.length) if columns.channels_first else (columns.length, len(read))
    return Part(tensor, sizes, partial(_pad, read, columns, counts, fill))


def _stack(columns: Sequence[Column], fill: Fill, out: Array) -> None:
    for index, column in enumerate(columns):
        _write_column(out[:, index], column, fill)


def _write_column(out: Array, column: Column, fill: Fill) -> None:
    name = f"Field '{column.name}'"
    if column.missing is None:
        copy_exact(out, column.data, name=name)
        return
    present = np.empty(column.data.shape, out.dtype)
    copy_exact(present, column.data, name=name)
    out[~column.missing] = present
    out[column.missing] = _constant(_fill_of(column.name, fill), out.dtype, f"The fill value of '{column.name}'")


def _pad(columns: Sequence[Column], padded: Padded, counts: Array, fill: Fill, out: Array) -> None:
    out[...] = _constant(padded.fill, out.dtype, "The fill value of sonic.Padded")
    real, kept = _real(counts, padded.length), _kept(counts, padded.length)
    for index, column in enumerate(columns):
        flat = np.empty(int(counts.sum()), out.dtype)
        _write_column(flat, column, fill)
        channel = out[:, index] if padded.channels_first else out[:, :, index]
        channel[real] = flat[kept]


def _write_mask(counts: Array, out: Array) -> None:
    out[...] = _real(counts, out.shape[1])


def _real(counts: Array, length: int) -> Array:
    """Tell which places of the padded lists hold an entry, shape (rows, length)."""
    return np.asarray(np.arange(length) < counts[:, None])


def _kept(counts: Array, length: int) -> Array:
    """Return where the entries that are not cut off stand among all entries."""
    kept = np.minimum(counts, length)
    cut_before = np.cumsum(counts - kept) - (counts - kept)
    return np.asarray(np.arange(int(kept.sum())) + np.repeat(cut_before, kept))


def _common_counts(columns: Sequence[Column]) -> Array:
    counts = {column.name: column.counts for column in columns if column.counts is not None}
    (first, common), *others = counts.items()
    for name, each in others:
        if not np.array_equal(common, each):
            raise InputError(
                f"Fields '{first}' and '{name}' differ in the lengths of their lists.",
                hint="Only fields of one list fit into one sonic.Padded.",
            )
    return common


def _check_missing(column: Column, fill: Fill) -> None:
    if column.missing is not None and _fill_of(column.name, fill) is None:
        raise InputError(
            f"Field '{column.name}' misses {column.missing.sum()} of {column.missing.size} values, "
            f"the first is entry {column.missing.argmax()}.",
            hint=f"Say what stands in: fill={{'{column.name}': ...}}.",
        )


def _fill_of(name: str, fill: Fill) -> float | None:
    return dict(fill).get(name) if isinstance(fill, tuple) else fill


def _constant(value: float | None, dtype: np.dtype[Any], name: str) -> Any:
    out = np.empty(1, dtype)
    copy_exact(out, np.asarray([value]), name=name)
    return out[0]


# From arrays -------------------------------------------------------------------


def _named(arrays: Any) -> Mapping[str | None, Any]:
    return arrays if isinstance(arrays, Mapping) else {None: arrays}


def _array_parts(named: Mapping[str | None, Any], count: int) -> tuple[Part, ...]:
    parts = []
    for tensor, value in named.items():
        label = f"Tensor '{tensor}'" if tensor else "The array"
        array = _as_numpy(value, label)
        if array.shape[:1] != (count,):
            raise InputError(f"{label} has shape {array.shape}; the first axis should be the {count} rows.")
        parts.append(Part(tensor, array.shape[1:], partial(copy_exact, data=array, name=label)))
    return tuple(parts)


def _as_numpy(value: Any, label: str) -> Array:
    try:
        array = ak.to_numpy(value, allow_missing=False) if isinstance(value, ak.Array) else np.asanyarray(value)
    except ValueError as error:
        raise InputError(f"{label} is not a regular array of numbers: {_first_line(error)}.") from None
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{label} is masked.", hint="Fill it first: array.filled(value).")
    return np.asarray(array)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")


# Against the model --------------------------------------------------------------


def _match(names: Sequence[str | None], model: ServedModel) -> list[TensorSpec]:
    specs = {spec.name: spec for spec in model.inputs}
    if list(names) == [None] and len(specs) == 1:
        return list(model.inputs)
    if set(names) != specs.keys():
        given = "one unnamed tensor" if None in names else f"tensors {sorted(map(str, names))}"
        raise InputError(
            f"Model '{model.name}' version {model.version} takes tensors {sorted(specs)}, given were {given}.",
            hint="Name each: inputs={'tensor': [fields]}.",
        )
    return [specs[str(name)] for name in names]


def _row_shape(model: ServedModel, spec: TensorSpec, rows: int) -> tuple[int, ...]:
    if model.max_batch_size:
        return spec.shape
    if not spec.shape or spec.shape[0] not in {-1, rows}:
        raise InputError(
            f"Tensor '{spec.name}' has shape {spec.shape} and no batch dimension, so it cannot take {rows} rows.",
            hint="Give the model a max_batch_size in its config.pbtxt.",
        )
    return spec.shape[1:]


def fit(shape: tuple[int, ...], wanted: tuple[int, ...], *, tensor: str) -> tuple[int, ...]:
    """Return the shape that a row of `shape` has in a model that wants `wanted`, where -1 is any size.

    Axes of size one come and go: they do not change the order of the numbers.

    Raises
    ------
    InputError
        It does not fit.
    """
    fitted = _align(shape, wanted)
    if fitted is None:
        raise InputError(
            f"Tensor '{tensor}' takes rows of shape {wanted}, the input has rows of shape {shape}.",
            hint="-1 is any size; compare the fields and lengths in inputs with the model's configuration.",
        )
    return fitted


def _align(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    if not shape and not wanted:
        return ()
    if shape and wanted and wanted[0] in {-1, shape[0]}:
        rest = _align(shape[1:], wanted[1:])
        if rest is not None:
            return (shape[0], *rest)
    if wanted and wanted[0] == 1:
        rest = _align(shape, wanted[1:])
        if rest is not None:
            return (1, *rest)
    return _align(shape[1:], wanted) if shape and shape[0] == 1 else None
