"""A file system in memory behind the I/O table, with a page cache that loses what no barrier covered.

`MemoryDisk` answers every call of the table from memory and writes down what would change the disk (its *journal*).
`instants` walks such a journal and stops wherever a power cut could tell something new: at every barrier and at the
end. An instant knows what is durable and which changes are pending; any subset of those may have reached the disk,
and a write may have done so in part, in units of 512 bytes. Size changes and directory entries are pending changes of
their own: they may be lost although later data is there, and the other way round.

A kill loses nothing: `MemoryDisk(durable, pending)` starts a second process on the same page cache. A failed
fdatasync leaves each pending write durable, or *clean in the cache and old on the disk*, or still dirty; `forget`
then drops what is clean, as the kernel does, so that a reader sees the truth.

What it does not do: sparse files (a hole is zeros), permissions, time. One thread at a time, except that reads may
overlap.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cowengine.core.iotable import IOTable

SECTOR = 512
PAGE = 4096
OFFSETS = 1 << 63  # where all file offsets end
DIRECTORY = 0  # the inode number every directory has here


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for one file; `data` overwrites, and extends the file where it has to."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One atomic change of names: `removed` go, `added` points at `inode`."""

    removed: tuple[str, ...]
    added: str | None
    inode: int

    def directories(self) -> set[str]:
        return {posixpath.dirname(path) for path in (*self.removed, *([self.added] if self.added else []))}


@dataclass(frozen=True, slots=True)
class Barrier:
    """fdatasync that returned 0: the changes of `inode` in the journal's first `covered` entries are durable."""

    inode: int
    covered: int


@dataclass(frozen=True, slots=True)
class DirectoryBarrier:
    path: str


@dataclass(frozen=True, slots=True)
class FailedBarrier:
    """fdatasync that failed. `fates`: per pending change of the file 0 durable, 1 lost, 2 still pending."""

    inode: int
    fates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """What the workload wants to remember at this point."""

    value: Any


Change = Write | Resize | Entry
Event = Write | Resize | Entry | Barrier | DirectoryBarrier | FailedBarrier | Note


@dataclass(slots=True)
class Durable:
    """What the disk holds: contents by inode number, inode numbers by path."""

    files: dict[int, bytearray] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=lambda: {"/": DIRECTORY, "/disk": DIRECTORY})

    def copy(self) -> Durable:
        return Durable({inode: bytearray(data) for inode, data in self.files.items()}, dict(self.entries))

    def apply(self, change: Change, sectors: int | None = None) -> None:
        """`sectors`: which 512-byte units of a write arrive, as a bit mask; None: all."""
        if isinstance(change, Write):
            content = self.files.setdefault(change.inode, bytearray())
            if sectors is None:
                overwrite(content, change.offset, change.data)
            else:
                for offset, data in torn(change, sectors):
                    overwrite(content, offset, data)
        elif isinstance(change, Resize):
            resize(self.files.setdefault(change.inode, bytearray()), change.size)
        else:
            for path in change.removed:
                self.entries.pop(path, None)
                if change.inode == DIRECTORY and change.added is not None:
                    self._move(path + "/", change.added + "/")
            if change.added is not None:
                self.entries[change.added] = change.inode

    def _move(self, source: str, target: str) -> None:
        """What lies in a directory goes with it."""
        for path in [path for path in self.entries if path.startswith(source)]:
            self.entries[target + path.removeprefix(source)] = self.entries.pop(path)

    def reachable(self) -> Iterator[tuple[str, bytearray]]:
        """Path and content of every file that has a name."""
        for path, inode in sorted(self.entries.items()):
            if inode != DIRECTORY:
                yield path, self.files.setdefault(inode, bytearray())


def overwrite(content: bytearray, offset: int, data: bytes | memoryview) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def sector_count(change: Write) -> int:
    return (change.offset + len(change.data) - 1) // SECTOR - change.offset // SECTOR + 1


