"""Half-open ranges of integers with values, and arithmetic on sorted runs. The checker thinks in these.

Bounded by the number of pieces, never by how long they are.

Threads   none of its own; an object belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

Run = tuple[int, int]
"""(begin, end), end excluded."""


class Intervals:
    """A map from disjoint ranges to values; what is assigned later replaces what it overlaps."""

    __slots__ = ("ends", "starts", "values")

    def __init__(self, runs: Iterable[Run] = (), value: Any = True) -> None:
        """`runs` ascending and disjoint, all with the same value."""
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.values: list[Any] = []
        for begin, end in runs:
            self.starts.append(begin)
            self.ends.append(end)
            self.values.append(value)

    def copy(self) -> Intervals:
        """An independent copy; the values are shared."""
        other = Intervals()
        other.starts, other.ends, other.values = self.starts[:], self.ends[:], self.values[:]
        return other

    def assign(self, begin: int, end: int, value: Any) -> list[tuple[int, int, Any]]:
        """Give [begin, end) this value, or none at all if it is None; returns the pieces that were there."""
        starts, ends, values = self.starts, self.ends, self.values
        low, high = self.overlap(begin, end)
        replaced = [(max(starts[i], begin), min(ends[i], end), values[i]) for i in range(low, high)]
        pieces = [] if value is None else [(begin, end, value)]
        if low < high and starts[low] < begin:
            pieces.insert(0, (starts[low], begin, values[low]))
        if low < high and ends[high - 1] > end:
            pieces.append((end, ends[high - 1], values[high - 1]))
        starts[low:high] = [piece[0] for piece in pieces]
        ends[low:high] = [piece[1] for piece in pieces]
        values[low:high] = [piece[2] for piece in pieces]
        return replaced

    def overlap(self, begin: int, end: int) -> tuple[int, int]:
        """Numbers (low, high) of the pieces that overlap [begin, end): low to high - 1."""
        return bisect_right(self.ends, begin), bisect_left(self.starts, end)

    def covers(self, begin: int, end: int) -> bool:
        """Whether one piece holds all of [begin, end)."""
        low, high = self.overlap(begin, end)
        return low + 1 == high and self.starts[low] <= begin and self.ends[low] >= end

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        return zip(self.starts, self.ends, self.values, strict=True)


def merge(runs: Iterable[Run]) -> list[Run]:
    """The union of runs in any order, as sorted runs that do not touch."""
    merged: list[Run] = []
    begin = end = -1
    for one, other in sorted(runs):
        if one <= end:
            end = max(end, other)
            continue
        if end >= 0:
            merged.append((begin, end))
        begin, end = one, other
    if end >= 0:
        merged.append((begin, end))
    return merged


def subtract(runs: Iterable[Run], holes: list[Run]) -> list[Run]:
    """What is in `runs` and not in `holes`; both sorted and disjoint."""
    left: list[Run] = []
    number = 0
    for start, end in runs:
        begin = start
        while number < len(holes) and holes[number][1] <= begin:
            number += 1
        ahead = number
        while ahead < len(holes) and holes[ahead][0] < end:
            if holes[ahead][0] > begin:
                left.append((begin, holes[ahead][0]))
            begin = max(begin, holes[ahead][1])
            ahead += 1
        if begin < end:
            left.append((begin, end))
    return left


def total(runs: Iterable[Run]) -> int:
    """How many integers the runs hold."""
    return sum(end - begin for begin, end in runs)
