"""Which images a power cut may leave of what is pending, and how they are told apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Any

from memory_disk import DIRECTORY, PAGE, SECTOR, Change, Durable, Instant, Write, overwrite, sector_count, torn

from cowengine.core.checksum import xxh64

Choice = tuple[int | None, ...]  # per pending change: 0 lost, None arrived, else the sectors of a write that arrived
Part = tuple[int, int, int]  # of a file: inode, and where the bytes begin and end
Root = tuple[tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]]  # names, sizes
Page = tuple[int, int]  # inode, and its number
KEYS = 1 << 64


def choices(pending: list[Change], rng: random.Random, budget: int) -> Iterator[Choice]:
    """At most about `budget` ways in which the pending changes may have arrived, the telling ones first."""
    n = len(pending)
    yield (0,) * n
    if n == 0:
        return
    if 2**n <= budget // 2:
        yield from product((0, None), repeat=n)
    else:
        yield (None,) * n
        simple = [(None,) * k + (0,) * (n - k) for k in range(1, n)]
        simple += [(None,) * k + (0,) + (None,) * (n - k - 1) for k in range(n)]
        simple += [(0,) * k + (None,) + (0,) * (n - k - 1) for k in range(n)]
        yield from simple if len(simple) <= budget // 2 else rng.sample(simple, budget // 2)
    for _ in range(budget // 2):
        yield tuple(arrival(change, rng) for change in pending)


def arrival(change: Change, rng: random.Random) -> int | None:
    pick = rng.randrange(3)
    if pick < 2 or not isinstance(change, Write) or (sectors := sector_count(change)) == 1:
        return 0 if pick == 0 else None
    mask = rng.getrandbits(sectors) if rng.random() < 0.5 else (1 << rng.randrange(1, sectors)) - 1
    return mask or 1


def build(instant: Instant, choice: Choice) -> Durable:
    image = instant.durable.copy()
    for change, arrived in zip(instant.pending, choice, strict=True):
        if arrived != 0:
            image.apply(change, arrived)
    return image


def fingerprint(image: Durable) -> int:
    """The sum of the hashes of all pages, each with its place, so that it follows from those that differ."""
    return sum(file_key(path, content) for path, content in image.reachable()) % KEYS


def file_key(path: str, content: bytearray) -> int:
    seed = xxh64(path.encode())
    pages = sum(page_key(seed, content, page) for page in range(-(-len(content) // PAGE)))
    return pages + length_key(seed, len(content))


def page_key(seed: int, content: bytearray, page: int) -> int:
    return xxh64(content[page * PAGE : (page + 1) * PAGE], (seed + page) % KEYS)


def length_key(seed: int, length: int) -> int:
    return xxh64(length.to_bytes(8, "little"), seed)


def root_of(image: Durable) -> Root:
    """Names and sizes: all that a process can learn of a disk besides bytes."""
    return tuple(sorted(image.entries.items())), tuple(
        sorted((inode, len(data)) for inode, data in image.files.items())
    )


class Cut:
    """The images of one instant: `arrange` makes one after the other out of the same memory, `image`.

    As long as only writes are pending, it touches only the sectors that they would change. What lies elsewhere is
    *settled*: the same in all of the images.
    """

    def __init__(self, instant: Instant) -> None:
        self.pending, self.note = instant.pending, instant.note
        self.instant, self.base = instant, instant.durable
        self.base_key = fingerprint(self.base)
        self.image = self.base.copy()
        self.root = self.base_root = root_of(self.base)
        self.only_writes = all(isinstance(change, Write) for change in self.pending)
        self.sectors = self._sectors() if self.only_writes else []
        self.masks = [sum(1 << bit for bit in sectors) for sectors in self.sectors]
        self.arranged: set[Choice] = set()
        self.pages = [self._pages_of(change) if isinstance(change, Write) else [] for change in self.pending]
        self.contested = {page for pages in self.pages for page in pages}
        self.dirty: set[Page] = set()
        self.seeds = {inode: xxh64(path.encode()) for path, inode in self.base.entries.items() if inode != DIRECTORY}
        self.base_keys = {page: self._key_of(self.base, page) for page in self.contested}
        self.settled: dict[Part, bool] = {}
        self.answers: dict[Part, int] = {}
        self.onward: dict[Any, Any] = {}  # what Known finds by settled answers alone
        self.unsettled_pieces: dict[Any, Any] = {}
        self.free: dict[Any, list[int]] = {}  # per leaf, the pending changes that nobody asks for there

    def is_new(self, choice: Choice) -> bool:
        """Whether no choice so far asked about has the same image."""
        if self.only_writes:
            choice = tuple(
                mask if arrived is None else arrived & mask for arrived, mask in zip(choice, self.masks, strict=True)
            )
        known = choice in self.arranged
        self.arranged.add(choice)
        return not known

    def arrange(self, choice: Choice) -> int:
        """Makes `image` the one of this choice; its fingerprint."""
        if not self.only_writes:
            self.image = build(self.instant, choice)
            self.root = root_of(self.image)
            return fingerprint(self.image)
        self._restore()
        for change, arrived, sectors in zip(self.pending, choice, self.sectors, strict=True):
            if arrived != 0:
                assert isinstance(change, Write)
                content = self.image.files.setdefault(change.inode, bytearray())
                for bit, (page, offset, data) in sectors.items():
                    if arrived is None or arrived >> bit & 1:
                        if offset > len(content):  # zeros up to there
                            self.dirty.update((page[0], number) for number in range(len(content) // PAGE, page[1]))
                        overwrite(content, offset, data)
                        self.dirty.add(page)
        key = self.base_key
        for page in self.dirty:
            key += self._key_of(self.image, page) - self.base_keys[page]
        self.root = self.base_root
        for inode, content in self.image.files.items():
            length = len(self.base.files.get(inode, b""))
            if len(content) != length:
                self.root = root_of(self.image)
                if inode in self.seeds:
                    seed = self.seeds[inode]
                    key += length_key(seed, len(content)) - length_key(seed, length)
        return key % KEYS

    def _sectors(self) -> list[dict[int, tuple[Page, int, bytes]]]:
        """Per write, the sectors that it may change, with their page, place and bytes."""
        found = []
        rewritten: set[tuple[int, int]] = set()
        for change in self.pending:
            assert isinstance(change, Write)
            before = self.base.files.get(change.inode, b"")
            sectors = {}
            for bit, (offset, data) in enumerate(torn(change, (1 << sector_count(change)) - 1)):
                sector = (change.inode, offset // SECTOR)
                if sector in rewritten or before[offset : offset + len(data)] != data:
                    rewritten.add(sector)
                    sectors[bit] = (change.inode, offset // PAGE), offset, data
            found.append(sectors)
        return found

    def arrival(self, number: int, rng: random.Random) -> int | None:
        """How a pending write may have arrived, in its sectors that change anything."""
        bits = list(self.sectors[number])
        pick = rng.randrange(4)
        if pick < 2 or len(bits) < 2:
            return None if pick % 2 else 0
        return sum(1 << bit for bit in bits if rng.random() < 0.5)

    def free_at(self, leaf: Any) -> list[int]:
        """Which of the pending changes do not meet anything that was asked on the way to a leaf."""
        free = self.free.get(leaf)
        if free is None:
            asked = {
                (inode, page) for inode, begin, end in leaf.asked for page in range(begin // PAGE, -(-end // PAGE))
            }
            free = [number for number, pages in enumerate(self.pages) if asked.isdisjoint(pages)]
            free = [number for number in free if not self._grows(self.pending[number])] if self.only_writes else []
            self.free[leaf] = free
        return free

    def shows(self, leaf: Any, changes: list[int]) -> bool:
        """Whether some of these changes meet what is shown there."""
        shown = {
            (inode, page) for _, _, (inode, begin, end) in leaf.pieces for page in range(begin // PAGE, -(-end // PAGE))
        }
        return any(not shown.isdisjoint(self.pages[number]) for number in changes)

    def _grows(self, change: Change) -> bool:
        """Whether it may alter the size of a file, or names."""
        if not isinstance(change, Write):
            return True
        return change.offset + len(change.data) > len(self.base.files.get(change.inode, b""))

    def _pages_of(self, write: Write) -> list[Page]:
        """A write behind the end of a file fills what is between with zeros."""
        begin = min(write.offset, len(self.base.files.get(write.inode, b"")))
        return [(write.inode, page) for page in range(begin // PAGE, -(-(write.offset + len(write.data)) // PAGE))]

    def _key_of(self, image: Durable, page: Page) -> int:
        """What a page adds to the fingerprint."""
        inode, number = page
        content = image.files.get(inode, b"")
        if inode not in self.seeds or len(content) <= number * PAGE:
            return 0
        return page_key(self.seeds[inode], content, number)

    def _restore(self) -> None:
        for inode, number in self.dirty:
            begin, end = number * PAGE, (number + 1) * PAGE
            before = self.base.files.get(inode, b"")
            if begin < len(before):
                self.image.files[inode][begin:end] = before[begin:end]
        for inode in {inode for inode, _ in self.dirty}:
            del self.image.files[inode][len(self.base.files.get(inode, b"")) :]
        self.dirty.clear()

    # -- what a part of a file holds ----------------------------------------------------------------------------------
    def is_settled(self, part: Part) -> bool:
        """Whether all images of this instant hold the same there."""
        known = self.settled.get(part)
        if known is None:
            inode, begin, end = part
            pages = range(begin // PAGE, -(-end // PAGE))
            known = self.only_writes and not any((inode, page) in self.contested for page in pages)
            self.settled[part] = known
        return known

    def answer(self, part: Part) -> int:
        """The hash of what the image holds there."""
        if not self.is_settled(part):
            return self._hash(part)
        known = self.answers.get(part)
        if known is None:
            known = self.answers[part] = self._hash(part)
        return known

    def _hash(self, part: Part) -> int:
        inode, begin, end = part
        return xxh64(self.image.files[inode][begin:end])
