"""A copy of the installed Triton that a test may damage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sonic_parsl.server.install import WheelInstallation


def copied(installed: WheelInstallation, cache: Path) -> Path:
    """Copy an installation into another cache by hard links; replace a file, never write into it."""
    target = cache / "server" / installed.folder.name
    shutil.copytree(installed.folder, target, symlinks=True, copy_function=_link)
    return target


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
