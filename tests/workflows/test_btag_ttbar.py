"""The main job's pictures and schema; that it runs is tested with a pool."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import hist
import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from coffea.nanoevents import NanoEventsFactory
from matplotlib.patches import StepPatch

from sonic_parsl.workflows import btag_ttbar, samples
from sonic_parsl.workflows.btag_inputs import CLASSES


def output(**scores: list[float]) -> dict[str, Any]:
    """Return what the processor returns, for jets of these true flavours with these scores."""
    score = hist.Hist(
        hist.axis.StrCategory(CLASSES, name="flavour"),
        hist.axis.Regular(20, 0, 1, name="score", label="b score"),
        storage="weight",
    )
    for flavour, values in scores.items():
        score.fill(flavour=flavour, score=values)
    tags = hist.Hist(hist.axis.Integer(0, 7, name="tags", label="b-tagged jets", underflow=False))
    tags.fill(tags=np.array([len(values) for values in scores.values()], dtype=int))
    return {"events": len(scores), "jets": sum(map(len, scores.values())), "b score": score, "b tags": tags}


@pytest.mark.parametrize(
    "accumulated",
    [output(b=[0.9, 0.8, 0.95], c=[0.4, 0.6], light=[0.1, 0.05, 0.2, 0.3]), output(b=[0.5]), output()],
    ids=["all flavours", "one jet", "no event"],
)
def test_both_pictures_are_drawn_whatever_came_out(accumulated: dict[str, Any], tmp_path: Path) -> None:
    files = btag_ttbar.draw(accumulated, tmp_path)
    assert [path.name for path in files] == ["b_score.png", "b_tags.png"]
    for path in files:
        picture = mpl.image.imread(path)
        assert picture.shape[:2] == (1200, 1350)
        assert np.ptp(picture) > 0.5


def test_each_flavours_curve_has_area_one_and_its_number_of_jets() -> None:
    figure = btag_ttbar._scores(output(b=[0.9, 0.8, 0.95], c=[0.4], light=[0.1, 0.2])["b score"])
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["b (3 jets)", "c (1 jets)", "light (2 jets)"]
    curves = [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]
    areas = [np.sum(heights * np.diff(edges)) for heights, edges, _ in curves]
    assert areas == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("name", samples.TTBAR)
def test_the_schema_reads_a_skimmed_file_without_a_warning(name: str) -> None:
    events = NanoEventsFactory.from_root(
        {str(samples.path(name)): "Events"}, schemaclass=btag_ttbar.schema, mode="virtual"
    ).events()
    assert len(events) == 200
    assert {"pt", "eta", "hadronFlavour"} <= set(events.Jet.fields)


def test_the_processor_travels_without_a_connection() -> None:
    processor = pickle.loads(pickle.dumps(btag_ttbar.BTagTTbar()))
    assert processor.postprocess({"events": 3}) == {"events": 3}
