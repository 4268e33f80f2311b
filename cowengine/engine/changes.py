"""What a hash index on disk lacks, and what it has too much, until the next checkpoint.

Threads   An object belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain


class Changes:
    """Pairs of a hash and an id that were added and removed."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._further: dict[int, set[int]] = {}  # of hashes with several ids: a parent's children
        self.removed: set[tuple[int, int]] = set()

    def add(self, hashed: int, number: int) -> None:
        """The index is to have this pair."""
        if (hashed, number) in self.removed:
            self.removed.discard((hashed, number))
        elif self._first.setdefault(hashed, number) != number:
            self._further.setdefault(hashed, set()).add(number)

    def remove(self, hashed: int, number: int) -> None:
        """The index is not to have this pair."""
        further = self._further.get(hashed, set())
        if number in further:
            further.discard(number)
        elif self._first.get(hashed) != number:
            self.removed.add((hashed, number))
        elif further:
            self._first[hashed] = further.pop()
        else:
            del self._first[hashed]

    def find(self, hashed: int, on_disk: Iterable[int]) -> set[int]:
        """The ids of a hash, of which the index has those in `on_disk`."""
        found = {number for number in on_disk if (hashed, number) not in self.removed}
        if hashed in self._first:
            found.add(self._first[hashed])
            found |= self._further.get(hashed, set())
        return found

    def added(self) -> Iterator[tuple[int, int]]:
        """All pairs that were added."""
        further = ((hashed, number) for hashed, numbers in self._further.items() for number in numbers)
        return chain(self._first.items(), further)
