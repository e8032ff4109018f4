"""Packaged site files, one YAML a kind of site."""

from __future__ import annotations
