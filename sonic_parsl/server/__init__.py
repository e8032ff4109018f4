"""The server node's side of a pool: the agent that owns one Triton."""

from __future__ import annotations
