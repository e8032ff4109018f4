"""The soak runs, strikes, and sees what grows; how long it holds is for ``make soak``."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.soak import (
    ALL_KINDS_MINUTES,
    DESCRIPTORS,
    FAULTS,
    LONG_RUNS,
    MEMORY,
    THREADS,
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
    assert "every score and histogram as undisturbed" in done.stdout


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
    steady = {psutil.Process(): [SMALL] * LONG_RUNS}
    found = Growth()
    found.sizes = {"driver": dict(steady), "registry": dict(steady), "worker": dict(steady)}
    found.sizes[role] = {psutil.Process(): [*sizes]}
    return found


BOUNDS = {"memory": MEMORY, "descriptors": DESCRIPTORS, "threads": THREADS}


@pytest.mark.parametrize("name", list(BOUNDS))
@pytest.mark.parametrize("role", ["driver", "registry", "worker"])
def test_a_process_that_grows_is_named(role: str, name: str) -> None:
    kept, grown = (replace(SMALL, **{name: getattr(SMALL, name) + BOUNDS[name] + more}) for more in (0, 1))
    assert not growth(*[SMALL] * LONG_RUNS, kept, role=role).found()
    (text,) = growth(*[SMALL] * LONG_RUNS, grown, role=role).found()
    assert text.startswith(f"{role} ")
    assert f"{name} grew from " in text


@given(more=st.integers(1, 2**20), runs=st.integers(LONG_RUNS, 400))
def test_what_grows_a_little_with_each_run_is_found_in_the_end(more: int, runs: int) -> None:
    sizes = [replace(SMALL, memory=SMALL.memory + more * run) for run in range(runs)]
    assert bool(growth(*sizes).found()) == (more * (runs - runs // 2) > MEMORY)


def test_a_later_process_of_a_role_is_compared_to_the_first() -> None:
    found, first, second = Growth(), psutil.Process(), psutil.Process(os.getppid())
    large = replace(SMALL, memory=SMALL.memory + 2 * MEMORY)
    found.sizes["registry"] = {first: [SMALL] * LONG_RUNS, second: [large] * LONG_RUNS}
    (text,) = found.found()
    assert text.startswith(f"registry {second.pid}: memory grew from ")


def test_what_fills_before_the_caches_are_full_is_no_growth() -> None:
    full = replace(SMALL, memory=SMALL.memory + 2 * MEMORY)
    assert not growth(*[SMALL] * 10, *[full] * LONG_RUNS).found()


def test_a_role_of_which_nothing_is_known_is_told_after_a_long_soak() -> None:
    short_lived = growth(*[SMALL] * (LONG_RUNS - 1), role="registry")
    assert not short_lived.found()
    assert not short_lived.unknown(0.3)
    (text,) = short_lived.unknown(ALL_KINDS_MINUTES)
    assert text.startswith("registry: none lived for")
