from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sonic_parsl.workflows.generate import generate
from tests.faults.runs import EVENTS, Analysis
from tests.schedulers.gridengine import GridEngine, gridengine_cell
from tests.schedulers.slurm import Slurm, slurm_cluster

INSTALL_S = 1200
"""The first test of a scheduler on a fresh machine installs its packages; HTCondor's has to make a system, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests in this folder the time that this may take."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(INSTALL_S))
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of six emulated nodes."""
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="package")
def cell() -> Iterator[GridEngine]:
    """A real Grid Engine of one host."""
    with gridengine_cell() as booted:
        yield booted


@pytest.fixture(scope="package")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """The analysis of generated events."""
    return Analysis(generate(tmp_path_factory.mktemp("events") / "events.root", events=EVENTS))


@pytest.fixture(scope="package")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events for minutes, in small chunks."""
    return generate(tmp_path_factory.mktemp("many") / "events.root", events=200_000)
