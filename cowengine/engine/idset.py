"""A set of ids that takes little memory: a bit for each, in pages, for ids that mostly stand side by side.

Threads   none of its own; the engine's commit lock guards it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PAGE_IDS = 1024


class IdSet:
    """Whole numbers from 0 on; goes over them in ascending order."""

    __slots__ = ("_pages",)

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._pages: dict[int, int] = {}  # the bits of each page that has any
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        """Enters a number."""
        page, bit = divmod(number, PAGE_IDS)
        self._pages[page] = self._pages.get(page, 0) | 1 << bit

    def discard(self, number: int) -> None:
        """Takes a number out, if it is there."""
        page, bit = divmod(number, PAGE_IDS)
        left = self._pages.get(page, 0) & ~(1 << bit)
        if left:
            self._pages[page] = left
        else:
            self._pages.pop(page, None)

    def __contains__(self, number: int) -> bool:
        page, bit = divmod(number, PAGE_IDS)
        return bool(self._pages.get(page, 0) >> bit & 1)

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self._pages.values())

    def __iter__(self) -> Iterator[int]:
        for page in sorted(self._pages):
            bits = self._pages.get(page, 0)
            while bits:
                lowest = bits & -bits
                yield page * PAGE_IDS + lowest.bit_length() - 1
                bits ^= lowest
