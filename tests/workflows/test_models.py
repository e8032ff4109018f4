"""The packaged models are what their configurations and the model card say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import awkward as ak
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from coffea.nanoevents import NanoEventsFactory, PFNanoAODSchema
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_parsl.workflows import btag_inputs, samples, shape_demo_inputs
from sonic_parsl.workflows.training import btag, shape_demo
from sonic_parsl.workflows.training.jets import Jets, load, split

BTAG = btag.MODEL_DIR / "1" / "model.onnx"
SHAPE_DEMO = shape_demo.MODEL_DIR / "1" / "model.onnx"
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def train_and_test() -> tuple[Jets, Jets]:
    return split(load(), seed=btag.SEED, test_fraction=btag.TEST_FRACTION)


def shape_scores(features: Floats, mask: Floats) -> Floats:
    session = onnxruntime.InferenceSession(SHAPE_DEMO, providers=["CPUExecutionProvider"])
    scores: Floats = session.run(["scores"], {"pf_features": features, "pf_mask": mask})[0]
    return scores


def shapes(model: Path) -> dict[str, list[int]]:
    """Return the dims of a row for each tensor of an ONNX file, once the first axis is seen to be dynamic."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert {tensor.type for tensor in tensors} == {"tensor(float)"}
    assert all(isinstance(tensor.shape[0], str) for tensor in tensors)
    return {tensor.name: tensor.shape[1:] for tensor in tensors}


@pytest.mark.parametrize("module", [btag, shape_demo])
def test_the_committed_configuration_is_the_one_the_script_writes(module: ModuleType) -> None:
    assert (module.MODEL_DIR / "config.pbtxt").read_text() == module.config()


@pytest.mark.parametrize("folder", [btag.MODEL_DIR, shape_demo.MODEL_DIR])
def test_configuration_and_onnx_file_agree_on_names_and_dims(folder: Path) -> None:
    text = (folder / "config.pbtxt").read_text()
    found = re.findall(r'name: "(\w+)" data_type: TYPE_FP32 dims: \[([\d, ]+)\]', text)
    assert {name: [int(n) for n in dims.split(",")] for name, dims in found} == shapes(folder / "1" / "model.onnx")


@pytest.mark.parametrize(
    ("folder", "inputs"), [(btag.MODEL_DIR, btag_inputs), (shape_demo.MODEL_DIR, shape_demo_inputs)]
)
def test_configuration_and_package_agree_on_features_and_classes(folder: Path, inputs: ModuleType) -> None:
    found = re.findall(r'key: "(\w+)" value { string_value: "([^"]+)"', (folder / "config.pbtxt").read_text())
    named = {key: tuple(value.split(",")) for key, value in found}
    assert named == {"features": inputs.FEATURES, "classes": inputs.CLASSES}


@pytest.mark.parametrize("model", [BTAG, SHAPE_DEMO])
def test_a_model_file_is_small(model: Path) -> None:
    assert model.stat().st_size < 300_000


def test_btag_scores_of_real_jets_are_probabilities(train_and_test: tuple[Jets, Jets]) -> None:
    scores = btag.onnx_scores(BTAG, train_and_test[1].features)
    assert scores.dtype == np.float32
    assert np.all(scores >= 0)
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_a_btag_score_does_not_depend_on_the_rows_beside_it(train_and_test: tuple[Jets, Jets]) -> None:
    features = train_and_test[1].features[:50]
    together = btag.onnx_scores(BTAG, features)
    alone = np.concatenate([btag.onnx_scores(BTAG, row[None]) for row in features])
    assert np.allclose(together, alone, atol=1e-6, rtol=0)


def test_no_event_has_jets_in_training_and_test(train_and_test: tuple[Jets, Jets]) -> None:
    train, test = train_and_test
    assert not np.intersect1d(train.event, test.event).size
    assert train.n_events + test.n_events == 400


