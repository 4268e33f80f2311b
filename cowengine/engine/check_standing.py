"""Who stands on whom while the checker replays the log: what more than one shares data with is not reclaimed (I13).

Children of a snapshot that is dropped stand on what it stood on. Of two sets of children the smaller one is moved, so
it costs little more than one step for each snapshot and event.

Threads   an object belongs to one thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable


class Standing:
    """The heads and snapshots that stand on each one, as of an event."""

    def __init__(self, parents: Iterable[tuple[int, int]]) -> None:
        """Of all pairs (member, what it stands on)."""
        self._below: defaultdict[int, set[int]] = defaultdict(set)
        self._gone: dict[int, int] = {}  # dropped -> what it stood on, or what that one stood on
        for number, parent in parents:
            self._below[parent].add(number)

    def move(self, number: int, before: int, now: int) -> None:
        """A member stands on another one from now on; either may have been dropped meanwhile."""
        self._below[self._present(before)].discard(number)
        self._below[self._present(now)].add(number)

    def drop(self, number: int, parent: int) -> None:
        """A snapshot is gone."""
        parent = self._present(parent)
        fewer, more = sorted((self._below.pop(number, set()), self._below[parent]), key=len)
        more |= fewer
        more.discard(number)
        self._below[parent] = more
        self._gone[number] = parent

    def is_branch_point(self, number: int, is_empty: Callable[[int], bool]) -> bool:
        """Whether more than one that holds data stands on a snapshot; empty anchors are seen through."""
        stack, seen, found = [number], {number}, 0
        while stack and found < 2:
            for child in self._below.get(stack.pop(), set()) - seen:
                seen.add(child)
                if is_empty(child):
                    stack.append(child)
                else:
                    found += 1
        return found > 1

    def _present(self, number: int) -> int:
        passed: list[int] = []
        while number in self._gone and len(passed) <= len(self._gone):  # a lineage may be a ring in a hostile file
            passed.append(number)
            number = self._gone[number]
        self._gone.update(dict.fromkeys(passed, number))
        return number
