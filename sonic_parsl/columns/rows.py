"""From an awkward array to rows and their columns, and from rows back to lists."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import awkward as ak
import numpy as np
import numpy.typing as npt

from sonic_parsl.columns.specs import Columns, Fields
from sonic_parsl.errors import InputError

Array = npt.NDArray[Any]
Layout: TypeAlias = Any  # ak.contents.Content; awkward has no types

NEAR, KNOWN = 5, 20
"""So many names close to a wrong one are told, or so many of all where none is close."""


@dataclass(frozen=True)
class Rows:
    """The rows of an array, laid flat.

    Attributes
    ----------
    axes
        List layouts around the rows, outermost first.
    layout
        One entry a row: records, or lists of records.
    walked
        Where ways inside the row lead that were walked before: fields of one record have theirs in common.
    """

    axes: tuple[Layout, ...]
    layout: Layout
    walked: dict[tuple[str, ...], tuple[list[Layout], Layout]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Column:
    """The numbers of a field.

    Attributes
    ----------
    name
        The field.
    counts
        For a list a row, how many entries each has, shape (rows,); else None.
    data
        The numbers that are there, shape (entries - missing,).
    missing
        Where they are not, shape (entries,); None where all are there.
    """

    name: str
    counts: Array | None
    data: Array
    missing: Array | None = None


def find_rows(array: ak.Array, columns: Sequence[Columns] = ()) -> Rows:
    """Lay an array of records, in lists or not, flat.

    A row is a record. But where all `columns` want a list a row and the first one's field is
    a number of the record, then the records are the list's entries, and the list is a row.

    Raises
    ------
    InputError
        There are no records, or records or lists are missing.
    """
    axes, records = _enter(array.layout, "The array")
    if not (_beneath(records).is_record or records.is_unknown):
        raise InputError(
            f"The array holds {_kind(records)}, a model needs records with named fields.",
            hint="Join the columns with ak.zip({...}), or give numpy arrays.",
        )
    rows = Rows(tuple(axes), records)
    lists = bool(columns) and not any(isinstance(each, Fields) for each in columns)
    if axes and lists and not records.is_unknown and not locate(rows, columns[0].fields[0])[0]:
        return Rows(tuple(axes[:-1]), axes[-1])
    return rows


def locate(rows: Rows, name: str) -> tuple[list[Layout], Layout]:
    """Return the lists that a field passes inside the row, and its values without them.

    Raises
    ------
    InputError
        There is no such field, or a list or record on the way is missing.
    """
    way = tuple(name.split("."))
    return _step(way, _walk(rows, way[:-1], name), name)


def _walk(rows: Rows, way: tuple[str, ...], name: str) -> tuple[list[Layout], Layout]:
    if way not in rows.walked:
        found = _step(way, _walk(rows, way[:-1], name), name) if way else _enter(rows.layout, "The rows")
        rows.walked[way] = found
    return rows.walked[way]


def _step(way: tuple[str, ...], before: tuple[list[Layout], Layout], name: str) -> tuple[list[Layout], Layout]:
    lists, layout = before
    if layout.is_unknown:
        return before
    if not _beneath(layout).is_record or way[-1] not in layout.fields:
        raise _no_field(name, way, layout)
    more, layout = _enter(layout[way[-1]], f"Field '{'.'.join(way)}'")
    return lists + more, layout


def _no_field(name: str, way: tuple[str, ...], layout: Layout) -> InputError:
    part = way[-1]
    where = f"Field '{'.'.join(way[:-1])}'" if way[1:] else "The array"
    near = difflib.get_close_matches(part, layout.fields, n=NEAR)
    more = ", ..." if len(layout.fields) > KNOWN else ""
    known = ", ".join(layout.fields[:KNOWN]) + more or f"only {_kind(layout)}"
    return InputError(
        f"{where} has no field '{part}', wanted as '{name}'; "
        + (f"near it are: {', '.join(near)}." if near else f"it has: {known}."),
        hint="A computed property must first be stored: jets['name'] = jets.name.",
    )


def read_column(rows: Rows, name: str, *, lists: int, values: bool = True) -> Column:
    """Read a field; whatever is lazy about it is loaded now, in this thread.

    Parameters
    ----------
    rows
        Where from.
    name
        The field, dotted where it is inside another.
    lists
        0 for a number a row, 1 for a list a row.
    values
        False where only the lists' lengths are wanted.

    Raises
    ------
    InputError
        There is no such field, it is nested otherwise or does not hold numbers.
    """
    passed, layout = locate(rows, name)
    if layout.is_unknown and not passed:
        return Column(name, np.zeros(0, np.int64) if lists else None, np.empty(0))
    _check_nesting(name, len(passed), lists)
    counts = np.diff(np.asarray(passed[0].to_ListOffsetArray64(True).offsets)) if passed else None
    if not values:
        return Column(name, counts, np.empty(0))
    _check_numbers(name, layout)
    return Column(name, counts, *_numbers(layout))


def touch_column(rows: Rows, name: str, *, lists: int, values: bool = True) -> None:
    """As :func:`read_column` for a typetracer: touch what would be read."""
    passed, layout = locate(rows, name)
    _check_nesting(name, len(passed), lists)
    if values:
        _check_numbers(name, layout)
        ak.typetracer.touch_data(ak.Array(layout))


def wrap(axes: Sequence[Layout], layout: Layout) -> ak.Array:
    """Return an array with `layout`, one entry a row, in the lists of `axes`."""
    for axis in reversed(axes):
        layout = axis.copy(content=layout, parameters=None)
    return ak.Array(layout)


def _check_nesting(name: str, found: int, wanted: int) -> None:
    if found == wanted:
        return
    if wanted == 0:
        message = f"Field '{name}' is a list in each row, a tensor of fields takes one number a row."
        hint = f"Use sonic.Padded(['{name}', ...], length=...)."
    elif found == 0:
        message = f"Field '{name}' is one value a row, sonic.Padded and sonic.Mask take a list a row."
        hint = "Name it in a list of fields."
    else:
        message = f"Field '{name}' is {found} lists deep in each row, sonic.Padded takes one."
        hint = "Flatten the inner lists, or pass a callable as inputs."
    raise InputError(message, hint=hint)


def _check_numbers(name: str, layout: Layout) -> None:
    core = _beneath(layout)
    if not (core.is_unknown or (core.is_numpy and core.dtype.kind in "biuf")):
        raise InputError(
            f"Field '{name}' holds {_kind(layout)}, a tensor holds numbers.", hint="Convert it, or name another field."
        )


def _numbers(layout: Layout) -> tuple[Array, Array | None]:
    missing = None
    if layout.is_option:
        missing = np.asarray(ak.to_numpy(ak.is_none(ak.Array(layout), axis=0)))
        missing = missing if missing.any() else None
    if layout.is_option or layout.is_indexed:
        layout = layout.project()
    return np.asarray(ak.to_numpy(ak.Array(layout))), missing


def _enter(layout: Layout, what: str) -> tuple[list[Layout], Layout]:
    """Walk through lists, to records (of which none is missing) or to values."""
    lists: list[Layout] = []
    while True:
        core = _beneath(layout)
        if core.is_union:
            raise InputError(f"{what} holds values of several types: {layout.form.type}.", hint="Make them one type.")
        if core.is_numpy and core.purelist_depth > 1:
            layout, core = _plain(layout, f"{what} misses lists").to_RegularArray(), core.to_RegularArray()
        if not core.is_list or _is_text(core):
            break
        lists.append(_compact(_plain(layout, f"{what} misses lists")))
        layout = lists[-1].content
    return lists, _present(layout, f"{what} misses records") if core.is_record else layout


def _beneath(layout: Layout) -> Layout:
    """Return what an option type or an index is about."""
    while layout.is_option or layout.is_indexed:
        layout = layout.content
    return layout


def _plain(layout: Layout, complaint: str) -> Layout:
    layout = _present(layout, complaint)
    return layout.project() if layout.is_indexed else layout


def _present(layout: Layout, complaint: str) -> Layout:
    """Return a layout without its option type, of which nothing may be missing."""
    if not layout.is_option:
        return layout
    indexed = layout.to_IndexedOptionArray64()
    if layout.backend.name != "typetracer":
        missing = np.asarray(indexed.index) < 0
        if missing.any():
            raise InputError(
                f"{complaint}: {missing.sum()} of {missing.size}, the first is entry {missing.argmax()}.",
                hint="Drop them (ak.drop_none, or a mask) before the call: a fill value stands for numbers only.",
            )
    return ak.contents.IndexedArray.simplified(indexed.index, indexed.content)


def _compact(layout: Layout) -> Layout:
    """Return lists that start at zero and whose content ends where they end."""
    if layout.is_regular:
        known = layout.backend.name != "typetracer"
        return layout.copy(content=layout.content[: layout.size * layout.length]) if known else layout
    layout = layout.to_ListOffsetArray64(True)
    if layout.backend.name == "typetracer":
        return layout
    return layout.copy(content=layout.content[: int(layout.offsets[-1])])


def _is_text(layout: Layout) -> bool:
    return layout.parameter("__array__") in {"string", "bytestring"}


def _kind(layout: Layout) -> str:
    core = _beneath(layout)
    if _is_text(core):
        return "texts"
    return "a record" if core.is_record else f"type {core.form.type}"
