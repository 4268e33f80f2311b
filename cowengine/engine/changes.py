"""What a hash index on disk lacks, and what it has too much, until the next checkpoint.

Threads   An object belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain


class Changes:
    """Pairs of a hash and a place that were added and removed. No pair is there twice."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}
        self._further: dict[int, set[int]] = {}  # of hashes with several places: a parent's children
        self.removed: set[tuple[int, int]] = set()

    def add(self, hashed: int, place: int) -> None:
        """The index is to have this pair."""
        if self.removed and (hashed, place) in self.removed:
            self.removed.discard((hashed, place))
        elif self.first.setdefault(hashed, place) != place:
            self._further.setdefault(hashed, set()).add(place)

    def remove(self, hashed: int, place: int) -> None:
        """The index is not to have this pair."""
        further = self._further.get(hashed, set())
        if place in further:
            further.discard(place)
        elif self.first.get(hashed) != place:
            self.removed.add((hashed, place))
        elif further:
            self.first[hashed] = further.pop()
        else:
            del self.first[hashed]

    def find(self, hashed: int, on_disk: Sequence[int]) -> set[int]:
        """The places of a hash, of which the index has those in `on_disk`."""
        found = {place for place in on_disk if (hashed, place) not in self.removed} if on_disk else set()
        if hashed in self.first:
            found.add(self.first[hashed])
            found |= self._further.get(hashed, set())
        return found

    def added(self) -> Iterator[tuple[int, int]]:
        """All pairs that were added."""
        further = ((hashed, place) for hashed, places in self._further.items() for place in places)
        return chain(self.first.items(), further)
