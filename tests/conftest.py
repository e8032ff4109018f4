from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import assert_nothing_is_left, mark_this_run

TESTS = Path(__file__).parent
SCHEDULERS = TESTS / "schedulers"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let processes of tests share them out by the file, but the schedulers' all to one, which starts with them.

    A file's tests share what they start; of each scheduler a machine has one.
    """
    items.sort(key=lambda item: SCHEDULERS not in item.path.parents)
    for item in items:
        group = SCHEDULERS if SCHEDULERS in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(group.relative_to(TESTS))))


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
