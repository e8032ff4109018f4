"""The text of the ``btag`` model card; every figure in it is measured when it is written."""

from __future__ import annotations

import numpy as np

from sonic_parsl.workflows import samples
from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES, MAX_ABS_ETA, MIN_PT_GEV
from sonic_parsl.workflows.training.jets import Jets
from sonic_parsl.workflows.training.mlp import Recipe
from sonic_parsl.workflows.training.roc import N_BOOTSTRAPS, Area

TEMPLATE = """\
# btag

Gives each jet of a NanoAOD file a score for **b**, **c** and **light** (gluons and jets without a hadron of
heavy flavour, pile-up and prompt leptons included). It was trained on a few hundred simulated events so that this
project has a real tagger to serve. It is not for physics results.

## Data
Simulated ttbar events of CMS, {samples},
out of the source distribution of {source} (BSD-3-Clause). Jets with pt > {min_pt:g} GeV and
|eta| < {max_eta:g}; truth is `Jet_hadronFlavour` (5, 4, 0).

| | events | b | c | light |
|---|---|---|---|---|
| training | {train} |
| held out | {test} |

The split is by event: no event has jets in both. Widths, steps and weight decay were chosen by cross-validation
inside the training events.

## Inputs and output
`features`, FP32, one row a jet, fields of NanoAOD's `Jet` as stored, in this order:
{features}.
None is the output of another tagger. `scores`, FP32: {classes}; they sum to one.

## Architecture
Inside the ONNX file: log(1 + |x|), standardisation, dense layers of {widths} with ReLU between, softmax;
{n_bytes} bytes. Trained in NumPy: Adam, {steps} full-batch steps, rate {rate:g}, weight decay {decay:g}, seed {seed}.
Each class has the same total weight, so the scores are not probabilities in a ttbar sample.

## Performance on the held-out events
Area under the ROC curve of b / (b + other), with the standard deviation over {bootstraps} bootstrap samples of
events. ParticleNet, CMS's own tagger (`btagPNetB`, `btagPNetCvB`), is on the same jets for comparison.

| | b vs light | b vs c |
|---|---|---|
| btag | {btag_light} | {btag_c} |
| ParticleNet | {particle_net_light} | {particle_net_c} |

## Limits
- The errors above are for one split of {n_events} events. A difference below about twice the error means nothing.
- Of tracks and vertices, the `Jet` fields in both files tell only the number of secondary vertices: ParticleNet sees
  far more, and c jets are poorly told from b.
- Only ttbar: the jet pt spectrum and the prompt leptons among the light jets are those of ttbar, and the tagger
  uses both.
- Trained on simulation, never compared with data: no scale factors, no working points, no calibration.
- Outside the selection above the scores mean nothing.

Written by `python -m sonic_parsl.workflows.training.btag`.
"""


def text(train: Jets, test: Jets, *, areas: dict[str, Area], recipe: Recipe, n_bytes: int) -> str:
    """Return the card."""
    return TEMPLATE.format(
        samples=" and ".join(f"`{name}`" for name in samples.TTBAR),
        source=f"`{samples.SOURCE}`",
        min_pt=MIN_PT_GEV,
        max_eta=MAX_ABS_ETA,
        train=_counts(train),
        test=_counts(test),
        features=", ".join(f"`{name}`" for name in FEATURES),
        classes=", ".join(CLASSES),
        widths=" → ".join(str(n) for n in (len(FEATURES), *recipe.hidden, len(CLASSES))),
        n_bytes=n_bytes,
        steps=recipe.steps,
        rate=recipe.rate,
        decay=recipe.decay,
        seed=recipe.seed,
        bootstraps=N_BOOTSTRAPS,
        n_events=train.n_events + test.n_events,
        btag_light=_area(areas["btag b vs light"]),
        btag_c=_area(areas["btag b vs c"]),
        particle_net_light=_area(areas["ParticleNet b vs light"]),
        particle_net_c=_area(areas["ParticleNet b vs c"]),
    )


def _counts(jets: Jets) -> str:
    per_class = np.bincount(jets.truth, minlength=len(CLASSES))
    return " | ".join(str(n) for n in (jets.n_events, *per_class))


def _area(area: Area) -> str:
    return f"{area.value:.3f} ± {area.error:.3f}"
