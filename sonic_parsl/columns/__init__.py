"""Awkward arrays to tensors, and tensors to awkward arrays."""

from __future__ import annotations

from sonic_parsl.columns.lazy import Answer, empty_record, lazy_record, resolve_outputs, traced_record
from sonic_parsl.columns.specs import Fields, Mask, Output, Padded, read_fill, read_inputs, read_outputs
from sonic_parsl.columns.tensors import Batch, gather, gather_arrays, touch

__all__ = [
    "Answer",
    "Batch",
    "Fields",
    "Mask",
    "Output",
    "Padded",
    "empty_record",
    "gather",
    "gather_arrays",
    "lazy_record",
    "read_fill",
    "read_inputs",
    "read_outputs",
    "resolve_outputs",
    "touch",
    "traced_record",
]
