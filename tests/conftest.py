from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import assert_nothing_is_left, mark_this_run


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left_behind() -> Iterator[None]:
    """No process, temporary folder or shared memory outlives the test run."""
    mark_this_run()
    # As in an activated environment: hand-written Parsl configurations find their scripts on PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    yield
    assert_nothing_is_left()
