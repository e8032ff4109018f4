"""The soak runs, strikes, and sees what grows; how long it holds is for ``make soak``."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.faults.soak import (
    ALL_KINDS_MINUTES,
    DESCRIPTORS,
    FAULTS,
    MEMORY,
    THREADS,
    WARM_UP_RUNS,
    Growth,
    Size,
    faults,
    kill,
    missed,
)
from tests.leaks import wait_until

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


def test_it_strikes_and_counts_only_what_was_there() -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        kinds = [
            ("of a process", lambda: [psutil.Process(victim.pid)] if victim.poll() is None else [], kill),
            ("of nobody", list, kill),
        ]
        with faults(random.Random(1), kinds, (0.0, 0.01)) as log:
            victim.wait(10)
        assert log == ["of a process"]


def test_a_fault_that_cannot_be_done_fails_it() -> None:
    tried = threading.Event()

    def find() -> list[psutil.Process]:
        tried.set()
        raise ValueError("no such word")

    def strike() -> None:
        with faults(random.Random(1), [("a fault", find, kill)], (0.0, 0.01)):
            wait_until(tried.is_set, 10)

    with pytest.raises(ValueError, match="no such word"):
        strike()


def test_faults_that_never_struck_are_named() -> None:
    (first, *others) = [name for name, _, _ in FAULTS]
    assert missed([], 0.3) == ["no fault has struck"]
    assert not missed([first], 0.3)
    assert missed([first], ALL_KINDS_MINUTES) == [f"{name} has never struck" for name in others]
    assert not missed([first, *others], ALL_KINDS_MINUTES)


def growth(*sizes: Size, role: str = "worker") -> Growth:
    """Return the growth of one process of a role, beside others that stay as they are."""
    steady = {psutil.Process(): [SMALL] * (WARM_UP_RUNS + 2)}
    found = Growth()
    found.sizes = {"driver": dict(steady), "registry": dict(steady), "worker": dict(steady)}
    found.sizes[role] = {psutil.Process(): [SMALL] * (WARM_UP_RUNS - 1) + [*sizes]}
    return found


@pytest.mark.parametrize("name", ["memory", "descriptors", "threads"])
@pytest.mark.parametrize("role", ["driver", "registry", "worker"])
def test_a_process_that_grows_is_named(role: str, name: str) -> None:
    bounds = {"memory": MEMORY[role], "descriptors": DESCRIPTORS, "threads": THREADS}
    kept, grown = (replace(SMALL, **{name: getattr(SMALL, name) + bounds[name] + more}) for more in (0, 1))
    assert not growth(SMALL, SMALL, kept, role=role).found()
    (text,) = growth(SMALL, SMALL, grown, role=role).found()
    assert text.startswith(f"{role} ")
    assert f"{name} grew from " in text


def test_what_fills_before_the_caches_are_full_is_no_growth() -> None:
    full = Size(SMALL.memory + 2 * MEMORY["worker"], 40, 16)
    assert not growth(full, full, full).found()


def test_a_role_of_which_nothing_is_known_is_told() -> None:
    (text,) = growth(SMALL, role="registry").found()
    assert text.startswith("registry: none lived for more than")
