"""Pictures of histograms, in the style of the experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hist
import matplotlib.figure
import matplotlib.style
import mplhep
from matplotlib.backends.backend_agg import FigureCanvasAgg

DPI = 150


def draw_all(output: Any, folder: Path) -> list[Path]:
    """Draw every histogram in an accumulator that has one numeric axis; return the files."""
    return [
        save(draw(histogram, label=name), folder / f"{name.replace('/', '_')}.png")
        for name, histogram in _histograms(output, "")
        if sum(not _is_category(axis) for axis in histogram.axes) == 1
    ]


def draw(histogram: hist.Hist, *, label: str = "") -> matplotlib.figure.Figure:
    """Return a picture of a histogram with one numeric axis, a line for each category."""
    with house_style():
        figure, axes = new_figure()
        for name, slice_ in _slices(histogram):
            mplhep.histplot(slice_, ax=axes, label=name or label, yerr=True)
        numeric = next(axis for axis in histogram.axes if not _is_category(axis))
        axes.set_xlabel(numeric.label or numeric.name)
        axes.set_ylabel("Entries")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def house_style() -> AbstractContextManager[None]:
    """Draw in the experiments' style within the ``with`` block."""
    return matplotlib.style.context(mplhep.style.CMS)


def new_figure() -> tuple[matplotlib.figure.Figure, Any]:
    """Return an empty figure that needs no display and no global state, and its axes."""
    figure = matplotlib.figure.Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: matplotlib.figure.Figure, path: Path) -> Path:
    """Write a figure to `path`, and return the path."""
    figure.savefig(path, dpi=DPI)
    return path


def _histograms(value: Any, name: str) -> Iterator[tuple[str, hist.Hist]]:
    if isinstance(value, hist.Hist):
        yield name or "histogram", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _histograms(item, f"{name}_{key}" if name else str(key))


def _slices(histogram: hist.Hist) -> Iterator[tuple[str, hist.Hist]]:
    category = next((axis for axis in histogram.axes if _is_category(axis)), None)
    if category is None:
        yield "", histogram
        return
    for value in category:
        yield from (
            (" ".join(filter(None, (str(value), name))), slice_)
            for name, slice_ in _slices(histogram[{category.name: hist.loc(value)}])
        )


def _is_category(axis: Any) -> bool:
    return isinstance(axis, (hist.axis.StrCategory, hist.axis.IntCategory))
