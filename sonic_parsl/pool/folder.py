"""The folder of a pool's files, which hold keys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sonic_parsl.errors import ConfigError, SonicError
from sonic_parsl.poolref import PoolRef

KEYS = ("*.json", "certificates/*.key_secret", "parsl/**/*.key_secret")
SCRIPTS = "parsl/*/submit_scripts/*"
"""They hold a block's key where nodes share no file system."""
LOGS = ("out", "err", "ec")
"""How the names of jobs' logs end, which lie beside the scripts."""


def make_private(folder: Path) -> None:
    """Make a folder that only this user can enter, or take one that only this user can write to.

    Raises
    ------
    ConfigError
        Others can write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"The pool's folder {folder} can be written to by others, who could then start what they like.",
            hint=f"Run `chmod go-w {folder}` if it is yours, or name another folder.",
        )


def holds(folder: Path, run_id: str) -> bool:
    """Return whether a folder has the files of this run, and not of one that took it over."""
    try:
        return PoolRef.read(folder / "pool.json").run_id == run_id
    except SonicError:
        return False


def remove_keys(folder: Path) -> None:
    """Remove what holds keys, and leave the logs."""
    scripts = (path for path in folder.glob(SCRIPTS) if not path.name.endswith(LOGS))
    for path in (*(path for pattern in KEYS for path in folder.glob(pattern)), *scripts):
        path.unlink(missing_ok=True)
