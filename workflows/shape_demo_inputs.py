"""What ``shape_demo`` reads: padded particle-flow candidates of a jet, in the order of its tensors."""

from __future__ import annotations

FEATURES: tuple[str, ...] = ("pt", "eta", "phi", "mass", "d0", "dz", "charge", "puppiWeight")
"""Fields of ``jets.constituents.pf`` under coffea's ``PFNanoAODSchema``, as stored (pt, mass in GeV; d0, dz in cm)."""

LENGTH = 50
"""Candidates a jet; fewer are padded, more are cut."""

CLASSES: tuple[str, ...] = ("s0", "s1", "s2")
"""The columns of ``scores``: they mean nothing, and sum to one."""
