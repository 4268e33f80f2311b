"""How long calls take: a histogram for each kind of call, in powers of two of a microsecond.

Threads   Any thread may add to one; reading one while others add shows some of what they add.
"""

from __future__ import annotations

import threading
from typing import Any

BUCKETS = 28  # the last one: 2^27 microseconds, over two minutes, and more


class Histogram:
    """Bucket n counts calls of at most 2^n microseconds and more than 2^(n-1)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = [0] * BUCKETS
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Counts one call."""
        bucket = min(max(0, int(seconds * 1e6)).bit_length(), BUCKETS - 1)
        with self._lock:
            self._buckets[bucket] += 1
            self._longest = max(self._longest, seconds)

    def describe(self) -> dict[str, Any]:
        """`count`, `max_us`, upper bounds of median and 99th percentile, and `buckets`: [upper bound in µs, calls]."""
        with self._lock:
            buckets, longest = list(self._buckets), self._longest
        return {
            "count": sum(buckets),
            "p50_us": _bound(buckets, 0.5),
            "p99_us": _bound(buckets, 0.99),
            "max_us": round(longest * 1e6, 1),
            "buckets": [[1 << number, calls] for number, calls in enumerate(buckets) if calls],
        }


def _bound(buckets: list[int], share: float) -> int:
    """The upper bound of the bucket below which at least this share of the calls lies; 0 if there were none."""
    wanted, seen = share * sum(buckets), 0
    for number, calls in enumerate(buckets):
        seen += calls
        if seen and seen >= wanted:
            return 1 << number
    return 0
