from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leaks import assert_nothing_is_left, mark_this_run


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left_behind() -> Iterator[None]:
    """No process, temporary folder or shared memory outlives the test run."""
    mark_this_run()
    yield
    assert_nothing_is_left()
