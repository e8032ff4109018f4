"""The schedulers' packages, from the distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
INSTALL_S = 300


def provide(scheduler: str, programs: Sequence[str], packages: Sequence[str]) -> None:
    """See to it that a scheduler's programs are installed; only root can do that, and run its daemons.

    Others skip what needs them; in CI nothing is skipped.

    Raises
    ------
    AssertionError
        They cannot be installed.
    """
    if os.geteuid() != 0:
        skip = pytest.fail if os.environ.get("CI") else pytest.skip
        skip(f"{scheduler} is tried by root only, who can start its daemons")
    if missing(programs):
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *packages)
    assert not missing(programs), f"{scheduler} lacks {', '.join(missing(programs))} after its packages were installed"


def missing(programs: Sequence[str]) -> list[str]:
    """Return those that are not installed."""
    return [program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None]


def _apt_get(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", "--quiet", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    assert done.returncode == 0, f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
