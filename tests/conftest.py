from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling

from tests.leaks import assert_nothing_is_left, mark_this_run

ROOT = Path(__file__).parents[1]
SCHEDULERS = ROOT / "tests" / "schedulers"
FAULTS = ROOT / "tests" / "faults"
BENCHMARKS = Path(__file__).with_name("test_benchmarks.py")
"""One of them starts a scheduler, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the schedulers: theirs is the longest share of two processes of tests. Mark what takes minutes."""
    for item in items:
        if item.path == BENCHMARKS or FAULTS in item.path.parents:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not _starts_a_scheduler(item.path))


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Shares tests out by the file, since a file's tests share what they start.

    Those that start schedulers all go to one process: of each, a machine has one.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "schedulers" if _starts_a_scheduler(ROOT / path) else path


def _starts_a_scheduler(path: Path) -> bool:
    return path == BENCHMARKS or SCHEDULERS in path.parents


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Share tests out among processes; see ``make test``."""
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="module")
def no_garbage_holds_grpc() -> None:
    """What former tests left of gRPC is gone: a job that is submitted while it is there may fail in the fork."""
    gc.collect()


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process, temporary folder or shared memory outlives the test run."""
    pytests = tmp_path_factory.getbasetemp()  # stays where it is
    with tempfile.TemporaryDirectory(prefix="tests-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o1777)  # as /tmp is: other users have processes in these tests, too
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        # As in an activated environment: hand-written Parsl configurations find their scripts on PATH.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        mark_this_run(pytests)
        yield
        assert_nothing_is_left()