def test_the_model_card_says_what_the_onnx_file_does_on_held_out_events(train_and_test: tuple[Jets, Jets]) -> None:
    areas = btag.measure(train_and_test[1], btag.onnx_scores(BTAG, train_and_test[1].features))
    rows = re.findall(r"\| (btag|ParticleNet) \| ([\d.]+) ± ([\d.]+) \| ([\d.]+) ± ([\d.]+) \|", card())
    said = {
        f"{tagger} b vs {other}": (float(value), float(error))
        for tagger, *figures in rows
        for other, value, error in (("light", *figures[:2]), ("c", *figures[2:]))
    }
    assert said.keys() == areas.keys()
    for name, area in areas.items():
        assert said[name] == pytest.approx((area.value, area.error), abs=6e-4), name


def test_the_model_card_counts_the_jets(train_and_test: tuple[Jets, Jets]) -> None:
    for label, jets in zip(("training", "held out"), train_and_test, strict=True):
        counts = " | ".join(str(n) for n in (jets.n_events, *np.bincount(jets.truth)))
        assert f"| {label} | {counts} |" in card()


def test_training_again_gives_the_committed_model(train_and_test: tuple[Jets, Jets], tmp_path: Path) -> None:
    train, test = train_and_test
    btag.export(train, tmp_path / "model.onnx")
    again = btag.onnx_scores(tmp_path / "model.onnx", test.features)
    assert np.allclose(again, btag.onnx_scores(BTAG, test.features), atol=1e-3)


def card() -> str:
    return (btag.MODEL_DIR / "MODEL_CARD.md").read_text()


@settings(deadline=None, max_examples=30)
@given(
    n_real=st.lists(st.integers(0, shape_demo_inputs.LENGTH), min_size=1, max_size=5),
    padding=st.sampled_from([0.0, -1.0, 1e30, np.inf, np.nan]),
    seed=st.integers(0, 2**32),
)
def test_shape_demo_does_not_see_the_padding(n_real: list[int], padding: float, seed: int) -> None:
    mask = (np.arange(shape_demo_inputs.LENGTH) < np.array(n_real)[:, None, None]).astype(np.float32)
    shape = (len(n_real), len(shape_demo_inputs.FEATURES), shape_demo_inputs.LENGTH)
    features = np.random.default_rng(seed).normal(scale=10, size=shape).astype(np.float32)
    scores = shape_scores(np.where(mask > 0, features, np.float32(padding)), mask)
    assert np.array_equal(scores, shape_scores(np.where(mask > 0, features, np.float32(0)), mask))
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-6)


@pytest.mark.filterwarnings("ignore:(Missing cross-reference|Branch Photon):RuntimeWarning")
def test_shape_demo_scores_real_candidates_whatever_their_order() -> None:
    file = str(samples.path("pfnano"))
    events = NanoEventsFactory.from_root({file: "Events"}, schemaclass=PFNanoAODSchema, mode="virtual").events()
    candidates = ak.flatten(events.Jet.constituents.pf, axis=1)
    features, mask = padded(candidates)
    reversed_features, _ = padded(candidates[:, : shape_demo_inputs.LENGTH][:, ::-1])
    scores = shape_scores(features, mask)
    assert len(scores) == ak.sum(ak.num(events.Jet)) == 64
    assert np.ptp(scores[:, 0]) > 0.01
    assert np.allclose(shape_scores(reversed_features, mask), scores, atol=1e-5)


def padded(candidates: ak.Array) -> tuple[Floats, Floats]:
    length = shape_demo_inputs.LENGTH
    columns = [
        ak.to_numpy(ak.fill_none(ak.pad_none(candidates[name], length, clip=True), np.nan))
        for name in shape_demo_inputs.FEATURES
    ]
    mask = np.arange(length) < ak.to_numpy(ak.num(candidates))[:, None]
    return np.stack(columns, axis=1).astype(np.float32), mask[:, None].astype(np.float32)
