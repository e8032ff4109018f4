"""When a pool that outlives its runs has had nothing to do for long enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.executors.lasting_pool import IdleWatch


@given(idle_s=st.floats(1, 1e4), part=st.floats(0, 0.99))
def test_it_is_over_after_the_idle_time_and_not_before(idle_s: float, part: float) -> None:
    watch = IdleWatch(idle_s)
    assert not watch.is_over(0, 100.0)
    assert not watch.is_over(0, 100.0 + part * idle_s)
    assert watch.is_over(0, 100.0 + 1.01 * idle_s)


@given(idle_s=st.floats(1, 1e4), gaps=st.lists(st.floats(0, 0.99), max_size=20))
def test_each_request_lets_it_begin_anew(idle_s: float, gaps: list[float]) -> None:
    watch, now = IdleWatch(idle_s), 0.0
    for requests, gap in enumerate(gaps):
        now += gap * idle_s
        assert not watch.is_over(requests, now)
