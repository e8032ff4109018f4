"""Lengths of jobs, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sonic_parsl.walltime import Walltime, clock, seconds

READ = TypeAdapter(Walltime)


@pytest.mark.parametrize(
    ("written", "expected_s"),
    [("00:10:00", 600), ("02:00:00", 7200), ("100:00:01", 360_001), ("2-01:00:00", 176_400), (90, 90), (0.5, 0.5)],
)
def test_a_walltime_is_a_clock_or_seconds(written: object, expected_s: float) -> None:
    assert READ.validate_python(written) == expected_s


@pytest.mark.parametrize("written", ["10:00", "1h", "00:61:00", "", 0, -1, "00:00:00"])
def test_what_is_neither_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python(written)


@given(walltime_s=st.integers(1, 10**7))
def test_what_is_told_to_a_scheduler_is_what_was_read(walltime_s: int) -> None:
    assert seconds(clock(walltime_s)) == walltime_s
