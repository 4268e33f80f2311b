"""How long calls take: a histogram for each kind of call, in powers of two of a microsecond.

Threads   Any.
"""

from __future__ import annotations

from typing import Any

from cowengine.core.histogram import Buckets


class Histogram(Buckets):
    """Bucket n counts calls of at most 2^n microseconds and more than 2^(n-1); `add` counts one."""

    __slots__ = ()

    def describe(self) -> dict[str, Any]:
        """`count`, `max_us`, upper bounds of median and 99th percentile, and `buckets`: [upper bound in µs, calls]."""
        buckets, longest = self.counted(), self.longest
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
