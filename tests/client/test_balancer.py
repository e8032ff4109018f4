from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.client.balancer import choose


@dataclass
class Busy:
    server_id: str
    rows_in_flight: int


SERVERS = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(
    lambda rows: [Busy(str(i), count) for i, count in enumerate(rows)]
)


@given(servers=SERVERS, seed=st.integers(), avoid=st.sets(st.integers(0, 8).map(str)))
def test_it_avoids_whom_it_can_and_never_takes_the_only_busiest(
    servers: list[Busy], seed: int, avoid: set[str]
) -> None:
    chosen = choose(servers, random.Random(seed), avoid)
    pool = [server for server in servers if server.server_id not in avoid] or servers
    assert chosen in pool
    assert (
        len(pool) == 1
        or chosen.rows_in_flight < max(s.rows_in_flight for s in pool)
        or (sorted(s.rows_in_flight for s in pool)[-2] == chosen.rows_in_flight)
    )


def test_of_equals_each_gets_its_share() -> None:
    rng = random.Random(1)
    servers = [Busy(str(i), 0) for i in range(4)]
    counts = Counter(choose(servers, rng).server_id for _ in range(4000))
    assert all(900 < counts[server.server_id] < 1100 for server in servers)


def test_servers_end_up_with_nearly_equal_work() -> None:
    rng = random.Random(2)
    servers = [Busy(str(i), 0) for i in range(10)]
    for _ in range(1000):
        choose(servers, rng).rows_in_flight += 1
    loads = [server.rows_in_flight for server in servers]
    assert max(loads) - min(loads) <= 6
