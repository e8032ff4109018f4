"""The owner's side of a pool: who serves now, and how many should."""

from __future__ import annotations
