"""Rows are found in any layout, and go back into the same lists."""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.columns.rows import find_rows, read_column, wrap
from sonic_parsl.columns.specs import Fields, Mask, Padded
from sonic_parsl.errors import InputError


@st.composite
def jagged_records(draw: st.DrawFn) -> ak.Array:
    """Return records in up to three lists, after selections that leave all kinds of layouts behind."""
    rows, counts = draw(st.integers(0, 5)), []
    for _ in range(draw(st.integers(0, 3))):
        counts.append(np.array(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), np.int64))
        rows = int(counts[-1].sum())
    array = ak.zip({"x": np.arange(rows), "y": np.arange(rows, dtype=np.float32) / 2})
    for count in reversed(counts):
        array = ak.unflatten(array, count)
    if len(array):
        array = array[np.array(draw(st.lists(st.integers(0, len(array) - 1), max_size=6)), np.int64)]
    if draw(st.booleans()):
        array = array[array.x % 3 != 1]
    if draw(st.booleans()):
        array = ak.mask(array, np.ones(len(array), bool))
    return array[draw(st.integers(0, 2)) :]


@given(array=jagged_records())
def test_rows_read_flat_and_put_back_are_the_array(array: ak.Array) -> None:
    found = find_rows(array)
    columns = {name: read_column(found, name, lists=0).data for name in ("x", "y")}
    back = wrap(found.axes, ak.zip(columns).layout)
    assert back.to_list() == array.to_list()
    assert str(back.type) == str(array.type).replace("?", "").replace("option[", "").replace("]", "")
    assert columns["y"].tolist() == ak.flatten(array.y, axis=None).to_list()


def test_fixed_list_sizes_stay_fixed() -> None:
    jets = ak.to_regular(ak.Array([[{"x": 1}, {"x": 2}], [{"x": 3}, {"x": 4}], [{"x": 5}, {"x": 6}]]))[1:]
    found = find_rows(jets)
    column = read_column(found, "x", lists=0)
    assert column.data.tolist() == [3, 4, 5, 6]
    assert str(wrap(found.axes, ak.zip({"x": column.data}).layout).type) == "2 * 2 * {x: int64}"


def test_rows_of_a_two_dimensional_field_are_lists() -> None:
    jets = ak.zip({"p4": np.arange(8.0).reshape(2, 4)}, depth_limit=1)
    column = read_column(find_rows(jets), "p4", lists=1)
    assert column.counts is not None
    assert (column.counts.tolist(), column.data.tolist()) == ([4, 4], list(range(8)))


def test_fields_of_records_and_of_lists_inside_the_row_are_reached_by_a_path() -> None:
    jets = ak.Array(
        [[{"muon": {"pt": 1.0}, "pf": [{"p": {"e": 2}}, {"p": {"e": 3}}]}], [{"muon": {"pt": 4.0}, "pf": []}]]
    )
    rows = find_rows(jets)
    assert read_column(rows, "muon.pt", lists=0).data.tolist() == [1, 4]
    inside = read_column(rows, "pf.p.e", lists=1)
    assert inside.counts is not None
    assert (inside.counts.tolist(), inside.data.tolist()) == ([2, 0], [2, 3])


def test_constituents_two_lists_deep_make_the_inner_list_a_row() -> None:
    pf = ak.Array([[[{"pt": 1}, {"pt": 2}], []], [], [[{"pt": 3}]]])
    rows = find_rows(pf, [Padded(["pt"], length=2), Mask("pt", length=2)])
    assert read_column(rows, "pt", lists=1).data.tolist() == [1, 2, 3]
    assert wrap(rows.axes, ak.Array(np.arange(3)).layout).to_list() == [[0, 1], [], [2]]
    assert len(find_rows(pf, [Fields(("pt",))]).axes) == 2


@pytest.mark.parametrize("empty", [ak.Array([]), ak.Array([[], []]), ak.Array([[[]]])])
def test_lists_without_any_record_have_no_rows(empty: ak.Array) -> None:
    rows = find_rows(empty, [Padded(["pt"], length=2)])
    assert rows.layout.length == 0
    assert read_column(rows, "pt", lists=1).data.tolist() == []
    assert wrap(rows.axes, rows.layout).to_list() == empty.to_list()


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        ([{"x": 1}, None], "The array misses records: 1 of 2, the first is entry 1"),
        ([[{"x": 1}], None], "The array misses lists: 1 of 2, the first is entry 1"),
        ([[None, {"x": 1}]], "The array misses records: 1 of 2, the first is entry 0"),
        ([[{"x": 1}, 2.0]], "The array holds values of several types"),
        ([[{"x": 1}, {"x": "a"}]], "Field 'x' holds values of several types"),
        ([[1.0, 2.0]], "The array holds type float64, a model needs records"),
        (["a", "b"], "The array holds texts"),
        ([{"x": "a"}], "Field 'x' holds texts, a tensor holds numbers"),
        ([{"x": {"y": 1}}], "Field 'x' holds a record"),
        ([{"x": {"pt": 1}}, {"x": None}], "Field 'x' misses records: 1 of 2"),
        ([{"x": [1]}, {"x": None}], "Field 'x' misses lists: 1 of 2"),
        ([{"x": [1]}], "Field 'x' is a list in each row"),
        ([{"y": 1, "z": 2}], "The array has no field 'x', wanted as 'x'; it has: y, z"),
    ],
)
def test_what_is_wrong_with_an_array_is_named(array: list[Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_column(find_rows(ak.Array(array)), "x", lists=0)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("x", "Field 'x' is one value a row, sonic.Padded and sonic.Mask take a list"),
        ("deep", "Field 'deep' is 2 lists deep in each row"),
        ("pf.eta", "Field 'pf' has no field 'eta', wanted as 'pf.eta'; it has: pt"),
        ("x.pt", "Field 'x' has no field 'pt', wanted as 'x.pt'; it has: only type int64"),
    ],
)
def test_what_is_wrong_with_a_padded_field_is_named(field: str, complaint: str) -> None:
    array = ak.Array([{"x": 1, "deep": [[1]], "pf": [{"pt": 1}]}])
    with pytest.raises(InputError, match=complaint):
        read_column(find_rows(array), field, lists=1)


def test_missing_numbers_are_told_apart_from_what_is_there() -> None:
    column = read_column(find_rows(ak.Array([{"x": 1}, {"x": None}, {"x": 3}])), "x", lists=0)
    assert column.data.tolist() == [1, 3]
    assert column.missing is not None
    assert column.missing.tolist() == [False, True, False]
    filled = ak.Array([{"x": 1}, {"x": None}])[[True, False]]
    assert read_column(find_rows(filled), "x", lists=0).missing is None
