"""Ways past runs of empty anchors: what lies behind thousands of them is found in a few steps (I26).

Remembers of each empty anchor that was passed, in one direction of the lineage, one that is further on in its run. Runs
grow at their ends and join, which needs no word here; an anchor that goes leads on whoever comes to it. Only in memory,
where all is forgotten when much of it is about anchors that went.

Threads   The engine's commit lock is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

GONE_MAX = 100  # anchors that went, and are remembered, without a look at how many are remembered in all


class Shortcuts:
    """The runs in one direction; `onward` tells the next empty anchor of a run, or None at its end."""

    def __init__(self, onward: Callable[[int], int | None]) -> None:
        self._onward = onward
        self._further: dict[int, int] = {}
        self._gone = 0  # at most so many of them are no anchors any more

    def end(self, number: int) -> int:
        """The last empty anchor of the run that an empty anchor is in."""
        passed = []
        further = self._further.get(number) or self._onward(number)
        while further is not None:
            passed.append(number)
            number = further
            further = self._further.get(number) or self._onward(number)
        for each in passed:
            self._further[each] = number
        return number

    def drop(self, number: int, before: Sequence[int]) -> None:
        """Before an empty anchor leaves the lineage; `before` are those whose next one it is."""
        self._gone += 1
        if self._gone > max(GONE_MAX, len(self._further) // 2):
            self._further.clear()
            self._gone = 0
            return
        further = self._onward(number)
        if further is not None:
            self._further[number] = further
        elif len(before) == 1:
            # The run now ends there; numbers are never used again, so this one may stay as a way back to it.
            self._further[number] = before[0]
            self._further.pop(before[0], None)
        elif before:
            self._further.clear()
