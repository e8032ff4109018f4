"""The soak runs, and sees what grows; how long it holds is for ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults.soak import DESCRIPTORS, MEMORY, THREADS, WARM_UP_RUNS, Growth, Size

SMALL = Size(memory=10**8, descriptors=40, threads=16)
SOAK_S = 150.0


@pytest.mark.timeout(SOAK_S + 30)
def test_some_seconds_of_it_end_with_every_event_and_nothing_left() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", "--minutes", "0.3", "--seed", "7"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SOAK_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for role in ("driver", "registry", "worker"):
        assert f"\n{role} " in done.stdout


def growth(*sizes: Size, role: str = "worker") -> Growth:
    """Return the growth of one process of a role, beside others that stay as they are."""
    steady = {psutil.Process(): [SMALL] * (WARM_UP_RUNS + 2)}
    found = Growth()
    found.sizes = {"driver": dict(steady), "registry": dict(steady), "worker": dict(steady)}
    found.sizes[role] = {psutil.Process(): [SMALL] * (WARM_UP_RUNS - 1) + [*sizes]}
    return found


@pytest.mark.parametrize(
    ("grown", "name"),
    [
        (Size(SMALL.memory + MEMORY + 1, 40, 16), "memory"),
        (Size(SMALL.memory, 40 + DESCRIPTORS + 1, 16), "descriptors"),
        (Size(SMALL.memory, 40, 16 + THREADS + 1), "threads"),
    ],
    ids=["memory", "descriptors", "threads"],
)
@pytest.mark.parametrize("role", ["driver", "registry", "worker"])
def test_a_process_that_grows_is_named(role: str, grown: Size, name: str) -> None:
    (text,) = growth(SMALL, SMALL, grown, role=role).found()
    assert text.startswith(f"{role} ")
    assert f"{name} grew from " in text


def test_what_fills_before_the_caches_are_full_is_no_growth() -> None:
    full = Size(SMALL.memory + 2 * MEMORY, 40, 16)
    assert not growth(full, full, full).found()


def test_a_role_of_which_nothing_is_known_is_told() -> None:
    (text,) = growth(SMALL, role="registry").found()
    assert text.startswith("registry: none lived for more than")
