"""The worker's side of a pool: split a call into requests, send them to servers, gather the rows."""

from __future__ import annotations
