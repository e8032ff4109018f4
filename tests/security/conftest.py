"""A run, and another user on its machine."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

INTRUDER = Path(__file__).parent / "intruder.py"
INTRUDER_S = 120.0


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user can look into: those of pytest would hide what the run should."""
    folder = Path(tempfile.mkdtemp(prefix="open-folder-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def other_user() -> Callable[..., Any]:
    """Start a process of another user, who does what a plan says."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    return _intruder


@contextmanager
def _intruder(**plan: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield what ends the process and returns its outcome."""
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, str(INTRUDER)],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(plan) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"

        def outcome() -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            # Not communicate(): what came together with "ready" is in this file's buffer already.
            said = process.stdout.read()
            process.wait(INTRUDER_S)
            return dict(json.loads(said))

        try:
            yield outcome
        finally:
            with suppress(ProcessLookupError):
                process.kill()


def holds_key(text: str) -> bool:
    """Return whether a text holds a private key, as it is or as jobs carry it."""
    if "PRIVATE KEY" in text:
        return True
    for word in re.findall(r"[A-Za-z0-9+/]{200,}", text):
        for start in range(4):
            part = word[start:]
            if b"PRIVATE KEY" in base64.b64decode(part[: len(part) // 4 * 4]):
                return True
    return False


def lines_of(pem: str) -> list[str]:
    """Return the lines of a key that can be of no other; its first is the same for every key."""
    return pem.splitlines()[2:-1]
