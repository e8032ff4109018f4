"""Model repositories that no Triton would serve: each problem is a sentence, in a check and before a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import uproot

import sonic_parsl as sonic
from sonic_parsl.errors import RepositoryError
from tests.bad_input.conftest import PACKAGED, Call, assert_says, told

Spoil: TypeAlias = Callable[[Path], object]
"""Damages a repository that holds the packaged b tagger."""


def in_config(old: str, new: str) -> Spoil:
    def replace(models: Path) -> None:
        path = models / "btag" / "config.pbtxt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return replace


CASES: list[tuple[str, Spoil, str]] = [
    (
        "no folder",
        shutil.rmtree,
        "There is no model repository {models}; name a folder that has one folder a model.",
    ),
    (
        "no models",
        lambda models: shutil.rmtree(models / "btag"),
        "The model repository {models} has no models; put a folder with a config.pbtxt into it.",
    ),
    (
        "no version",
        lambda models: shutil.rmtree(models / "btag" / "1"),
        "btag has no version folder; put the model's files into btag/1.",
    ),
    (
        "a version with a letter",
        lambda models: (models / "btag" / "1").rename(models / "btag" / "v1"),
        "btag/v1 is no version that Triton serves; rename it to a whole number without leading zeros, such as btag/1.",
    ),
    (
        "no model file",
        lambda models: (models / "btag" / "1" / "model.onnx").unlink(),
        "btag/1/model.onnx is missing; put the model there, or name its file as default_model_filename.",
    ),
    (
        "a model file that was cut off",
        lambda models: (models / "btag" / "1" / "model.onnx").write_bytes(
            (PACKAGED / "btag" / "1" / "model.onnx").read_bytes()[:1000]
        ),
        "btag/1/model.onnx cannot be loaded by ONNX Runtime (…); export the model again.",
    ),
    (
        "a configuration that is none",
        lambda models: (models / "btag" / "config.pbtxt").write_text("{"),
        "btag/config.pbtxt, line 1, cannot be parsed (…); correct it as Triton's ModelConfig asks.",
    ),
    (
        "another name",
        in_config('name: "btag"', 'name: "ctag"'),
        "btag/config.pbtxt names the model 'ctag', but its folder is 'btag'; give both one name, or leave the name out of the file.",
    ),
    (
        "an input that the model has not",
        in_config('"features"', '"feature"'),
        "…has an input 'feature' that btag/1/model.onnx lacks (it has: features); correct the name.…",
    ),
    (
        "another shape than the model's",
        in_config("dims: [12]", "dims: [11]"),
        (
            "btag/config.pbtxt gives input 'features' the dims [11], but in btag/1/model.onnx they are [12] "
            "after the batch dimension; make them agree."
        ),
    ),
]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGED / "btag", tmp_path / "models" / "btag")
    return tmp_path / "models"


@pytest.mark.parametrize(("spoil", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_repository_that_cannot_be_served_is_told_by_the_check_and_stops_a_run(
    call: Call, tmp_path: Path, models: Path, spoil: Spoil, sentence: str
) -> None:
    spoil(models)
    sentence = sentence.replace("{models}", str(models))
    assert_says(told(call("models", "check", models)), sentence)
    with uproot.recreate(tmp_path / "good.root") as file:
        file["Events"] = {"x": np.arange(3)}
    text = told(call("run", "btag_ttbar", "good.root", "--models", models))
    assert_says(text, f"The model repository {models} has …:\n  {sentence}".replace("\n", "…"))
    with pytest.raises(RepositoryError):
        sonic.load_site("local", models=models)
