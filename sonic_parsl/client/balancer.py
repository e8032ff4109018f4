"""Which server gets the next request: of two chosen at random, the one that should answer sooner."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sonic_parsl.client.retry import SMOOTHING

FORGET = 5.0
"""A server that is asked nothing looks twice as fast after so many times what it takes to answer: one that was slow once,
as at its start, is tried again soon, and one that is ten times slower costs a client a fifteenth of its time."""
SAME = 1.5
"""Paces that differ by less are taken for equal: what is known of them is no better, and a server that seems a little
slower would get nothing from who asks for one thing at a time."""


class Pace:
    """How fast a server answers a model's rows, as one process sees it.

    By Little's law (J. D. C. Little, Operations Research 9, 383 (1961)), rows in flight over latency are rows a second.
    Latency holds the waiting behind others' requests, and so the load that this process knows nothing of. The first
    answer does not count: it holds connecting and warming up.
    """

    def __init__(self) -> None:
        self._answers = 0
        self._latency_s = self._rows = self._at = 0.0

    def learn(self, latency_s: float, rows: int, *, now: float) -> None:
        """Take over an answer: `rows` were in flight when its request was sent, its own among them.

        Rows and latencies are averaged apart: a call's last, small request, whose time is none of its rows',
        says no more than its share.
        """
        self._answers += 1
        weight = max(SMOOTHING, 1.0 / max(1, self._answers - 1))
        self._latency_s += weight * (latency_s - self._latency_s)
        self._rows += weight * (rows - self._rows)
        self._at = now

    def s_per_row(self, now: float, *, idle: bool) -> float | None:
        """Return the seconds that a row takes; None where it is not known yet."""
        if self._answers < 2:
            return None
        forgotten = 2.0 ** ((self._at - now) / (FORGET * max(self._latency_s, 1e-9))) if idle else 1.0
        return forgotten * self._latency_s / self._rows


class Candidate(Protocol):
    """A server that could take a request."""

    @property
    def rows_in_flight(self) -> int:
        """Rows that this process has sent and that are not answered."""


C = TypeVar("C", bound=Candidate)


def choose(candidates: Sequence[C], rows: int, pace: Callable[[C], float | None], rng: random.Random) -> C:
    """Choose one of `candidates` by power of two choices.

    Two random ones are compared, not all: clients that do not know of each other would otherwise all
    run to the same server. Where only one's pace is known, or they are about the same, both count as equally fast.

    Parameters
    ----------
    candidates
        At least one.
    rows
        Of the request.
    pace
        Returns how many seconds a row takes a server; None where that is not known.
    rng
        Where chance comes from.
    """
    count = len(candidates)
    if count == 1:
        return candidates[0]
    first = int(rng.random() * count)
    second = (first + 1 + int(rng.random() * (count - 1))) % count
    one, other = candidates[first], candidates[second]
    slow, fast = pace(one), pace(other)
    if slow is None or fast is None or max(slow, fast) < SAME * min(slow, fast):
        slow = fast = 1.0
    return other if fast * (other.rows_in_flight + rows) < slow * (one.rows_in_flight + rows) else one
