"""A hash table on disk that maps hashes to places, ids with a kind: linear hashing with pages as buckets.

It grows by one bucket at a time, so no change of it costs more for the others that are there. Equal hashes may have any
number of places; what these stand for is the caller's to know. Writes nothing but the table's pages.

On disk   docs/format.md section 4.

Threads   Who may call is the caller's to say; reads beside one another are safe.
"""

from __future__ import annotations

from collections.abc import Iterator

from cowengine.core.pagedtable import PagedTable
from cowengine.format.layout import NAME_BUCKETS_MAX, NAME_ENTRIES_PER_LEAF, NAME_ENTRY_BYTES, SLOT_BYTES
from cowengine.format.names import (
    ENTRY,
    bucket_leaf,
    bucket_of,
    entries_used,
    is_full,
    iter_entries,
    next_to_split,
)

LOAD = NAME_ENTRIES_PER_LEAF // 2  # entries a bucket, on average; few buckets then need a second page
_EMPTY = bytes(SLOT_BYTES)
_NO_ENTRY = bytes(NAME_ENTRY_BYTES)


class HashIndex:
    """The buckets in the leaves of a table; `buckets` and `entries` belong into the superblock that leads to it."""

    def __init__(self, table: PagedTable, buckets: int, entries: int) -> None:
        self._table = table
        self.buckets = buckets
        self.entries = entries

    def find(self, hashed: int) -> list[int]:
        """The places that were added with this hash."""
        found = []
        for _, page, at in self._places(hashed):
            found.append(ENTRY.unpack_from(page, at)[1])
        return found

    def lacks(self, hashed: int) -> bool:
        """Whether certainly no place was added with this hash; never raises."""
        return self._table.lacks(bucket_leaf(bucket_of(hashed, self.buckets)) * NAME_ENTRIES_PER_LEAF, hashed)

    def add(self, hashed: int, place: int) -> None:
        """Adds a place."""
        *_, (key, page) = self._pages(bucket_of(hashed, self.buckets))
        self._table.write(key, entries_used(page) * NAME_ENTRY_BYTES, ENTRY.pack(hashed, place))
        self.entries += 1
        if self.entries > self.buckets * LOAD and self.buckets < NAME_BUCKETS_MAX:
            self._split()

    def remove(self, hashed: int, place: int) -> bool:
        """Removes a place that was added with this hash; False if it was not."""
        raw = ENTRY.pack(hashed, place)
        places = ((key, at) for key, page, at in self._places(hashed) if page.startswith(raw, at))
        key, at = next(places, (0, -1))
        if at < 0:
            return False
        # The last entry of the bucket takes its place, so that no gap is left.
        pages = [(key, page) for key, page in self._pages(bucket_of(hashed, self.buckets)) if page != _EMPTY]
        last_key, last_page = pages[-1]
        last = (entries_used(last_page) - 1) * NAME_ENTRY_BYTES
        self._table.write(key, at, last_page[last : last + NAME_ENTRY_BYTES])
        self._table.write(last_key, last, _NO_ENTRY)
        self.entries -= 1
        return True

    def expect(self, entries: int) -> None:
        """Gives an empty table as many buckets as so many entries need."""
        assert self.entries == 0, "what is there would have to move"
        self.buckets = min(max(1, -(-entries // LOAD)), NAME_BUCKETS_MAX)

    def _pages(self, bucket: int) -> Iterator[tuple[int, bytes]]:
        """(key, bytes) of the pages of a bucket; the last of them has room."""
        number = 0
        while True:
            key = bucket_leaf(bucket, number) * NAME_ENTRIES_PER_LEAF
            page = self._table.read(key) or _EMPTY
            yield key, page
            if not is_full(page):
                return
            number += 1

    def _places(self, hashed: int) -> Iterator[tuple[int, bytes, int]]:
        """(key of the page, page, offset) of the entries with a hash."""
        needle = hashed.to_bytes(8, "little")
        for key, page in self._pages(bucket_of(hashed, self.buckets)):
            at = page.find(needle)
            while at >= 0:
                if at % NAME_ENTRY_BYTES == 0:
                    yield key, page, at
                at = page.find(needle, at + 1)

    def _split(self) -> None:
        """One bucket more: it takes its part of the entries of the next one to be split."""
        old, new = next_to_split(self.buckets), self.buckets
        pages = list(self._pages(old))
        entries = [entry for _, page in pages for entry in iter_entries(page)]
        self.buckets += 1
        going = [bucket_of(hashed, self.buckets) == new for hashed, _ in entries]
        self._fill(new, [entry for entry, goes in zip(entries, going, strict=True) if goes], 0)
        self._fill(old, [entry for entry, goes in zip(entries, going, strict=True) if not goes], len(pages))

    def _fill(self, bucket: int, entries: list[tuple[int, int]], pages: int) -> None:
        """Makes `entries` all that a bucket has; it had so many pages."""
        raw = b"".join(ENTRY.pack(*entry) for entry in entries)
        for number in range(max(pages, -(-len(raw) // SLOT_BYTES))):
            page = raw[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
            key = bucket_leaf(bucket, number) * NAME_ENTRIES_PER_LEAF
            self._table.write(key, 0, page + bytes(SLOT_BYTES - len(page)))
