from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.client.latency import add, merge, quantile

LATENCIES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=100)


@given(latencies=LATENCIES, q=st.floats(0.01, 1.0))
def test_a_quantile_is_right_within_a_bucket(latencies: list[float], q: float) -> None:
    histogram: dict[int, int] = {}
    for latency in latencies:
        histogram = add(histogram, latency)
    rank = next(i for i in range(1, len(latencies) + 1) if i >= q * len(latencies))
    assert quantile(histogram, q) == pytest.approx(sorted(latencies)[rank - 1], rel=0.0251)


@given(one=LATENCIES, other=LATENCIES)
def test_merging_is_the_same_as_adding_all(one: list[float], other: list[float]) -> None:
    def histogram(latencies: list[float]) -> dict[int, int]:
        return merge(add({}, latency) for latency in latencies)

    assert merge((histogram(one), histogram(other))) == histogram(one + other)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None
