"""Which server gets the next request: the less busy of two chosen at random."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A server that could take a request."""

    @property
    def server_id(self) -> str:
        """Its name in the table."""

    @property
    def rows_in_flight(self) -> int:
        """Rows that this process has sent and that are not answered."""


C = TypeVar("C", bound=Candidate)


def choose(candidates: Sequence[C], rng: random.Random, avoid: Collection[str] = ()) -> C:
    """Choose one of `candidates` by power of two choices.

    Two random ones are compared, not all: clients that do not know of each other would otherwise all
    run to the same idle server.

    Parameters
    ----------
    candidates
        At least one.
    rng
        Where chance comes from.
    avoid
        Ids of servers that are chosen only when there is no other.
    """
    pool = [candidate for candidate in candidates if candidate.server_id not in avoid] if avoid else candidates
    pool = pool or candidates
    count = len(pool)
    if count == 1:
        return pool[0]
    first = int(rng.random() * count)
    second = (first + 1 + int(rng.random() * (count - 1))) % count
    one, other = pool[first], pool[second]
    return other if other.rows_in_flight < one.rows_in_flight else one
