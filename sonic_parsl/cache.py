"""Where downloads live between runs: samples, server runtimes."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the project's cache folder; it need not exist yet.

    It is the folder named by ``SONIC_PARSL_CACHE``, else the user's cache folder.
    """
    override = os.environ.get("SONIC_PARSL_CACHE")
    return Path(override).expanduser().absolute() if override else platformdirs.user_cache_path("sonic-parsl")
