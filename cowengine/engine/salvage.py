"""Salvage: everything of a damaged volume that can still be read, into a plain raw image, and a list of what cannot.

Never wrong bytes: what is not sure to be the volume's stays a hole and is listed. Sure is a block that verified
metadata leads to and whose seal, if it has one, fits. Where records are lost, only a seal makes sure: the block's space
may have been given to another one by what they said. Which state it is, the report says.

Threads   no state. The file stands still.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.files import open_regular
from cowengine.engine.flatten import COPY_BYTES, write_new_image
from cowengine.engine.locks import FileLocks
from cowengine.engine.report import Report
from cowengine.engine.salvage_seals import DAMAGED, UNSEALED, VERIFIED, Seals
from cowengine.engine.salvage_state import Piece, State, newest_state
from cowengine.engine.verifying import NOT_SEALED
from cowengine.errors import BusyError, CowEngineError, StorageError
from cowengine.format import (
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_HEAD,
    LINEAGE_SNAPSHOT,
    SLOT_BYTES,
    LineageRecord,
)

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

PROBLEMS_MAX = 200


class Lost(NamedTuple):
    """Bytes that the image has as a hole because nobody can say what they are. `why` says what is damaged."""

    offset: int
    length: int
    why: str


@dataclass(slots=True)
class Salvaged(Report):
    """The report of a salvage: `lost` lists what the image lacks, ascending; `state` says what the image shows.

    `counts`: `blocks` were written, `verified` of them by a seal and `unsealed` ones trusted; `lost` could not be.
    """

    state: str = ""
    lost: list[Lost] = field(default_factory=list)


class Wanted(NamedTuple):
    """What is to be salvaged, in words, and which lineage record it has."""

    what: str
    is_it: Callable[[LineageRecord], bool]


def wanted_head(name_or_id: str | int) -> Wanted:
    """A head, by its name or its id."""
    return Wanted(f"head {name_or_id!r}", lambda record: record.kind == LINEAGE_HEAD and _has(record, name_or_id))


def wanted_snapshot(name_or_id: str | int) -> Wanted:
    """A snapshot that is neither deleted nor an anchor."""

    def is_it(record: LineageRecord) -> bool:
        readable = record.kind == LINEAGE_SNAPSHOT and not record.flags & (LINEAGE_DELETED | LINEAGE_ANCHOR)
        return readable and _has(record, name_or_id)

    return Wanted(f"snapshot {name_or_id!r}", is_it)


def _has(record: LineageRecord, name_or_id: str | int) -> bool:
    return name_or_id == (record.id if isinstance(name_or_id, int) else record.name)


def salvage_file(path: str, target: str, wanted: Wanted, *, doubtful: bool = False, io: IOTable = KERNEL) -> Salvaged:
    """Salvages from a volume file that may not open any more, and that nobody has open. Changes nothing in it.

    Raises NotFoundError, BusyError, ExistsError (`target`), CorruptionError if nothing leads to what is wanted,
    FormatError, UnsupportedVersionError, NoSpaceError, StorageError.
    """
    fd = open_regular(io, path, read_only=True)
    try:
        if not FileLocks(io, fd, path).share():
            raise BusyError("the volume is open for writing; close it, or salvage through its owner", path)
        return salvage(io, fd, path, target, wanted, doubtful=doubtful)
    finally:
        io.close(fd)


def salvage(io: IOTable, fd: int, name: str, target: str, wanted: Wanted, *, doubtful: bool = False) -> Salvaged:
    """As `salvage_file`, from a volume file open as `fd`, which nobody writes meanwhile."""
    try:
        state = newest_state(io, fd, name, wanted.is_it, wanted.what)
    except OSError as error:
        if isinstance(error, CowEngineError):
            raise
        raise StorageError(f"a read failed: {error.strerror}", name, error.errno or errno.EIO) from error
    salvaging = _Salvaging(io, fd, state, doubtful)
    write_new_image(io, salvaging.size, target, salvaging.fill)
    return salvaging.report(name, wanted.what)


def salvage_open(engine: Engine, target: str, wanted: Wanted, *, doubtful: bool = False) -> Salvaged:
    """As `salvage_file`, from an open volume, as of now; writes wait meanwhile."""
    with engine.lock:
        engine.path.check_state()
        if engine.read_only:
            return salvage(engine.io, engine.fd, engine.name, target, wanted, doubtful=doubtful)
        with engine.paused(*engine.path.heads.values()):
            engine.commit()
            return salvage(engine.io, engine.fd, engine.name, target, wanted, doubtful=doubtful)


class _Salvaging:
    def __init__(self, io: IOTable, fd: int, state: State, doubtful: bool) -> None:
        way, member = state.ways[0]
        self._io, self._fd, self._state = io, fd, state
        self._only_verified = bool(state.lost) and not doubtful
        self._seals = Seals(way.trees, way.sb.seal_root, state.records)
        self._block_bytes, self._block_slots = 1 << way.sb.block_shift, way.block_slots
        self._first_slot = way.sb.log_first + way.sb.log_slots
        self.size = member.record.size
        self._counts = {"blocks": 0, "verified": 0, "unsealed": 0, "lost": 0}
        self._lost: list[Lost] = []
        self._target = -1

    def report(self, name: str, what: str) -> Salvaged:
        way, _ = self._state.ways[0]
        state = f"{what} as of record {way.sequence}"
        problems = []
        if self._state.lost:
            problems.append(f"{name}: records behind record {way.sequence} are lost: {self._state.lost}")
        lost = _joined(self._lost)
        problems += [f"{name}: bytes {at} to {at + length - 1}: {why}" for at, length, why in lost[:PROBLEMS_MAX]]
        if len(lost) > PROBLEMS_MAX:
            problems.append(f"{name}: {len(lost) - PROBLEMS_MAX} more extents; the list of what is lost has all")
        return Salvaged(problems, self._counts, state, lost)

    def fill(self, target: int) -> None:
        """Writes the image into an open file of the right size."""
        self._target = target
        for piece in self._state.map():
            if piece.why:
                self._lose(piece.first, piece.end, piece.why)
            elif piece.slot < self._first_slot:
                self._lose(piece.first, piece.end, f"slot {piece.slot} cannot hold a block")
            else:
                self._copy(piece)

    def _copy(self, piece: Piece) -> None:
        step = max(1, COPY_BYTES // self._block_bytes)
        for first in range(piece.first, piece.end, step):
            self._part(first, min(first + step, piece.end), piece.slot + (first - piece.first) * self._block_slots)

    def _part(self, first: int, end: int, slot: int) -> None:
        """Blocks that lie in a row: read at once, or one by one where that fails."""
        wanted, why = (end - first) * self._block_bytes, ""
        try:
            data = self._io.pread(self._fd, wanted, slot * SLOT_BYTES)
            if len(data) < wanted:
                why = "its place lies behind the end of the file"
        except OSError as error:
            data, why = b"", f"it cannot be read: {error.strerror}"
        if why and end - first > 1:
            for block in range(first, end):
                self._part(block, block + 1, slot + (block - first) * self._block_slots)
        elif why:
            self._lose(first, end, why)
        else:
            self._write(first, data, slot)

    def _write(self, first: int, data: bytes, slot: int) -> None:
        """Writes the blocks that are sure, as many at a time as stand in a row."""
        begun, size = 0, self._block_bytes
        view = memoryview(data)
        for at in range(0, len(data), size):
            if not self._is_sure(first + at // size, bytes(view[at : at + size]), slot + at // SLOT_BYTES):
                self._put(first * size + begun, view[begun:at])
                begun = at + size
        self._put(first * size + begun, view[begun:])

    def _is_sure(self, block: int, data: bytes, slot: int) -> bool:
        verdict = self._seals.verdict(data, slot)
        if verdict == DAMAGED:
            self._lose(block, block + 1, f"its place {NOT_SEALED}")
        elif verdict == UNSEALED and self._only_verified:
            self._lose(block, block + 1, "no seal says that this is still its own space")
        else:
            self._counts["blocks"] += 1
            self._counts[VERIFIED if verdict == VERIFIED else UNSEALED] += 1
            return True
        return False

    def _put(self, offset: int, data: memoryview) -> None:
        data = data[: max(0, self.size - offset)]
        if len(data):
            self._io.pwrite(self._target, data, offset)

    def _lose(self, first: int, end: int, why: str) -> None:
        start, stop = first * self._block_bytes, min(end * self._block_bytes, self.size)
        self._counts["lost"] += end - first
        self._lost.append(Lost(start, stop - start, why))


def _joined(lost: list[Lost]) -> list[Lost]:
    """In order, and those that touch and have the same reason as one."""
    joined: list[Lost] = []
    for one in sorted(lost):
        last = joined[-1] if joined else None
        if last is not None and last.offset + last.length == one.offset and last.why == one.why:
            joined[-1] = last._replace(length=last.length + one.length)
        else:
            joined.append(one)
    return joined
