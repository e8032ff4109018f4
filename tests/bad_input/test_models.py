"""Calls of a model that cannot work, against a real server: which model, tensor, shape, type, value or class is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import awkward as ak
import numpy as np
import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import (
    ConfigError,
    InferenceError,
    InputError,
    ModelFailedError,
    ModelNotFoundError,
    ResponseError,
    SonicError,
)
from sonic_parsl.executors.site import Site
from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES
from tests.bad_input.conftest import assert_says

Ask: TypeAlias = Callable[[], Any]

KNOWN = "broken version 1 [run2], btag version 1, shape_demo version 1, small version 1 [run2], whole version 1 [run2]"
AB: dict[str, Any] = {"outputs": ["a", "b"]}
ROWS = np.ones((4, 2), dtype="float32")
JETS = ak.Array({"pt": [[30.0, 40.0], [50.0]], "eta": [[0.1, 0.2], [0.3]], "n": [[1, 2], [3]]})
JETS = ak.zip({"pt": JETS.pt, "eta": JETS.eta, "n": JETS.n, "half": JETS.pt + 0.5})


def call(name: str, array: Any, **arguments: Any) -> Ask:
    """Return a call that waits for its scores."""
    return lambda: sonic.Model(name, **arguments)(array, lazy=False)


MODELS: list[tuple[str, Ask, type[SonicError], str]] = [
    (
        "an unknown model",
        call("btagg", ROWS, **AB),
        ModelNotFoundError,
        f"No server of the pool has model 'btagg'. They have: {KNOWN}.",
    ),
    (
        "an unknown version",
        call("small", ROWS, version="7", **AB),
        ModelNotFoundError,
        f"No server of the pool has model 'small' version 7. They have: {KNOWN}.",
    ),
    (
        "an unknown tag",
        call("small", ROWS, tags=["run4"], **AB),
        ModelNotFoundError,
        f"No server of the pool has model 'small' tag run4. They have: {KNOWN}.",
    ),
    (
        "a version that is a number",
        call("small", ROWS, version=1, **AB),
        ConfigError,
        "A model's version must be a text, such as '1', not 1.",
    ),
    (
        "no deadline",
        call("small", ROWS, deadline_s=0, **AB),
        ConfigError,
        "A call's deadline must be more than 0 s, not 0.",
    ),
]

INPUTS: list[tuple[str, Ask, type[SonicError], str]] = [
    (
        "another tensor",
        call("small", JETS, inputs={"features": ["pt", "eta"]}, **AB),
        InputError,
        (
            "Model 'small' version 1 takes tensors ['x'], given were tensors ['features']. (model small) "
            "Name each: inputs={'tensor': [fields]}."
        ),
    ),
    (
        "one tensor of two",
        call("shape_demo", JETS, inputs=["pt"], **AB),
        InputError,
        (
            "Model 'shape_demo' version 1 takes tensors ['pf_features', 'pf_mask'], given were one unnamed tensor. "
            "(model shape_demo) Name each: inputs={'tensor': [fields]}."
        ),
    ),
    (
        "too many fields",
        call("small", JETS, inputs=["pt", "eta", "n"], **AB),
        InputError,
        (
            "Tensor 'x' takes rows of shape (2,), the input has rows of shape (3,). (model small) "
            "-1 is any size; compare the fields and lengths in inputs with the model's configuration."
        ),
    ),
    (
        "an array of another shape",
        call("btag", ROWS, outputs=CLASSES),
        InputError,
        (
            "Tensor 'features' takes rows of shape (12,), the input has rows of shape (2,). (model btag) "
            "-1 is any size; compare the fields and lengths in inputs with the model's configuration."
        ),
    ),
    (
        "a number that is not whole",
        call("whole", JETS, inputs=["half", "n"], outputs=sonic.Output(["a", "b"], dtype="int32")),
        InputError,
        (
            "Field 'half' holds 30.5 (float64), which int32, the model's type, cannot hold. (model whole) "
            "Correct or convert the field before the call."
        ),
    ),
    (
        "a number that is too large",
        call("small", np.full((1, 2), 1e300), **AB),
        InputError,
        (
            "The array holds 1e+300 (float64), which float32, the model's type, cannot hold. (model small) "
            "Correct or convert the field before the call."
        ),
    ),
    (
        "texts",
        call("small", np.full((1, 2), "x"), **AB),
        InputError,
        "The array is of type <U1, a tensor holds numbers. (model small) Convert it to numbers first.",
    ),
    (
        "a field that is almost there",
        call("small", JETS, inputs=["pt", "etaa"], **AB),
        InputError,
        (
            "The array has no field 'etaa', wanted as 'etaa'; near it are: eta. (model small) "
            "A computed property must first be stored: jets['name'] = jets.name."
        ),
    ),
    (
        "a field like no other",
        call("btag", JETS, inputs=FEATURES, outputs=CLASSES),
        InputError,
        (
            "The array has no field 'mass', wanted as 'mass'; it has: pt, eta, n, half. (model btag) "
            "A computed property must first be stored: jets['name'] = jets.name."
        ),
    ),
    (
        "a missing value",
        call("small", ak.zip({"pt": [1.0, None], "eta": [1.0, 2.0]}), inputs=["pt", "eta"], **AB),
        InputError,
        "Field 'pt' misses 1 of 2 values, the first is entry 1. (model small) Say what stands in: fill={'pt': ...}.",
    ),
    (
        "a jet instead of jets",
        lambda: sonic.Model("small", inputs=["pt", "eta"], **AB)(ak.flatten(JETS)[0], lazy=False),
        InputError,
        (
            "A model takes awkward or numpy arrays, not Record. (model small) "
            "Keep the array's dimension: jets[:1] instead of jets[0]; compute dask arrays first."
        ),
    ),
    (
        "records without inputs",
        call("small", JETS, **AB),
        InputError,
        (
            "The model was made without inputs, so it takes numpy arrays only. (model small) "
            "Name them: Model(inputs=[...])."
        ),
    ),
]

OUTPUTS: list[tuple[str, Ask, type[SonicError], str]] = [
    (
        "too many classes",
        call("small", ROWS, outputs=["a", "b", "c"]),
        ResponseError,
        (
            "The answer's tensor 'y' has shape (4, 2) and type float32; declared were 4 rows of 3 float32. "
            "(model small version 1) Compare the model's outputs with what the server has."
        ),
    ),
    (
        "too few classes",
        call("small", ROWS, outputs="a"),
        ResponseError,
        (
            "The answer's tensor 'y' has shape (4, 2) and type float32; declared were 4 rows of 1 float32. "
            "(model small version 1) Compare the model's outputs with what the server has."
        ),
    ),
    (
        "another type",
        call("small", ROWS, outputs=sonic.Output(["a", "b"], dtype="float64")),
        ResponseError,
        (
            "The answer's tensor 'y' has shape (4, 2) and type float32; declared were 4 rows of 2 float64. "
            "(model small version 1) Compare the model's outputs with what the server has."
        ),
    ),
    (
        "another tensor",
        call("small", ROWS, outputs={"scores": ["a", "b"]}),
        ConfigError,
        (
            "Model 'small' version 1 returns tensors ['y'], declared were ['scores']. (model small) "
            "Name them: outputs={'tensor': [classes]}."
        ),
    ),
    (
        "a class twice",
        call("small", ROWS, outputs=["a", "a"]),
        ConfigError,
        "Classes of an output must be different names; ['a'] come twice.",
    ),
    (
        "a model that fails on the server",
        call("broken", ROWS, **AB),
        ModelFailedError,
        (
            "The server failed: …ValueError: this model breaks on every input…. "
            "(model broken version 1, server triton-0-…, request 1/1) "
            "Try these rows with the model alone: its own code failed on them, or the process it runs in did."
        ),
    ),
]

CASES = [
    pytest.param(*case[1:], id=f"{table}: {case[0]}")
    for table, cases in (("model", MODELS), ("inputs", INPUTS), ("outputs", OUTPUTS))
    for case in cases
]


@pytest.mark.parametrize(("ask", "kind", "sentence"), CASES)
def test_a_call_that_cannot_work_says_which_part_of_it_is_wrong(
    site: Site, ask: Ask, kind: type[SonicError], sentence: str
) -> None:
    with pytest.raises(kind) as caught:
        ask()
    assert_says(str(caught.value), sentence)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, OSError)


def test_a_lazy_call_says_the_same_where_a_score_is_read(site: Site) -> None:
    scores = sonic.Model("broken", **AB)(ROWS)
    with pytest.raises(InferenceError, match="this model breaks on every input"):
        ak.sum(scores.a)
