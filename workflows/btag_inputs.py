"""What the ``btag`` tagger reads and what its scores mean, in the order of its tensors."""

from __future__ import annotations

FEATURES: tuple[str, ...] = (
    "pt",
    "eta",
    "mass",
    "chHEF",
    "neHEF",
    "chEmEF",
    "neEmEF",
    "muEF",
    "nConstituents",
    "nElectrons",
    "nMuons",
    "nSVs",
)
"""Fields of a NanoAOD ``Jet``, as stored (pt and mass in GeV): no transformation, no other tagger's output."""

CLASSES: tuple[str, ...] = ("b", "c", "light")
"""The columns of ``scores``; they sum to one."""

MIN_PT_GEV = 20.0
MAX_ABS_ETA = 2.5
"""The jets that the tagger was trained on; outside the tracker its scores mean nothing."""
