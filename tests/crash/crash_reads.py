"""Which crash images nobody can tell apart by what they are asked.

What a process makes of a disk follows from what it reads there: the rest (seeds, clock, order) is the same each time.
`WatchedDisk` writes down what a process asked of the image, leaving out what it had written itself before. `Known`
keeps that in a tree, a question at each node and an edge for each answer, with what was shown at the leaves. An image
that leads to a leaf differs from the one that was opened there only in bytes that nobody asked for, so that opening,
reading and checking it would go the same way step by step.

What is read straight into the memory that a reader gave for the contents of a volume is shown, and nothing else follows
from it: that is no question, but a *piece* of these contents. (What is sealed is verified, too: a verify of all of it
asks for those bytes.) So the leaf knows which parts of the files an image's contents are made of, and `show_again` puts
them together for any image that leads there.

The explorer opens some of these all the same, and compares: `SAMPLED`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crash_images import Cut, Part, Root
from memory_disk import OFFSETS, Change, Durable, MemoryDisk, Resize

from cowengine.core.checksum import xxh64

SAMPLED = 0.02  # of the images that lead to a leaf
LEAF_BYTES = 10000  # about what a leaf takes besides the contents
SHOWN_BYTES = 48 << 20  # what leaves may keep; the oldest give up what they have
Piece = tuple[int, int, Part]  # of the contents: number of the buffer, place in it, and what part of a file is there


class WatchedDisk(MemoryDisk):
    """A disk for one look at an image. `asked`: what was read of it, in order, and the hash of what was there.

    `pieces`: what was read into the memory that `buffer` gave.
    """

    def __init__(self, image: Durable) -> None:
        super().__init__(image, recorded=False)
        self.asked: dict[Part, int] = {}
        self.own: dict[int, list[tuple[int, int]]] = {}  # parts of files that the process wrote itself
        self.buffers: list[tuple[bytearray, int, int]] = []  # their address, and how many bytes belong together
        self.pieces: list[Piece] = []

    def buffer(self, size: int, unit: int) -> bytearray:
        """Memory for contents, which are judged by so many bytes at a time."""
        memory = bytearray(size)
        self.buffers.append((memory, address(memory), unit))
        return memory

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        if not (self.buffers and self._shows(fd, memoryview(buffer), offset)):
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
                self.asked[question] = xxh64(content[begin:end])

    def _shows(self, fd: int, into: memoryview, offset: int) -> bool:
        """Whether that is a read of contents, all of them in the image; writes down the pieces."""
        inode, length, here = self._file(fd).inode, into.nbytes, address(into)
        if offset + length > self.size(fd) or any(
            a < offset + length and offset < b for a, b in self.own.get(inode, ())
        ):
            return False
        for number, (memory, start, unit) in enumerate(self.buffers):
            if start <= here and here + length <= start + len(memory):
                at, end = here - start, here - start + length
                while at < end:
                    stop = min(end, (at // unit + 1) * unit)
                    begin = offset + at - (here - start)
                    self.pieces.append((number, at, (inode, begin, begin + stop - at)))
                    at = stop
                return True
        return False

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


def address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@dataclass(slots=True, eq=False)
class Node:
    """A leaf as long as it has no question; then it has what was `shown`, in `buffers` that are made of `pieces`."""

    question: Part | None = None
    after: dict[int, Node] = field(default_factory=dict)
    shown: Any = None
    buffers: list[bytearray] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    asked: tuple[Part, ...] = ()  # all the questions on the way
    judged: dict[int, Judged] = field(default_factory=dict)  # by promise

    def show_again(self, cut: Cut) -> Any:
        """What the image that leads here shows. It is in the same memory as what was shown before."""
        for piece in self.pieces:
            self.fill(cut, piece)
        return self.shown

    def forget(self) -> None:
        self.shown, self.buffers, self.pieces, self.asked, self.judged = None, [], [], (), {}

    def fill(self, cut: Cut, piece: Piece) -> None:
        number, at, (inode, begin, end) = piece
        self.buffers[number][at : at + end - begin] = cut.image.files[inode][begin:end]


class Judged:
    """Which contents agree with a promise, where all the rest is as the leaf shows it: each piece on its own.

    `faults`: per buffer, what is wrong with the bytes between two places of it.
    """

    def __init__(self, faults: list[Callable[[int, int], str | None]]) -> None:
        self.faults = faults
        self.good: set[tuple[Piece, int]] = set()


class Known:
    """What the images opened so far showed."""

    def __init__(self) -> None:
        self.roots: dict[Root, Node] = {}
        self.kept: dict[Node, int] = {}  # leaves that have what they show, and how many bytes that is
        self.bytes = 0

    def find(self, cut: Cut) -> Node | None:
        """The leaf that an image leads to, if others have been there."""
        node = self.roots.get(cut.root)
        while node is not None and node.question is not None:
            node = cut.onward.get(node) or self._settled(cut, node)
            if node is not None and node.question is not None:
                node = node.after.get(cut.answer(node.question))
        return node

    @staticmethod
    def _settled(cut: Cut, start: Node) -> Node | None:
        """Where the answers lead that are the same in all images of this instant; up to the next one that is not."""
        node: Node | None = start
        while node is not None and node.question is not None and cut.is_settled(node.question):
            node = node.after.get(cut.answer(node.question))
        if node is not None:
            cut.onward[start] = node
        return node

    def add(self, root: Root, disk: WatchedDisk, shown: Any) -> Node:
        """What an image showed that was asked what the disk has written down."""
        node = self.roots.setdefault(root, Node())
        for question, answer in disk.asked.items():
            assert node.question in (None, question), "the same answers led to another question"
            node.question = question
            node = node.after.setdefault(answer, Node())
        assert node.question is None, "the same answers led to another question"
        if node.shown is None:
            self._keep(node, disk, shown)
        return node

    def _keep(self, leaf: Node, disk: WatchedDisk, shown: Any) -> None:
        leaf.shown, leaf.buffers = shown, [memory for memory, _, _ in disk.buffers]
        leaf.asked = tuple(disk.asked)
        leaf.pieces = [piece for piece in disk.pieces if piece[2] not in disk.asked]
        self.kept[leaf] = size = LEAF_BYTES + sum(map(len, leaf.buffers))
        self.bytes += size
        while self.bytes > SHOWN_BYTES and len(self.kept) > 1:
            oldest = next(iter(self.kept))
            self.bytes -= self.kept.pop(oldest)
            oldest.forget()
