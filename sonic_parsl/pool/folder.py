"""The folder of a pool's files, which hold keys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sonic_parsl.errors import ConfigError


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
