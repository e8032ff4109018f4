"""b tagging in top-quark pairs: every jet scored by the pool, compared with the simulation's truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import hist
import matplotlib.figure
import mplhep
import numpy as np
from coffea.nanoevents import NanoAODSchema
from coffea.processor import ProcessorABC
from typing_extensions import override

from sonic_parsl import Model
from sonic_parsl.workflows import samples
from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES, MAX_ABS_ETA, MIN_PT_GEV
from sonic_parsl.workflows.pictures import house_style, new_figure, save

models = "models"
fileset = samples.fileset

MEDIUM = 0.6
"""Score above which a jet counts as a b jet in the second picture: a compromise, not a calibrated working point."""
COLORS = {"b": "#bd1f01", "c": "#ffa90e", "light": "#3f90da"}


class schema(NanoAODSchema):  # type: ignore[misc]  # noqa: N801 - the name that a workflow file gives it
    """NanoAOD without a warning for each collection that a skimmed file lacks."""

    warn_missing_crossrefs = False


class BTagTTbar(ProcessorABC):  # type: ignore[misc]
    """Scores jets and fills them by true flavour."""

    tagger = Model("btag", inputs={"features": FEATURES}, outputs={"scores": CLASSES})

    @override
    def process(self, events: Any) -> dict[str, Any]:
        """Return event counts and histograms of a chunk."""
        jets = events.Jet
        jets["btag"] = self.tagger(jets)  # sent now, awaited when first read
        scores = hist.Hist(
            hist.axis.StrCategory(CLASSES, name="flavour"),
            hist.axis.Regular(20, 0, 1, name="score", label="b score"),
            storage="weight",
        )
        tags = hist.Hist(hist.axis.Integer(0, 7, name="tags", label="b-tagged jets", underflow=False))
        good = jets[(jets.pt > MIN_PT_GEV) & (abs(jets.eta) < MAX_ABS_ETA)]
        for flavour, code in (("b", 5), ("c", 4), ("light", 0)):
            of_flavour = good[good.hadronFlavour == code]
            scores.fill(flavour=flavour, score=ak.flatten(of_flavour.btag.b))
        tags.fill(tags=ak.sum(good.btag.b > MEDIUM, axis=1))
        return {"events": len(events), "jets": int(ak.sum(ak.num(jets))), "b score": scores, "b tags": tags}

    @override
    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Return what was accumulated, as it is."""
        return accumulator


def draw(output: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the discriminant by true flavour, and how many jets are tagged in an event."""
    with house_style():
        return [
            save(_scores(output["b score"]), folder / "b_score.png"),
            save(_tags(output["b tags"], output["events"]), folder / "b_tags.png"),
        ]


def _scores(histogram: hist.Hist) -> matplotlib.figure.Figure:
    figure, axes = new_figure()
    for flavour in CLASSES:
        values = histogram[{"flavour": flavour}]
        jets = int(values.sum().value)
        shape = values / max(jets, 1) / values.axes[0].widths[0]
        mplhep.histplot(
            shape, ax=axes, label=f"{flavour} ({jets} jets)", color=COLORS[flavour], linewidth=2, flow="none"
        )
    axes.set_xlabel("b score")
    axes.set_ylabel("Jets, normalised to one")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.legend(title="true flavour", loc="upper center")
    _caption(axes, f"$p_T$ > {MIN_PT_GEV:g} GeV, |η| < {MAX_ABS_ETA:g}")
    return figure


def _tags(histogram: hist.Hist, events: int) -> matplotlib.figure.Figure:
    figure, axes = new_figure()
    values = histogram.values()
    edges = np.arange(len(values) + 1) - 0.5
    mplhep.histplot(values, edges, ax=axes, yerr=np.sqrt(values), color="black", linewidth=2, flow="none")
    axes.set_xlabel(f"Jets with b score > {MEDIUM:g}")
    axes.set_ylabel("Events")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    _caption(axes, f"{events} events")
    return figure


def _caption(axes: Any, right: str) -> None:
    axes.set_title(r"$t\bar{t}$ simulation (NanoAOD)", loc="left", fontsize="small")
    axes.set_title(right, loc="right", fontsize="small")
