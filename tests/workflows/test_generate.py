"""Generated files are what coffea and the tagger expect, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import awkward as ak
import numpy as np
import pytest
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_parsl.errors import ConfigError
from sonic_parsl.workflows.btag_inputs import FEATURES
from sonic_parsl.workflows.generate import EVENTS_PER_STEP, generate
from sonic_parsl.workflows.training import btag, roc


def read(path: Path) -> ak.Array:
    with uproot.open({path: "Events"}) as tree:
        return tree.arrays()


@settings(max_examples=10, deadline=None)
@given(events=st.integers(0, 300), seed=st.integers(0, 2**32))
def test_a_file_has_the_events_asked_for_and_the_same_seed_gives_the_same(events: int, seed: int) -> None:
    with TemporaryDirectory() as folder:
        first = read(generate(Path(folder) / "a.root", events=events, seed=seed))
        again = read(generate(Path(folder) / "b.root", events=events, seed=seed))
    assert len(first) == events
    assert ak.array_equal(first, again)


def test_another_seed_gives_other_jets(tmp_path: Path) -> None:
    files = [generate(tmp_path / f"{seed}.root", events=100, seed=seed) for seed in (1, 2)]
    assert not ak.array_equal(*(read(file)["Jet_pt"] for file in files))


def test_a_shorter_file_is_the_head_of_a_longer_one(tmp_path: Path) -> None:
    events = EVENTS_PER_STEP + 10
    long = read(generate(tmp_path / "long.root", events=events))
    short = read(generate(tmp_path / "short.root", events=EVENTS_PER_STEP - 10))
    assert np.array_equal(ak.to_numpy(long["event"]), np.arange(1, events + 1))
    assert ak.array_equal(long[: len(short)], short)


@pytest.mark.filterwarnings("ignore:Missing cross-reference:RuntimeWarning")
def test_coffea_reads_jets_by_falling_pt_with_all_that_the_tagger_needs(tmp_path: Path) -> None:
    file = generate(tmp_path / "jets.root", events=500)
    events = NanoEventsFactory.from_root({str(file): "Events"}, schemaclass=NanoAODSchema, mode="eager").events()
    jets = events.Jet
    assert len(events) == 500
    assert set(FEATURES) <= set(jets.fields)
    assert ak.all(jets.pt[:, :-1] >= jets.pt[:, 1:])
    fractions = jets.chHEF + jets.neHEF + jets.chEmEF + jets.neEmEF + jets.muEF
    assert np.allclose(ak.flatten(fractions), 1, atol=1e-5)
    assert np.all(np.isfinite(ak.to_numpy(ak.flatten((jets + jets).mass))))


def test_the_tagger_tells_generated_b_jets_from_light_ones(tmp_path: Path) -> None:
    jets = read(generate(tmp_path / "jets.root", events=2000))
    flavour = ak.to_numpy(ak.flatten(jets["Jet_hadronFlavour"]))
    columns = [ak.to_numpy(ak.flatten(jets[f"Jet_{name}"])) for name in FEATURES]
    scores = btag.onnx_scores(btag.MODEL_DIR / "1" / "model.onnx", np.stack(columns, axis=1).astype(np.float32))
    rows = flavour != 4
    assert roc.auc(scores[rows, 0], flavour[rows] == 5) > 0.7


def test_a_file_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    generate(tmp_path / "new" / "jets.root", events=20)
    generate(tmp_path / "new" / "jets.root", events=10)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["jets.root"]
    assert len(read(tmp_path / "new" / "jets.root")) == 10


@pytest.mark.parametrize(("events", "seed"), [(-1, 0), (1, -1)])
def test_negative_numbers_are_refused(tmp_path: Path, events: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="neither may be negative"):
        generate(tmp_path / "jets.root", events=events, seed=seed)
    assert list(tmp_path.iterdir()) == []
