"""Histograms of latencies whose buckets grow by 5 %: small, mergeable, exact enough for any quantile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

GROWTH = 1.05
"""Each bucket is this much longer than the one before, so that a quantile is right within 2.5 %."""

Histogram = Mapping[int, int]
"""How many latencies fell into bucket ``i``, around ``1.05**i`` seconds."""


def bucket(latency_s: float) -> int:
    """Return the bucket of a latency; a nanosecond is the shortest there is."""
    return round(math.log(max(latency_s, 1e-9), GROWTH))


def add(histogram: Histogram, latency_s: float) -> dict[int, int]:
    """Return the histogram with one latency more."""
    return merge((histogram, {bucket(latency_s): 1}))


def merge(histograms: Iterable[Histogram]) -> dict[int, int]:
    """Return the sum of histograms."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return dict(sorted(total.items()))


def quantile(histogram: Histogram, q: float) -> float | None:
    """Return the latency in s that a share `q` of all do not exceed; None for an empty histogram."""
    rank = q * sum(histogram.values())
    seen = 0
    for index, count in sorted(histogram.items()):
        seen += count
        if count and seen >= rank:
            return float(GROWTH**index)
    return None
