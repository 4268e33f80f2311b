"""Which crash images nobody can tell apart by what they are asked.

What a process makes of a disk follows from what it reads there: the rest (seeds, clock, order) is the same each time.
`WatchedDisk` writes down what a process asked of the image, leaving out what it had written itself before. `Known`
keeps that in a tree, a question at each node and an edge for each answer, with what was shown at the leaves. An image
that leads to a leaf differs from the one that was opened there only in bytes that nobody asked for, so that opening,
reading and checking it would go the same way step by step.

The explorer opens some of these all the same, and compares: `SAMPLED`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memory_disk import OFFSETS, Change, Durable, MemoryDisk, Resize

from cowengine.core.checksum import xxh64

SAMPLED = 0.02  # of the images that lead to a leaf
SHOWN_BYTES = 32 << 20  # what leaves may keep; the oldest give up what they have
Question = tuple[int, int, int]  # inode, and where the bytes begin and end
Root = tuple[tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]]  # names, sizes


class WatchedDisk(MemoryDisk):
    """A disk for one look at an image. `asked`: what was read of it, in order, and the hash of what was there."""

    def __init__(self, image: Durable) -> None:
        super().__init__(image, recorded=False)
        self.asked: dict[Question, int] = {}
        self.own: dict[int, list[tuple[int, int]]] = {}  # parts of files that the process wrote itself

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        self._ask(fd, offset, memoryview(buffer).nbytes)
        return super().pread_into(fd, buffer, offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._ask(fd, offset, length)
        return super().pread(fd, length, offset)

    def next_data(self, fd: int, offset: int) -> tuple[int, int] | None:
        self._ask(fd, 0, OFFSETS)
        return super().next_data(fd, offset)

    def _ask(self, fd: int, offset: int, length: int) -> None:
        content, inode = self._content(fd), self._file(fd).inode
        parts = [(offset, min(offset + length, len(content)))]
        for begin, end in self.own.get(inode, ()):
            if begin < offset + length and offset < end:
                parts = [part for a, b in parts for part in ((a, min(b, begin)), (max(a, end), b)) if part[0] < part[1]]
        for begin, end in parts:
            question = (inode, begin, end)
            if begin < end and question not in self.asked:
                self.asked[question] = xxh64(memoryview(content)[begin:end])

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self._owns(self._file(fd).inode, offset, offset + memoryview(data).nbytes)
        super().pwrite(fd, data, offset)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._owns(self._file(fd).inode, offset, offset + length)
        super().punch(fd, offset, length)

    def _change(self, change: Change) -> None:
        if isinstance(change, Resize):
            self._owns(change.inode, min(change.size, len(self.cache.files[change.inode])), OFFSETS)
        super()._change(change)

    def _owns(self, inode: int, begin: int, end: int) -> None:
        self.own.setdefault(inode, []).append((begin, end))


@dataclass(slots=True)
class Node:
    """A leaf as long as it has no question. `notes`: the promises that what it shows was compared with."""

    question: Question | None = None
    after: dict[int, Node] = field(default_factory=dict)
    shown: Any = None
    notes: set[int] = field(default_factory=set)


class Known:
    """What the images opened so far showed."""

    def __init__(self) -> None:
        self.roots: dict[Root, Node] = {}
        self.kept: dict[int, tuple[Node, int]] = {}  # leaves that have what they show, and how many bytes that is
        self.bytes = 0

    def find(self, image: Durable) -> Node | None:
        """The leaf that an image leads to, if others have been there."""
        node = self.roots.get(root_of(image))
        while node is not None and node.question is not None:
            inode, begin, end = node.question
            node = node.after.get(xxh64(memoryview(image.files[inode])[begin:end]))
        return node

    def add(self, root: Root, asked: dict[Question, int], shown: Any, size: int) -> Node:
        """What an image showed that was asked all this; `size` is about how many bytes that takes."""
        node = self.roots.setdefault(root, Node())
        for question, answer in asked.items():
            assert node.question in (None, question), "the same answers led to another question"
            node.question = question
            node = node.after.setdefault(answer, Node())
        assert node.question is None, "the same answers led to another question"
        node.shown = shown
        self.kept[id(node)] = node, size
        self.bytes += size
        while self.bytes > SHOWN_BYTES and len(self.kept) > 1:
            oldest, old_size = self.kept.pop(next(iter(self.kept)))
            oldest.shown = None
            self.bytes -= old_size
        return node


def root_of(image: Durable) -> Root:
    """Names and sizes: all that a process can learn of a disk besides bytes."""
    return tuple(sorted(image.entries.items())), tuple(
        sorted((inode, len(data)) for inode, data in image.files.items())
    )
