"""Fields become tensors of the model's shape and type; typetracers are only touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.columns.specs import InputsLike, Mask, Padded, read_fill, read_inputs
from sonic_parsl.columns.tensors import fit, gather, gather_arrays, touch
from sonic_parsl.errors import InputError
from sonic_parsl.protocol import ServedModel, TensorSpec

Array = np.ndarray[Any, Any]


def served(*inputs: tuple[str, str, tuple[int, ...]], max_batch_size: int = 64) -> ServedModel:
    return ServedModel("btag", "3", max_batch_size, tuple(TensorSpec(*each) for each in inputs), ())


def tensors(
    array: ak.Array, inputs: InputsLike, model: ServedModel, fill: float | Mapping[str, float] | None = None
) -> dict[str, Array]:
    columns = read_inputs(inputs)
    assert columns is not None
    return gather(array, columns, read_fill(fill, columns)).tensors(model)


def test_fields_are_stacked_in_order_in_the_models_type() -> None:
    jets = ak.Array([[{"pt": 1.5, "n": 3, "b": True}], [], [{"pt": 2.5, "n": 4, "b": False}]])
    made = tensors(jets, ["n", "pt", "b"], served(("x", "FP32", (3,))))
    assert made["x"].dtype == np.float32
    assert made["x"].flags.c_contiguous
    assert made["x"].tolist() == [[3, 1.5, 1], [4, 2.5, 0]]


def test_several_tensors_come_from_several_fields() -> None:
    jets = ak.Array([{"pt": 1.5, "n": 3}, {"pt": 2.5, "n": 4}])
    model = served(("n", "INT64", (1,)), ("flat", "UINT8", ()), ("x", "FP64", (-1,)))
    made = tensors(jets, {"x": ["pt", "n"], "n": "n", "flat": ["n"]}, model)
    assert {name: (array.dtype.str, array.tolist()) for name, array in made.items()} == {
        "x": ("<f8", [[1.5, 3], [2.5, 4]]),
        "n": ("<i8", [[3], [4]]),
        "flat": ("|u1", [3, 4]),
    }


def test_a_lossy_cast_names_field_type_and_value() -> None:
    jets = ak.Array([{"pt": 1.0}, {"pt": 1.5}])
    with pytest.raises(InputError, match=r"Field 'pt' holds 1.5 \(float64\), which int32, the model's type"):
        tensors(jets, ["pt"], served(("x", "INT32", (1,))))


@pytest.mark.parametrize(
    ("shape", "wanted", "result"),
    [
        ((4,), (4,), (4,)),
        ((4,), (-1,), (4,)),
        ((1,), (-1,), (1,)),
        ((1,), (), ()),
        ((5,), (1, 5), (1, 5)),
        ((5,), (1, -1), (1, 5)),
        ((3, 5), (3, -1), (3, 5)),
        ((1, 5), (5,), (5,)),
        ((1, 1), (1,), (1,)),
        ((1,), (1, -1), (1, 1)),
        ((3, 1), (1, 3, 1), (1, 3, 1)),
    ],
)
def test_axes_of_size_one_come_and_go(shape: tuple[int, ...], wanted: tuple[int, ...], result: tuple[int, ...]) -> None:
    assert fit(shape, wanted, tensor="x") == result


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((4,), (5,)), ((3, 5), (5, 3)), ((5,), (-1, 5)), ((15,), (3, 5)), ((2,), ()), ((5,), (-1, -1))],
)
def test_a_row_of_another_shape_is_refused(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"Tensor 'x' takes rows of shape .*, the input has rows of shape") as caught:
        fit(shape, wanted, tensor="x")
    assert str(shape) in str(caught.value)
    assert str(wanted) in str(caught.value)


def test_a_model_without_batch_dimension_takes_all_rows_as_its_first_axis() -> None:
    jets = ak.Array([{"pt": 1.0}, {"pt": 2.0}])
    for first in (-1, 2):
        made = tensors(jets, ["pt"], served(("x", "FP32", (first, 1)), max_batch_size=0))
        assert made["x"].tolist() == [[1], [2]]
    with pytest.raises(InputError, match="no batch dimension, so it cannot take 2 rows"):
        tensors(jets, ["pt"], served(("x", "FP32", (3, 1)), max_batch_size=0))


def test_tensors_must_be_those_of_the_model() -> None:
    jets = ak.Array([{"pt": 1.0}])
    with pytest.raises(InputError, match=r"takes tensors \['x', 'y'\], given were one unnamed tensor"):
        tensors(jets, ["pt"], served(("x", "FP32", (1,)), ("y", "FP32", (1,))))
    with pytest.raises(InputError, match=r"'btag' version 3 takes tensors \['x'\], given were tensors \['z'\]"):
        tensors(jets, {"z": ["pt"]}, served(("x", "FP32", (1,))))
    with pytest.raises(InputError, match="'x' is of type BYTES"):
        tensors(jets, ["pt"], served(("x", "BYTES", (1,))))


# Padding -----------------------------------------------------------------------

CONSTITUENT = st.fixed_dictionaries({"pt": st.integers(0, 9), "eta": st.none() | st.integers(0, 9)})


@given(
    jets=st.lists(st.fixed_dictionaries({"pf": st.lists(CONSTITUENT, max_size=5)}), min_size=1, max_size=5),
    length=st.integers(1, 4),
    channels_first=st.booleans(),
)
def test_padding_cuts_and_fills_as_a_loop_would(jets: list[Any], length: int, channels_first: bool) -> None:
    expected = np.full((len(jets), 2, length), -1.0)
    mask = np.zeros((len(jets), length))
    for row, jet in enumerate(jets):
        for place, constituent in enumerate(jet["pf"][:length]):
            eta = constituent["eta"]
            expected[row, :, place] = constituent["pt"], 7 if eta is None else eta
            mask[row, place] = 1
    padded = Padded(["pf.pt", "pf.eta"], length=length, fill=-1.0, channels_first=channels_first)
    sizes = (2, length) if channels_first else (length, 2)
    made = tensors(
        ak.Array(jets),
        {"pf": padded, "mask": Mask("pf", length=length)},
        served(("pf", "FP32", sizes), ("mask", "FP32", (1, -1))),
        fill={"pf.eta": 7},
    )
    assert made["pf"].tolist() == (expected if channels_first else expected.transpose(0, 2, 1)).tolist()
    assert made["mask"].tolist() == mask[:, None].tolist()


def test_a_mask_comes_in_the_models_type() -> None:
    jets = ak.Array([{"pf": [{"pt": 1}]}, {"pf": []}])
    for datatype, dtype in [("BOOL", "bool"), ("INT32", "int32"), ("FP16", "float16")]:
        made = tensors(jets, Mask("pf.pt", length=2), served(("m", datatype, (2,))))
        assert made["m"].dtype == dtype
        assert made["m"].tolist() == [[1, 0], [0, 0]]


def test_constituents_alone_score_the_lists_they_are_in() -> None:
    pf = ak.Array([[[{"pt": 1}, {"pt": 2}, {"pt": 3}], []], [], [[{"pt": 4}]]])
    batch = gather(pf, ((None, Padded(["pt"], length=2)),), None)
    assert batch.rows == 3
    assert batch.tensors(served(("x", "FP32", (1, 2))))["x"].tolist() == [[[1, 2]], [[0, 0]], [[4, 0]]]


def test_one_padded_tensor_takes_fields_of_equally_long_lists_only() -> None:
    jets = ak.Array([{"pf": [{"pt": 1}], "sv": [{"pt": 1}, {"pt": 2}]}])
    with pytest.raises(InputError, match=r"Fields 'pf.pt' and 'sv.pt' differ in the lengths of their lists"):
        tensors(jets, Padded(["pf.pt", "sv.pt"], length=2), served(("x", "FP32", (2, 2))))


# Missing values ------------------------------------------------------------------


def test_missing_numbers_are_an_error_that_names_the_field() -> None:
    jets = ak.Array([{"pt": 1.0, "eta": 0.0}, {"pt": None, "eta": None}])
    with pytest.raises(InputError, match=r"Field 'pt' misses 1 of 2 values, the first is entry 1.* fill={'pt': ...}"):
        tensors(jets, ["pt", "eta"], served(("x", "FP32", (2,))))
    with pytest.raises(InputError, match="Field 'eta' misses 1 of 2 values"):
        tensors(jets, ["pt", "eta"], served(("x", "FP32", (2,))), fill={"pt": 0})


def test_a_fill_value_stands_in_for_all_fields_or_by_name() -> None:
    jets = ak.Array([{"pt": 1, "eta": 2}, {"pt": None, "eta": None}])
    model = served(("x", "INT16", (2,)))
    assert tensors(jets, ["pt", "eta"], model, fill=-9)["x"].tolist() == [[1, 2], [-9, -9]]
    assert tensors(jets, ["pt", "eta"], model, fill={"pt": 5, "eta": 6})["x"].tolist() == [[1, 2], [5, 6]]
    with pytest.raises(InputError, match=r"The fill value of 'pt' holds 0.5"):
        tensors(jets, ["pt", "eta"], model, fill=0.5)


def test_masked_but_complete_arrays_need_no_fill_value() -> None:
    jets = ak.mask(ak.Array([[{"pt": 1.0}], [{"pt": 2.0}]]), [True, True])
    assert tensors(jets, ["pt"], served(("x", "FP32", (1,))))["x"].tolist() == [[1], [2]]


# Callables and numpy ---------------------------------------------------------------


def test_a_callable_gets_the_flat_records_and_returns_tensors() -> None:
    jets = ak.Array([[{"pt": 3.0, "eta": 4.0}], [], [{"pt": 6.0, "eta": 8.0}]])
    seen: list[str] = []

    def inputs(rows: ak.Array) -> dict[str, Any]:
        seen.append(str(rows.type))
        return {"norm": np.hypot(rows.pt, rows.eta), "pair": ak.to_numpy(rows[["pt", "eta"]]).view(("f8", 2))}

    made = tensors(jets, inputs, served(("pair", "FP32", (2,)), ("norm", "FP32", (1,))))
    assert seen == ["2 * {pt: float64, eta: float64}"]
    assert made["norm"].tolist() == [[5], [10]]
    assert made["pair"].tolist() == [[3, 4], [6, 8]]


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ({"x": np.zeros((3, 1))}, r"Tensor 'x' has shape \(3, 1\); the first axis should be the 2 rows"),
        ({"x": ak.Array([[1], [2, 3]])}, "Tensor 'x' is not a regular array of numbers"),
        ({"x": ak.Array([[1], [None]])}, "Tensor 'x' is not a regular array of numbers"),
        ({"x": np.ma.masked_equal([1, 2], 2)}, "Tensor 'x' is masked"),
        ({"x": np.array(["a", "b"])}, "Tensor 'x' is of type <U1"),
        (np.float32(1), r"The array has shape \(\)"),
    ],
)
def test_what_a_callable_returns_is_checked(result: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        tensors(ak.Array([{"pt": 1}, {"pt": 2}]), lambda _: result, served(("x", "FP32", (1,))))


def test_numpy_arrays_are_taken_as_they_are_and_copied() -> None:
    x = np.arange(6).reshape(3, 2)
    made = gather_arrays(x).tensors(served(("x", "FP32", (2,))))
    x[:] = 9
    assert made["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    same = np.ones((3, 2), np.float32)
    assert not np.shares_memory(gather_arrays({"x": same}).tensors(served(("x", "FP32", (2,))))["x"], same)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        (np.float64(1), "no array with a first axis"),
        ({}, "no array with a first axis"),
        ({"x": np.zeros((2, 1)), "y": np.zeros((3, 1))}, r"Tensor 'y' has shape \(3, 1\)"),
    ],
)
def test_numpy_arrays_need_rows_and_the_same_number_of_them(arrays: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        gather_arrays(arrays)


# Typetracers --------------------------------------------------------------------------


def traced(array: ak.Array) -> tuple[ak.Array, Any]:
    form, _, _ = ak.to_buffers(array)
    return ak.typetracer.typetracer_with_report(form, highlevel=True)  # type: ignore[no-any-return]


def touched(array: ak.Array, inputs: InputsLike) -> set[str]:
    tracer, report = traced(array)
    columns = read_inputs(inputs)
    assert columns is not None
    touch(tracer, columns)
    keys = {form.form_key: name for name, form in _named_forms(report, array)}
    return {keys[key] for key in report.data_touched}


def _named_forms(report: Any, array: ak.Array) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def walk(form: Any, path: str) -> None:
        found.append((path, form))
        if form.is_record:
            for name in form.fields:
                walk(form.content(name), f"{path}.{name}".lstrip("."))
        elif hasattr(form, "content"):
            walk(form.content, f"{path}[]")

    walk(ak.to_buffers(array)[0], "")
    return found


JETS = ak.Array(
    [[{"pt": 1.0, "eta": 2.0, "phi": None, "pf": [{"pt": 1, "eta": 2}]}, {"pt": 1.0, "eta": 2.0, "phi": 1, "pf": []}]]
)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["pt"], {"", "[].pt"}),
        (["pt", "eta"], {"", "[].pt", "[].eta"}),
        (["phi"], {"", "[].phi", "[].phi[]"}),
        (Padded(["pf.eta"], length=3), {"", "[].pf", "[].pf[].eta"}),
        (Mask("pf", length=3), {"", "[].pf"}),
        (lambda rows: {"x": rows.pt, "y": np.sqrt(rows.eta)}, {"", "[].pt", "[].eta"}),
    ],
)
def test_a_typetracer_is_touched_where_the_inputs_are(inputs: InputsLike, expected: set[str]) -> None:
    assert touched(JETS, inputs) == expected


def test_a_typetracer_without_a_field_is_refused_as_an_array_is() -> None:
    tracer, _ = traced(JETS)
    with pytest.raises(InputError, match="no field 'mass'"):
        touch(tracer, ((None, Mask("mass", length=2)),))
