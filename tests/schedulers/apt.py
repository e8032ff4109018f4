"""Programs of the distribution that tests need, schedulers' above all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NoReturn

import pytest

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
INSTALL_S = 300


def provide(what: str, programs: Sequence[str], packages: Sequence[str]) -> None:
    """See to it that programs are installed, and that they can be used: by root only.

    Elsewhere, what needs them is skipped; in CI it fails.
    """
    if os.geteuid() != 0:
        cannot(f"{what}: only root can try it")
    said = ""
    if missing(programs):
        said = _apt_get("update") or _apt_get("install", "--yes", "--no-install-recommends", *packages)
    if lacking := missing(programs):
        cannot(f"{what}: {', '.join(lacking)} cannot be installed: {said or 'the packages do not hold it'}")


def cannot(why: str) -> NoReturn:
    """Skip what cannot be tried here; in CI nothing is skipped."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def missing(programs: Sequence[str]) -> list[str]:
    """Return those that are not installed."""
    return [program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None]


def _apt_get(*arguments: str) -> str:
    """Return what it says where it fails, a line."""
    try:
        done = subprocess.run(
            ["apt-get", "--quiet", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SYSTEM_PATH},
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except FileNotFoundError:
        return "there is no apt-get"
    except subprocess.TimeoutExpired:
        return f"apt-get {arguments[0]} takes longer than {INSTALL_S} s"
    return "" if done.returncode == 0 else (done.stderr.strip() or f"apt-get {arguments[0]} fails").splitlines()[-1]
