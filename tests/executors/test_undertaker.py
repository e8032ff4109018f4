"""Jobs that a driver leaves are cancelled, however it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sonic_parsl.executors.undertaker import Undertaker
from tests.leaks import our_processes, wait_until

DRIVER = """
import itertools, os, signal, types
from sonic_parsl.executors.undertaker import Undertaker

numbers = itertools.count(1)
provider = types.SimpleNamespace(submit=lambda command, name: str(next(numbers)) if command else None)
undertaker = Undertaker()
undertaker.watch(provider, "scancel")
assert [provider.submit("a", name="b"), provider.submit("", name="c"), provider.submit("d", name="e")] == ["1", None, "2"]
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_jobs_of_a_driver_that_is_killed_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    subprocess.run([sys.executable, "-c", DRIVER], check=False, timeout=60)
    wait_until(lambda: not our_processes("undertaker.py"), 20)
    assert said.read_text() == "1 2\n"


def test_where_nothing_was_submitted_there_is_nobody() -> None:
    undertaker = Undertaker()
    undertaker.close()
    assert not our_processes("undertaker.py")
