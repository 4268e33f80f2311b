"""Which barrier is which: the engine passes no names, so a barrier is known by what was written before and after it.

docs/format.md says where superblocks and the log lie; everything else is a node or data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from memory_disk import Barrier, DirectoryBarrier, Durable, Event, FailedBarrier, Note, Resize, Write

from cowengine.core.iotable import IOTable

SLOT = 4096
KINDS = (
    "creation",
    "directory entry",
    "data",
    "record",
    "home slots",
    "nodes",
    "superblock of a checkpoint",
    "superblock of a clean close",
    "recovery begins",
    "superblock of a recovery",
    "second superblock of a recovery",
)


def region(write: Write, log: range) -> str:
    if write.offset < 2 * SLOT:
        return "superblock"
    return "log" if write.offset in log else "other"


def log_range(superblock: bytes) -> range:
    first, slots = struct.unpack_from("<QQ", superblock, 96)
    return range(first * SLOT, (first + slots) * SLOT)


def kinds(start: Durable, journal: Sequence[Event]) -> dict[int, str]:
    """The kind of every barrier of the journal, by position."""
    written = [bytes(content[:SLOT]) for _, content in start.reachable() if len(content) >= SLOT]
    superblocks = written + [e.data for e in journal if isinstance(e, Write) and e.offset in (0, SLOT)]
    if not superblocks:
        return {}
    log = log_range(superblocks[0])
    promised = bool(written)
    salt = superblocks[0][80:88] if promised else b""
    found: dict[int, str] = {}
    before: list[Write] = []
    longer = False  # the file was made longer since the last barrier
    opens = promised  # a process begins with an open, whatever another one has left in the cache
    for position, event in enumerate(journal):
        if isinstance(event, Note):
            promised = True
        elif isinstance(event, Write):
            before.append(event)
        elif isinstance(event, Resize):
            longer = True
        elif isinstance(event, DirectoryBarrier):
            found[position] = "directory entry"
        elif isinstance(event, (Barrier, FailedBarrier)):
            after = next((region(e, log) for e in journal[position + 1 :] if isinstance(e, Write)), "nothing")
            found[position] = (
                "recovery begins" if opens else kind(before, after, log, salt, longer) if promised else "creation"
            )
            opens = False
            salt = next((w.data[80:88] for w in before if region(w, log) == "superblock"), salt)
            before, longer = [], False
    return name_seconds(found)


def kind(before: Sequence[Write], after: str, log: range, salt: bytes, longer: bool) -> str:
    regions = {region(write, log) for write in before}
    if "superblock" in regions:
        data = next(write.data for write in before if region(write, log) == "superblock")
        if data[80:88] != salt:
            return "superblock of a recovery"
        return "superblock of a clean close" if data[14] else "superblock of a checkpoint"
    if "log" in regions:
        return "record"
    if not regions:
        return "home slots" if longer else "recovery begins"
    return "nodes" if after == "superblock" else "data"


def name_seconds(found: dict[int, str]) -> dict[int, str]:
    """A recovery writes both slots: the second carries the same salt as the first and follows it at once."""
    previous = ""
    for position, name in found.items():
        if previous == "superblock of a recovery" and name.startswith("superblock of a c"):
            found[position] = "second superblock of a recovery"
        previous = found[position]
    return found


def without(name: str) -> Callable[[Durable, Sequence[Event]], Callable[[int], bool]]:
    """For the explorer: every barrier of this kind is switched off."""

    def keeps(start: Durable, journal: Sequence[Event]) -> Callable[[int], bool]:
        found = kinds(start, journal)
        return lambda position: found.get(position) != name

    return keeps


class Broken(IOTable):
    """The kernel's files with a fault, which a harness on real files has to find. One volume file at a time."""

    def __init__(self) -> None:
        self.log = range(0)
        self.record: tuple[int, bytes, int] | None = None

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if offset == 0 and len(data) == SLOT:
            self.log = log_range(bytes(data))
        super().pwrite(fd, data, offset)


class LateRecords(Broken):
    """A record reaches the file only before the next call, so it is acknowledged too early."""

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self.catch_up()
        if offset in self.log:
            self.record = (fd, bytes(data), offset)
        else:
            super().pwrite(fd, data, offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self.catch_up()
        return super().pread(fd, length, offset)

    def close(self, fd: int) -> None:
        self.catch_up()
        super().close(fd)

    def catch_up(self) -> None:
        if self.record is not None:
            fd, data, offset = self.record
            self.record = None
            super().pwrite(fd, data, offset)


class UnsyncedRecords(Broken):
    """The barrier behind each record is switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.last = -1

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        super().pwrite(fd, data, offset)
        self.last = offset

    def fdatasync(self, fd: int) -> None:
        if self.last not in self.log:
            super().fdatasync(fd)
