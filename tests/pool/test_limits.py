"""Nobody says more than a burst and a rate, and who keeps to it is never refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.pool import limits
from sonic_parsl.pool.limits import MAX_BLOCK_BYTES, RateLimit, Shares, cost

pauses = st.lists(st.floats(0, 2), max_size=100)


@given(pauses=pauses, burst=st.integers(1, 10), rate=st.floats(0.1, 10))
def test_in_any_span_nobody_says_more_than_burst_and_rate_allow(pauses: list[float], burst: int, rate: float) -> None:
    limit, now, said = RateLimit(burst, rate), 0.0, list[float]()
    for pause in pauses:
        now += pause
        if limit.allows("a", now):
            said.append(now)
    for first, start in enumerate(said):
        for last in range(first, len(said)):
            assert last - first + 1 <= burst + rate * (said[last] - start) + 1e-6


@given(pauses=st.lists(st.floats(0.5, 2), max_size=100))
def test_who_keeps_to_the_rate_is_never_refused(pauses: list[float]) -> None:
    limit, now = RateLimit(burst=1, rate_per_s=2.0), 0.0
    for pause in pauses:
        now += pause + 1e-6
        assert limit.allows("a", now)


@given(count=st.integers(0, 20), burst=st.integers(1, 20))
def test_a_burst_is_allowed_at_once_and_no_more(count: int, burst: int) -> None:
    limit = RateLimit(burst, 1.0)
    assert [limit.allows("a", 5.0) for _ in range(count)] == [number < burst for number in range(count)]


def test_one_that_floods_takes_nothing_from_others() -> None:
    limit = RateLimit(burst=3, rate_per_s=1.0)
    assert not all(limit.allows("flood", 0.0) for _ in range(100))
    assert all(limit.allows("quiet", 0.0) for _ in range(3))


def test_those_who_are_silent_are_forgotten_and_a_flood_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SENDERS", 10)
    limit = RateLimit(burst=2, rate_per_s=1.0)
    for number in range(1000):
        assert limit.allows(f"s{number}", float(number))
        if number > 900:
            limit.allows("flood", float(number))
            limit.allows("flood", float(number))
    assert len(limit._buckets) <= 11
    assert not limit.allows("flood", 999.0)


@given(size=st.integers(0, 2**20))
def test_a_long_message_counts_as_several_and_a_short_one_as_one(size: int) -> None:
    assert cost(size) == max(1.0, size / limits.FREE_BYTES)


@given(sizes=st.lists(st.integers(0, 2**20), max_size=30))
def test_by_no_number_and_length_of_messages_more_bytes_get_through(sizes: list[int]) -> None:
    limit = RateLimit(burst=50, rate_per_s=1.0)
    through = sum(size for size in sizes if limit.allows("a", 0.0, cost(size)))
    assert through <= 50 * limits.FREE_BYTES


# Room in the table ----------------------------------------------------------


@given(joins=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xy"), st.integers(0, MAX_BLOCK_BYTES))))
def test_whatever_joins_no_block_takes_more_than_its_share(joins: list[tuple[str, str, int]]) -> None:
    shares, sizes = Shares(), dict[tuple[str, str], int]()
    for server, block, size in joins:
        name = block + server
        if shares.problem(name, block, size) is None:
            shares.take(name, block, size)
            sizes[block, name] = size
        assert all(sum(size for (of, _), size in sizes.items() if of == one) <= MAX_BLOCK_BYTES for one in "xy")


def test_a_server_that_joins_again_takes_its_room_once() -> None:
    shares = Shares()
    for _ in range(3):
        assert shares.problem("s", "a", MAX_BLOCK_BYTES) is None
        shares.take("s", "a", MAX_BLOCK_BYTES)
    assert shares.problem("t", "a", 1) == "the servers of a have more models than fit into the table"
    assert shares.problem("t", "b", MAX_BLOCK_BYTES) is None


def test_what_a_server_took_is_free_once_it_is_gone() -> None:
    shares = Shares()
    shares.take("s", "a", MAX_BLOCK_BYTES)
    shares.keep({"s"})
    assert shares.problem("t", "a", 1) is not None
    shares.keep(set())
    assert shares.problem("t", "a", MAX_BLOCK_BYTES) is None


def test_neither_a_block_nor_the_table_holds_more_servers_than_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BLOCK_SERVERS", 2)
    monkeypatch.setattr(limits, "MAX_SERVERS", 3)
    shares = Shares()
    for server, block in (("1", "a"), ("2", "a"), ("3", "b")):
        assert shares.problem(server, block, 1) is None
        shares.take(server, block, 1)
    assert shares.problem("4", "a", 1) == "the table holds 3 servers already"
    shares.keep({"1", "2"})
    assert shares.problem("4", "a", 1) == "a has 2 servers already"
    assert shares.problem("2", "a", 1) is None
