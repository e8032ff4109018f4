"""What a model is declared with is checked where it is written."""

from __future__ import annotations

from typing import Any

import pytest

from sonic_parsl.columns.specs import Fields, Mask, Output, Padded, read_fill, read_inputs, read_outputs
from sonic_parsl.errors import ConfigError


def test_inputs_in_all_their_forms_are_read_alike() -> None:
    padded, mask = Padded(["pf.pt"], length=5), Mask("pf", length=5)
    assert read_inputs(["pt", "eta"]) == read_inputs(("pt", "eta")) == ((None, Fields(("pt", "eta"))),)
    assert read_inputs(padded) == ((None, padded),)
    assert read_inputs({"x": "pt", "pf": padded, "m": mask}) == (("x", Fields(("pt",))), ("pf", padded), ("m", mask))
    assert read_inputs(None) is None
    assert read_inputs(dict) is dict


def test_outputs_in_all_their_forms_are_read_alike() -> None:
    assert read_outputs("score") == ((None, Output(["score"])),)
    assert read_outputs(["b", "c"]) == ((None, Output(("b", "c"))),)
    assert read_outputs({"p": ["b"], "m": Output("mass", "float64")}) == (
        ("p", Output("b")),
        ("m", Output("mass", "f8")),
    )


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([], "Fields of a tensor must be names, at least one"),
        ({}, "inputs cannot be empty"),
        (["pt", "pt"], r"must be different names; \['pt'\] come twice"),
        ([1], r"must be names, at least one, not \[1\]"),
        ({"x": []}, "must be names, at least one"),
        ({1: ["pt"]}, "Input tensors must be names"),
        (3, "must be a list of names, not 3"),
    ],
)
def test_wrong_inputs_are_refused(inputs: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_inputs(inputs)


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        ([], "Classes of an output must be names, at least one"),
        ({"p": ["b", "c"], "q": ["b"]}, r"Classes of all outputs together must be different names; \['b'\]"),
        ("", "Classes of an output must be names"),
        (None, "must be a list of names, not None"),
    ],
)
def test_wrong_outputs_are_refused(outputs: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_outputs(outputs)


@pytest.mark.parametrize("dtype", ["text", "U4", "complex64", "datetime64[s]"])
def test_an_output_is_of_numbers(dtype: str) -> None:
    with pytest.raises(ConfigError, match="An output cannot have dtype"):
        Output("b", dtype)


@pytest.mark.parametrize("length", [0, -1, 2.5, True, None])
def test_a_padded_length_is_a_positive_whole_number(length: Any) -> None:
    with pytest.raises(ConfigError, match="The length of Padded must be a whole number"):
        Padded(["pf.pt"], length=length)
    with pytest.raises(ConfigError, match="The length of Mask must be a whole number"):
        Mask("pf", length=length)


def test_fill_values_are_numbers_for_known_fields() -> None:
    inputs = read_inputs({"x": ["pt", "eta"], "pf": Padded(["pf.pt"], length=2)})
    assert read_fill({"pt": 1, "eta": 2.0}, inputs) == (("eta", 2.0), ("pt", 1))
    assert read_fill(-9, inputs) == -9
    with pytest.raises(ConfigError, match=r"fill value of 'mass' is of no use: inputs are \['eta', 'pf.pt', 'pt'\]"):
        read_fill({"mass": 0}, inputs)
    with pytest.raises(ConfigError, match="The fill value of 'pt' must be a number, not 'a'"):
        read_fill({"pt": "a"}, inputs)  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="goes with fields named in inputs"):
        read_fill(0, None)
