from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.client.retry import MAX_BACKOFF_S, attempt_timeout, backoff, learn


def test_an_attempt_gets_many_times_what_is_usual_but_not_too_little() -> None:
    assert attempt_timeout(None) == 60.0
    assert attempt_timeout(0.01) == 10.0
    assert attempt_timeout(5.0) == 50.0


def test_each_time_out_doubles_the_next() -> None:
    assert [attempt_timeout(0.01, timed_out=n) for n in range(3)] == [10.0, 20.0, 40.0]


@given(latencies=st.lists(st.floats(0.001, 100.0), min_size=1))
def test_what_is_usual_lies_among_what_was_seen(latencies: list[float]) -> None:
    usual: float | None = None
    for latency in latencies:
        usual = learn(usual, latency)
    assert usual is not None
    assert min(latencies) * 0.999 <= usual <= max(latencies) * 1.001


def test_what_is_usual_follows_a_change() -> None:
    usual: float | None = 1.0
    for _ in range(50):
        usual = learn(usual, 3.0)
    assert usual == pytest.approx(3.0, rel=0.01)


@given(attempt=st.integers(1, 10_000), seed=st.integers())
def test_waiting_grows_to_a_bound_and_is_never_nothing(attempt: int, seed: int) -> None:
    wait = backoff(attempt, random.Random(seed))
    assert 0.025 <= wait <= min(MAX_BACKOFF_S, 0.05 * 2 ** min(attempt - 1, 16))
