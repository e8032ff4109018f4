from __future__ import annotations

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

SCHEDULERS = Path(__file__).parent / "schedulers"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the schedulers: theirs is the longest share of two processes of tests."""
    items.sort(key=lambda item: SCHEDULERS not in item.path.parents)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Shares tests out by the file, since a file's tests share what they start.

    The schedulers' all go to one process: of each, a machine has one.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "schedulers" if "schedulers" in Path(path).parts else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Share tests out among processes; see ``make test``."""
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process, temporary folder or shared memory outlives the test run."""
    tmp_path_factory.getbasetemp()  # pytest's own folder stays where it is
    with tempfile.TemporaryDirectory(prefix="tests-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o1777)  # as /tmp is: other users have processes in these tests, too
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        # As in an activated environment: hand-written Parsl configurations find their scripts on PATH.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        mark_this_run()
        yield
        assert_nothing_is_left()
