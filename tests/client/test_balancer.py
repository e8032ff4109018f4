from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.client.balancer import FORGET, SAME, Pace, choose


@dataclass
class Busy:
    """A server as one process sees it."""

    server_id: str
    rows_in_flight: int = 0
    s_per_row: float | None = 1.0
    pace: Pace = field(default_factory=Pace)


def told(server: Busy) -> float | None:
    return server.s_per_row


SERVERS = st.lists(
    st.builds(Busy, st.just("a server"), st.integers(0, 5), st.floats(0.001, 1000.0)), min_size=1, max_size=8
)


@given(servers=SERVERS, rows=st.integers(1, 5), seed=st.integers())
def test_the_slowest_of_all_is_taken_only_where_it_is_alone(servers: list[Busy], rows: int, seed: int) -> None:
    def delay(server: Busy) -> float:
        return (server.s_per_row or 0.0) * (server.rows_in_flight + rows)

    chosen = choose(servers, rows, told, random.Random(seed))
    assert chosen in servers
    assert len(servers) == 1 or sum(SAME * delay(other) >= delay(chosen) for other in servers) >= 2


def test_of_equals_each_gets_its_share() -> None:
    rng = random.Random(1)
    servers = [Busy(str(i)) for i in range(4)]
    counts = Counter(choose(servers, 1, told, rng).server_id for _ in range(4000))
    assert all(900 < counts[server.server_id] < 1100 for server in servers)


@pytest.mark.parametrize("s_per_row", [1.0, None])
def test_equally_fast_servers_end_up_with_nearly_equal_work(s_per_row: float | None) -> None:
    rng = random.Random(2)
    servers = [Busy(str(i), s_per_row=s_per_row) for i in range(10)]
    for _ in range(1000):
        choose(servers, 1, told, rng).rows_in_flight += 1
    loads = [server.rows_in_flight for server in servers]
    assert max(loads) - min(loads) <= 6


def test_one_that_seems_a_little_slower_gets_its_share() -> None:
    rng = random.Random(4)
    servers = [Busy("one"), Busy("other", s_per_row=0.99 * SAME)]
    counts = Counter(choose(servers, 1, told, rng).server_id for _ in range(1000))
    assert min(counts.values()) > 400


def test_one_whose_pace_is_not_known_is_taken_for_as_fast_as_the_other() -> None:
    new, fast = Busy("new", rows_in_flight=2, s_per_row=None), Busy("fast", rows_in_flight=3, s_per_row=1e-6)
    assert choose([new, fast], 1, told, random.Random(3)) is new


@given(rows=st.lists(st.integers(1, 1000), min_size=1), each_s=st.floats(1e-6, 1.0))
def test_a_pace_is_that_of_its_rows_however_they_came(rows: list[int], each_s: float) -> None:
    pace = Pace()
    pace.learn(1e3, 1, now=0.0)
    assert pace.s_per_row(0.0, idle=True) is None, "the first answer holds the warming up"
    for count in rows:
        pace.learn(count * each_s, count, now=0.0)
    assert pace.s_per_row(9.0, idle=False) == pytest.approx(each_s)
    assert pace.s_per_row(1e9, idle=True) == pytest.approx(0.0)


def test_one_that_is_asked_nothing_looks_faster_with_time() -> None:
    pace = Pace()
    for _ in range(2):
        pace.learn(0.2, 10, now=5.0)
    assert pace.s_per_row(5.0 + FORGET * 0.2, idle=True) == pytest.approx(0.02 / 2)


def test_a_small_request_that_takes_as_long_as_a_large_one_says_little() -> None:
    pace = Pace()
    for _ in range(21):
        pace.learn(0.02, 1000, now=0.0)
    pace.learn(0.02, 10, now=0.0)
    assert pace.s_per_row(0.0, idle=False) == pytest.approx(0.02 / 1000, rel=0.15)


# Many processes and servers of unequal speed --------------------------------

SPEEDS = {"one ten times faster": (100.0, 10.0), "equal": (10.0, 10.0), "a mix": (200.0, 100.0, 50.0, 10.0)}
SIMULATED_S = 40.0


@pytest.mark.parametrize("speeds", SPEEDS.values(), ids=SPEEDS)
@pytest.mark.parametrize(("clients", "window", "share"), [(4, 1, 0.6), (40, 1, 0.8), (10, 16, 0.8), (1, 16, 0.8)])
def test_servers_are_used_as_they_are_fast(clients: int, window: int, share: float, speeds: tuple[float, ...]) -> None:
    """Each client keeps `window` requests under way; a server answers one after the other, `speeds` a second."""
    ours = answered(clients, window, speeds, lambda one, now: one.pace.s_per_row(now, idle=not one.rows_in_flight))
    by_rows_in_flight = answered(clients, window, speeds, lambda *_: None)
    assert ours > share * sum(speeds)
    assert ours > 0.97 * by_rows_in_flight
    if window == 1 and len(set(speeds)) > 1:
        assert ours > 3 * by_rows_in_flight


def answered(
    clients: int, window: int, speeds: tuple[float, ...], pace: Callable[[Busy, float], float | None]
) -> float:
    """Return the requests a second of the second half of a simulated time."""
    rng = random.Random(7)
    views = [[Busy(str(i)) for i in range(len(speeds))] for _ in range(clients)]
    free_at = [0.0] * len(speeds)
    under_way: list[tuple[float, int, int, int, float]] = []

    def send(client: int, now: float) -> None:
        server = choose(views[client], 1, lambda one: pace(one, now), rng)
        number = int(server.server_id)
        server.rows_in_flight += 1
        free_at[number] = max(free_at[number], now) + rng.uniform(0.8, 1.2) / speeds[number]
        heapq.heappush(under_way, (free_at[number], client, number, server.rows_in_flight, now))

    for client in range(clients):
        for _ in range(window):
            send(client, 0.0)
    end, count = SIMULATED_S, 0
    while under_way[0][0] < end:
        now, client, number, rows, sent = heapq.heappop(under_way)
        server = views[client][number]
        server.rows_in_flight -= 1
        server.pace.learn(now - sent, rows, now=now)
        count += now > end / 2
        send(client, now)
    return count / (end / 2)