def torn(change: Write, sectors: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a write that lie in the sectors whose bit is set."""
    first = change.offset // SECTOR
    end = change.offset + len(change.data)
    for index in range(sector_count(change)):
        if sectors >> index & 1:
            start = max(change.offset, (first + index) * SECTOR)
            stop = min(end, (first + index + 1) * SECTOR)
            yield start, change.data[start - change.offset : stop - change.offset]


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment at which the power may go. `durable` is valid until the iteration goes on: copy it."""

    position: int
    durable: Durable
    pending: list[Change]
    cached: list[Change]  # pending, and what a failed barrier left clean in the cache and old on the disk
    note: Any


def instants(
    start: Durable, journal: Sequence[Event], keeps: Callable[[int], bool] = lambda _: True
) -> Iterator[Instant]:
    """Every instant just before a barrier of the journal, and its end.

    `keeps(position)` False switches the barrier at that position of the journal off: the engine believed in it, the
    disk did not.
    """
    durable = start.copy()
    pending: dict[int, Change] = {}  # by position
    lost: dict[int, Change] = {}
    note: Any = None

    def instant(position: int) -> Instant:
        cached = [change for _, change in sorted((pending | lost).items())] if lost else []
        return Instant(position, durable, list(pending.values()), cached, note)

    for position, event in enumerate(journal):
        if isinstance(event, (Write, Resize, Entry)):
            pending[position] = event
        elif isinstance(event, Note):
            note = event.value
        else:
            yield instant(position)
            if keeps(position):
                settle(durable, pending, lost, event)
    yield instant(len(journal))


def settle(
    durable: Durable,
    pending: dict[int, Change],
    lost: dict[int, Change],
    event: Barrier | DirectoryBarrier | FailedBarrier,
) -> None:
    """Makes durable what a barrier covers, and moves what a failed one gave up to `lost`."""
    fates = iter(event.fates) if isinstance(event, FailedBarrier) else iter(())
    for position, change in list(pending.items()):
        if isinstance(change, Entry):
            fate = 0 if isinstance(event, DirectoryBarrier) and event.path in change.directories() else 2
        elif isinstance(event, DirectoryBarrier) or change.inode != event.inode:
            fate = 2
        elif isinstance(event, FailedBarrier):
            fate = next(fates, 2)
        else:
            fate = 0 if position < event.covered else 2
        if fate == 0:
            durable.apply(change)
        elif fate == 1:
            lost[position] = change
        if fate < 2:
            del pending[position]


@dataclass(slots=True)
class OpenFile:
    inode: int
    path: str
    locks: list[tuple[int, int, bool]] = field(default_factory=list)  # [start, end), exclusive; disjoint


class MemoryDisk(IOTable):
    """The I/O table over memory. `durable` is taken over; `pending` lies in the page cache only."""

    # `before_barrier(inode)` runs inside fdatasync, which covers no write made there.
    # `watched`: somebody counts the calls, and they may fail.
    # `fail_barrier`: how many further barriers succeed before one fails; its fates come from `fate()`.

    watched = False

    def __init__(
        self,
        durable: Durable | None = None,
        pending: Sequence[Change] = (),
        cached: Sequence[Change] = (),
        *,
        recorded: bool = True,
    ) -> None:
        """`cached`: all changes in the page cache, in order, with those that are clean and yet not on the disk;
        default: `pending`.

        Without `recorded` the disk keeps no journal and takes `durable` over: fast, and good for one look.
        """
        self.start = durable if durable is not None else Durable()
        self.recorded = recorded
        self.cache = self.start.copy() if recorded else self.start
        self.stale = bool(cached)
        self.journal: list[Event] = []
        self.faults = 0
        self.is_off = False
        self.files: dict[int, OpenFile] = {}
        self.next_descriptor = 1000
        self.before_barrier: Callable[[int], None] | None = None
        self.fail_barrier: int | None = None
        self.fate: Callable[[], int] = lambda: 1
        for change in cached or pending:
            self.cache.apply(change)
        self.journal.extend(pending)
        self.next_inode = 1 + max([0, *self.start.files, *self.start.entries.values(), *self.cache.files])

    # -- names ------------------------------------------------------------------------------------------------------
    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        path = posixpath.normpath(path)
        inode = self.cache.entries.get(path)
        if inode is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            self._require_directory(path)
            inode = self.next_inode
            self.next_inode += 1
            self.cache.files[inode] = bytearray()
            self._change(Entry((), path, inode))
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        elif inode == DIRECTORY and flags & os.O_ACCMODE != os.O_RDONLY:
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        if flags & os.O_TRUNC and self.cache.files.get(inode):
            self._change(Resize(inode, 0))
        self.next_descriptor += 1
        self.files[self.next_descriptor] = OpenFile(inode, path)
        return self.next_descriptor

    def close(self, fd: int) -> None:
        if not self.is_off:
            self._file(fd)
        self.files.pop(fd, None)

    def rename(self, source: str, target: str) -> None:
        inode = self._inode(source)
        self._require_directory(target)
        self._change(Entry((posixpath.normpath(source),), posixpath.normpath(target), inode))

    def unlink(self, path: str) -> None:
        if self._inode(path) == DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        self._change(Entry((posixpath.normpath(path),), None, -1))

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        path = posixpath.normpath(path)
        if path in self.cache.entries:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._require_directory(path)
        self._change(Entry((), path, DIRECTORY))

    def rmdir(self, path: str) -> None:
        if self._inode(path) != DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        self._change(Entry((posixpath.normpath(path),), None, -1))

    def names(self, path: str) -> list[str]:
        path = posixpath.normpath(path)
        self._inode(path)
        return sorted(posixpath.basename(p) for p in self.cache.entries if posixpath.dirname(p) == path and p != "/")

    def is_file(self, path: str) -> bool:
        return self.cache.entries.get(posixpath.normpath(path), DIRECTORY) != DIRECTORY

    def is_folder(self, path: str) -> bool:
        return self.cache.entries.get(posixpath.normpath(path)) == DIRECTORY

    # -- contents ---------------------------------------------------------------------------------------------------
    def size(self, fd: int) -> int:
        return len(self._content(fd))

    def stands(self, fd: int) -> tuple[int, int]:
        inode = self._file(fd).inode
        return len(self._content(fd)), list(self.cache.entries.values()).count(inode)

    def space(self, fd: int) -> tuple[int, int, int]:
        return len(self._content(fd)), 1 << 40, 1 << 40

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        part = memoryview(self._content(fd))[offset : offset + memoryview(buffer).nbytes]
        with part, memoryview(buffer).cast("B") as view:
            view[: len(part)] = part
            return len(part)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._content(fd)[offset : offset + length])

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        written = bytes(data)
        if written:
            content = self._content(fd)
            overwrite(content, offset, written)
            # The disk gets whole sectors out of the page cache, with whatever was written to them before.
            start, end = offset // SECTOR * SECTOR, -(-(offset + len(written)) // SECTOR) * SECTOR
            self._change(Write(self._file(fd).inode, start, bytes(content[start:end])))

    def truncate(self, fd: int, size: int) -> None:
        self._change(Resize(self._file(fd).inode, size))

    def punch(self, fd: int, offset: int, length: int) -> None:
        end = min(offset + length, self.size(fd))  # the size is kept
        if end > offset:
            self._change(Write(self._file(fd).inode, offset, bytes(end - offset)))

    def begin_write(self, fd: int, offset: int, length: int) -> None:
        """A disk may write at any instant anyway."""

    def fdatasync(self, fd: int) -> None:
        inode, covered = self._file(fd).inode, len(self.journal)
        if self.before_barrier is not None:
            self.before_barrier(inode)
        if self.fail_barrier is not None:
            self.fail_barrier -= 1
            if self.fail_barrier < 0:
                self.fail_barrier = None
                self.faults += 1
                self.stale = True
                self.journal.append(FailedBarrier(inode, tuple(self.fate() for _ in range(covered))))
                raise OSError(errno.EIO, "Input/output error", self._file(fd).path)
        if self.recorded:
            self.journal.append(Barrier(inode, covered))

    def sync_directory(self, path: str) -> None:
        self._inode(path)
        if self.recorded:
            self.journal.append(DirectoryBarrier(posixpath.normpath(path)))

    def forget(self, fd: int, offset: int = 0, length: int = 0) -> None:
        """Drops clean pages, of a range or more: what the disk holds shows again, under what is still dirty."""
        inode = self._file(fd).inode
        if not self.stale:
            return  # every clean page is what the disk holds
        *_, last = instants(self.start, self.journal)
        fresh = bytearray(last.durable.files.get(inode, b""))
        self.cache.files[inode][:] = fresh
        for change in last.pending:
            if not isinstance(change, Entry) and change.inode == inode:
                self.cache.apply(change)

    def lock(self, fd: int, exclusive: bool, start: int = 0, length: int = 0) -> None:
        if self.locked(fd, exclusive, start, length) is not None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", self._file(fd).path)
        self.unlock(fd, start, length)
        self._file(fd).locks.append((start, start + length if length else OFFSETS, exclusive))

    def unlock(self, fd: int, start: int = 0, length: int = 0) -> None:
        mine, end = self._file(fd), start + length if length else OFFSETS
        parts = [(s, e, x) for a, b, x in mine.locks for s, e in ((a, min(b, start)), (max(a, end), b)) if s < e]
        mine.locks = parts

    def locked(self, fd: int, exclusive: bool, start: int = 0, length: int = 0) -> tuple[int, int] | None:
        mine, end = self._file(fd), start + length if length else OFFSETS
        for other in self.files.values():
            if other is not mine and other.inode == mine.inode:
                for a, b, held in other.locks:
                    if a < end and start < b and (exclusive or held):
                        return a, b - a
        return None

    def is_sole(self, fd: int) -> bool:
        return sum(other.inode == self._file(fd).inode for other in self.files.values()) == 1

    def next_data(self, fd: int, offset: int) -> tuple[int, int] | None:
        """Pages of zeros stand for holes."""
        content = self._content(fd)
        pages = range(offset // PAGE * PAGE, len(content), PAGE)
        begin = next((at for at in pages if any(content[at : at + PAGE])), None)
        if begin is None:
            return None
        holes = (at for at in range(begin, len(content), PAGE) if not any(content[at : at + PAGE]))
        return max(begin, offset), next(holes, len(content))

    def copy_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        data = self.pread(source, length, source_offset)
        self.pwrite(target, data, target_offset)
        return len(data)

    def same_file_system(self, path: str, other: str) -> bool:
        self._inode(path), self._inode(other)
        return True

    # -- the disk ---------------------------------------------------------------------------------------------------
    def note(self, value: Any) -> None:
        if self.recorded:
            self.journal.append(Note(value))

    def _change(self, change: Change) -> None:
        self.cache.apply(change)
        if self.recorded:
            self.journal.append(change)

    def power_off(self) -> None:
        """Nothing reaches this disk any more: every call of what still holds it fails, but for close."""
        self.is_off = True
        self.before_barrier = None
        self.files.clear()

    def _file(self, fd: int) -> OpenFile:
        try:
            return self.files[fd]
        except KeyError:
            raise OSError(errno.EBADF, "Bad file descriptor") from None

    def _content(self, fd: int) -> bytearray:
        return self.cache.files[self._file(fd).inode]

    def _inode(self, path: str) -> int:
        try:
            return self.cache.entries[posixpath.normpath(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path) from None

    def _require_directory(self, path: str) -> None:
        parent = posixpath.dirname(posixpath.normpath(path))
        if self.cache.entries.get(parent) != DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
