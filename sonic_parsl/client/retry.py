"""How long an attempt may take, and how long to wait after one that failed."""

from __future__ import annotations

import random

UNKNOWN_TIMEOUT_S = 60.0
"""For a model that has not answered yet: its first request may warm it up."""
FLOOR_S = 10.0
"""Shorter than this is no sign that something is wrong: a busy server queues."""
MULTIPLE = 10.0
"""A request that takes so many times longer than usual is taken for lost."""
BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
SMOOTHING = 0.1
"""Weight of the newest latency in what is usual."""


def learn(usual_s: float | None, latency_s: float) -> float:
    """Return what is usual after one more latency: a moving average."""
    return latency_s if usual_s is None else usual_s + SMOOTHING * (latency_s - usual_s)


def attempt_timeout(usual_s: float | None, *, timed_out: int = 0) -> float:
    """Return the time in s that an attempt gets.

    Parameters
    ----------
    usual_s
        What the model usually takes; None if it never answered here.
    timed_out
        How many attempts of this request ran out of time: each doubles it, so that a slow pool is not
        asked the same for ever.
    """
    first = UNKNOWN_TIMEOUT_S if usual_s is None else max(FLOOR_S, MULTIPLE * usual_s)
    return float(first * 2**timed_out)


def backoff(attempt: int, rng: random.Random) -> float:
    """Return how long to wait in s after failure number `attempt` (1, 2, ...): doubling, with jitter."""
    longest = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(attempt - 1, 16))
    return longest * rng.uniform(0.5, 1.0)
