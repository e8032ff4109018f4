"""Complete analyses that run as they stand, with the models and data they need."""

from __future__ import annotations
