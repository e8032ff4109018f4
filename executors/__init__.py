"""Parsl and coffea executors: blocks that are servers, chunks that know their pool."""

from __future__ import annotations
