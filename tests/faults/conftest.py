"""One site for faults that a pool recovers from, and the analysis whose result must not change."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import sonic_parsl as sonic
from sonic_parsl.executors.site import Site
from sonic_parsl.pool import named
from sonic_parsl.workflows.generate import generate
from tests.faults.runs import EVENTS, Analysis, agents, tritons, wait_at, wait_whole, write_site
from tests.leaks import assert_nothing_is_left, wait_until


@dataclass(frozen=True)
class Ground:
    """A site of two servers and two workers, and what its tests may turn.

    Attributes
    ----------
    gate
        While this file exists, jobs of servers wait as if in a queue.
    """

    site: Site
    gate: Path


@pytest.fixture(scope="session")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """The analysis of generated events."""
    return Analysis(generate(tmp_path_factory.mktemp("events") / "events.root", events=EVENTS))


@pytest.fixture(scope="module")
def shared_ground(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("faults")
    gate = folder / "gate"
    with sonic.load_site(write_site(folder, init=wait_at(gate))) as site:
        site.wait_ready()
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        yield Ground(site, gate)
    assert_nothing_is_left()


@pytest.fixture
def ground(shared_ground: Ground) -> Ground:
    """The site, with all its servers and no process of those that a former test has ended."""
    wait_whole(shared_ground.site)
    wait_until(lambda: len(agents()) == len(tritons()) == 2, 30, what=agents)
    return shared_ground


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folders for state; pools that a test leaves there end."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path
    for pool in named.running():
        with suppress(ProcessLookupError):
            os.kill(pool.pid, signal.SIGTERM)
    wait_until(lambda: not named.running(), 60, what=named.running)
