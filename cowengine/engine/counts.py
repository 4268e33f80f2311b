"""How many snapshots there are among each 64 ids: so the n-th of them is found without reading those before it.

On disk   docs/format.md section 4: one byte for 64 ids, in leaves of the index of names.

Threads   As the index of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cowengine.core.pagedtable import PagedTable
from cowengine.errors import CorruptionError
from cowengine.format.layout import COUNTS_PER_LEAF, IDS_PER_COUNT, NAME_ENTRIES_PER_LEAF
from cowengine.format.names import IDS_PER_COUNT_LEAF, PENDING_BIT, count_leaf

_WITHOUT_PENDING = bytes(number & ~PENDING_BIT for number in range(256))
_POSSIBLE = bytes(range(IDS_PER_COUNT + 1))


class Counts:
    """Pages of counts, as far as there are any: 1/64 byte of memory for each id ever given out."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._changed: set[int] = set()
        self.total = 0

    def load(self, table: PagedTable, next_id: int) -> list[int]:
        """Reads all of them; returns the first ids of the groups in which something waits for its reclaim."""
        waiting = []
        for number in range(-(-next_id // IDS_PER_COUNT_LEAF)):
            raw = table.read(count_leaf(number) * NAME_ENTRIES_PER_LEAF)
            if raw is None:
                continue
            page = bytearray(raw.translate(_WITHOUT_PENDING))
            if page.translate(None, _POSSIBLE):
                raise CorruptionError(f"the index of names counts {max(page)} snapshots where {IDS_PER_COUNT} fit")
            first = number * COUNTS_PER_LEAF
            waiting += [(first + at) * IDS_PER_COUNT for at, count in _entries(raw) if count & PENDING_BIT]
            self._pages[number] = page
        self.total = sum(count for _, count in self.groups())
        return waiting

    def add(self, number: int, difference: int) -> None:
        """There is a snapshot of this id, or no more."""
        leaf = number // IDS_PER_COUNT_LEAF
        page = self._pages.get(leaf)
        if page is None:
            page = self._pages[leaf] = bytearray(COUNTS_PER_LEAF)
        page[_place(number)] += difference
        self._changed.add(leaf)
        self.total += difference

    def touch(self, number: int) -> None:
        """Something about this id changed that `write` is told."""
        self._changed.add(number // IDS_PER_COUNT_LEAF)

    def groups(self) -> Iterator[tuple[int, int]]:
        """(first id, count) of the groups of 64 ids that have snapshots, ascending."""
        for number, page in sorted(self._pages.items()):
            first = number * COUNTS_PER_LEAF
            for at, count in _entries(page):
                yield (first + at) * IDS_PER_COUNT, count

    def write(self, table: PagedTable, waiting: Iterable[int]) -> None:
        """Puts what changed into the table; `waiting` are the ids of all that wait for their reclaim."""
        pages = {number: bytearray(self._pages.get(number, bytes(COUNTS_PER_LEAF))) for number in self._changed}
        for number in waiting:
            if number // IDS_PER_COUNT_LEAF in pages:
                pages[number // IDS_PER_COUNT_LEAF][_place(number)] |= PENDING_BIT
        for number, page in pages.items():
            table.write(count_leaf(number) * NAME_ENTRIES_PER_LEAF, 0, bytes(page))
        self._changed.clear()


def _entries(page: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(place, byte) of what is not zero in a page. Most of it is behind the newest ids, and costs next to nothing."""
    return ((at, count) for at, count in enumerate(page.rstrip(b"\0")) if count)


def _place(number: int) -> int:
    return number % IDS_PER_COUNT_LEAF // IDS_PER_COUNT
