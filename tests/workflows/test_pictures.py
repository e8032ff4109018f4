"""Every histogram with one numeric axis becomes a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hist
import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from sonic_parsl.workflows.pictures import draw, draw_all

PT = hist.axis.Regular(10, 0, 100, name="pt", label="$p_T$ [GeV]")


def filled(*categories: Any, storage: str = "double", **values: Any) -> hist.Hist:
    histogram = hist.Hist(*categories, PT, storage=storage)
    histogram.fill(pt=np.linspace(1, 99, 50), **values)
    return histogram


def flavours() -> hist.Hist:
    histogram = hist.Hist(hist.axis.StrCategory(["b", "light"], name="flavour"), PT, storage="weight")
    histogram.fill(flavour="b", pt=[5.0, 15.0, 15.0])
    histogram.fill(flavour="light", pt=[95.0])
    return histogram


def labels(figure: Any) -> list[str]:
    legend = figure.axes[0].get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def heights(figure: Any) -> list[list[float]]:
    """Return the contents that each step curve shows."""
    return [list(patch.get_data().values) for patch in figure.axes[0].patches]


def test_a_histogram_is_shown_with_its_own_contents_and_axis() -> None:
    histogram = filled()
    figure = draw(histogram, label="jets")
    assert heights(figure) == [list(histogram.values())]
    assert figure.axes[0].get_xlabel() == "$p_T$ [GeV]"
    assert labels(figure) == ["jets"]


def test_each_category_is_a_line_with_its_name() -> None:
    figure = draw(flavours())
    assert labels(figure) == ["b", "light"]
    assert [sum(line) for line in heights(figure)] == [3.0, 1.0]


def test_two_category_axes_give_a_line_for_each_pair() -> None:
    years = hist.axis.IntCategory([2022, 2023], name="year")
    histogram = hist.Hist(years, hist.axis.StrCategory(["e", "mu"], name="lepton"), PT)
    histogram.fill(year=2023, lepton="mu", pt=[1.0])
    figure = draw(histogram)
    assert labels(figure) == ["2022 e", "2022 mu", "2023 e", "2023 mu"]
    assert [sum(line) for line in heights(figure)] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("storage", ["double", "int64", "weight"])
def test_any_storage_of_counts_can_be_drawn(storage: str) -> None:
    assert sum(heights(draw(filled(storage=storage)))[0]) == 50


def test_a_histogram_without_entries_categories_or_label_is_an_empty_picture() -> None:
    growing = hist.Hist(hist.axis.StrCategory([], growth=True, name="dataset"), PT)
    assert heights(draw(growing)) == []
    assert labels(draw(growing)) == []
    assert heights(draw(hist.Hist(PT))) == [[0.0] * 10]


def test_all_histograms_of_an_accumulator_are_drawn_by_their_place_in_it(tmp_path: Path) -> None:
    flat = hist.Hist(PT, hist.axis.Regular(3, 0, 1, name="eta"))
    output = {"tt": {"jet/pt": filled(), "events": 400, 7: filled()}, "flavours": flavours(), "2d": flat}
    files = draw_all(output, tmp_path)
    assert sorted(path.name for path in files) == ["flavours.png", "tt_7.png", "tt_jet_pt.png"]
    assert sorted(files) == sorted(tmp_path.iterdir())
    for path in files:
        picture = mpl.image.imread(path)
        assert picture.shape[:2] == (1200, 1350)
        assert np.ptp(picture) > 0.5


def test_a_lone_histogram_and_an_accumulator_without_any_are_fine(tmp_path: Path) -> None:
    assert [path.name for path in draw_all(filled(), tmp_path)] == ["histogram.png"]
    assert draw_all({"events": 3, "none": None}, tmp_path) == []


def test_drawing_leaves_the_users_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    draw_all({"a": filled()}, tmp_path)
    assert dict(mpl.rcParams) == before
