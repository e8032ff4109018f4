"""Inference as a service for Parsl and coffea."""

from __future__ import annotations
