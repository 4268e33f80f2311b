"""Superblocks and commit log as they lie on the disk, for the checker and for salvage.

Shares the format and the checksum with the engine, nothing else.

Threads   no state.
"""

from __future__ import annotations

from typing import NamedTuple

from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable
from cowengine.engine.check_trees import Problems
from cowengine.errors import CorruptionError, FormatError, UnsupportedVersionError
from cowengine.format import (
    SLOT_BYTES,
    SLOT_SHIFT,
    Record,
    Superblock,
    check_seed,
    checks_overlap,
    decode_record,
    decode_superblock,
    fold_of,
    records_beyond,
    superblock_astray,
)


def valid_superblocks(io: IOTable, fd: int, name: str, problems: Problems) -> list[Superblock]:
    """Those that are valid, the chosen one first. One torn by a crash is no problem: so there are two.

    None, with a problem, if both are damaged. Raises FormatError if the file is no volume.
    """
    valid: list[Superblock] = []
    errors: list[Exception] = []
    for slot in (0, 1):
        try:
            valid.append(decode_superblock(io.pread(fd, SLOT_BYTES, slot * SLOT_BYTES)))
        except UnsupportedVersionError:
            raise
        except (FormatError, CorruptionError) as error:
            errors.append(error)
    if not valid:
        if all(isinstance(error, FormatError) for error in errors):
            raise FormatError(f"{name}: no cowengine volume")
        problems.add(f"both superblocks are damaged: {errors[0]}; {errors[1]}")
        return []
    valid.sort(key=lambda sb: sb.generation, reverse=True)
    if len(valid) == 1:
        return valid
    one, two = valid
    if one.generation == two.generation and one != two:
        problems.add(f"two different superblocks of generation {one.generation}")
    fixed = [(sb.volume_uuid, sb.block_shift, sb.log_shift, sb.log_first, sb.log_slots) for sb in valid]
    if fixed[0] != fixed[1]:
        problems.add("the superblocks are of different volumes")
        return [one]
    return valid


class Chain(NamedTuple):
    """The records that follow a superblock, without a last one that recovery would drop."""

    records: list[Record]
    checksum: int
    """Of the last of them, or of the one that the checkpoint ends with."""
    dropped: int
    """How many recovery would drop: 0 or 1."""


def read_chain(io: IOTable, fd: int, sb: Superblock, problems: Problems) -> Chain:
    """Reads and verifies the log; whatever shows that something of it was lost is a problem."""
    return _Log(io, fd, sb, problems).read()


class _Log:
    def __init__(self, io: IOTable, fd: int, sb: Superblock, problems: Problems) -> None:
        self.io = io
        self.fd = fd
        self.sb = sb
        self.problems = problems
        self.fold = fold_of(sb.volume_uuid)

    def read(self) -> Chain:
        sb = self.sb
        inside = (sb.log_first + sb.log_slots) * SLOT_BYTES <= self.io.size(self.fd)
        log = self.io.pread(self.fd, sb.log_bytes, sb.log_first * SLOT_BYTES) if inside else b""
        if len(log) != sb.log_bytes:
            self.problems.add("the log lies beyond the end of the file")
            return Chain([], sb.base_checksum, 0)
        chain: list[Record] = []
        places: set[int] = set()
        position, sequence, previous = sb.base_offset, sb.base_sequence, sb.base_checksum
        before = previous
        while True:
            self._check_tip(sequence, previous)
            found = self._follows(log, position, sequence + 1, previous)
            if found is None:
                break
            before = previous
            record, previous, offset, end = found
            if record.generation <= sb.generation + 1:  # no more than one superblock can be lost
                places.add(offset)
            chain.append(record)
            sequence += 1
            position = end
        if sequence < sb.tip_sequence:
            self.problems.add(f"log: ends after record {sequence}, but record {sb.tip_sequence} is confirmed")
        for offset, header in records_beyond(log, sb, sequence):
            if offset not in places:
                self.problems.add(
                    f"log: record {header.sequence} at byte {offset} follows superblock generation "
                    f"{header.generation}; the newest valid one is {sb.generation}, and the chain ends after {sequence}"
                )
        astray = superblock_astray(log, sb)
        if astray is not None:
            self.problems.add(f"log: superblock {astray} was written over it, not into its slot")
        if chain and sequence > sb.tip_sequence and self._is_dropped(chain[-1]):
            return Chain(chain[:-1], before, 1)
        return Chain(chain, previous, 0)

    def _check_tip(self, sequence: int, checksum: int) -> None:
        if sequence == self.sb.tip_sequence and checksum != self.sb.tip_checksum:
            self.problems.add(f"log: record {sequence} is not the one the superblock confirms")

    def _follows(self, log: bytes, position: int, sequence: int, previous: int) -> tuple[Record, int, int, int] | None:
        """(record, checksum, offset, end) of the record that continues the chain."""
        sb = self.sb
        align = 1 << sb.log_shift
        for offset in (position, 0) if position else (0,):
            try:
                decoded = decode_record(log, offset, len(log), self.fold, sequence)
            except CorruptionError as error:
                self.problems.add(f"log, byte {offset}: {error}")
                continue
            if decoded is None:
                continue
            record, checksum, count = decoded
            if record.previous == previous and (record.salt == sb.salt or sequence <= sb.tip_sequence):
                return record, checksum, offset, -(-(offset + count) // align) * align
        return None

    def _is_dropped(self, last: Record) -> bool:
        """Whether recovery drops this last record, which no superblock confirms."""
        if self.sb.clean:
            self.problems.add(f"log: record {last.sequence} follows a superblock of a clean close")
        if not last.one_barrier:
            return False
        block_bytes = 1 << self.sb.block_shift
        if checks_overlap(last, 1 << (self.sb.block_shift - SLOT_SHIFT)):
            self.problems.add(f"log: checks of record {last.sequence} overlap")
            return False
        for slot, checksum in last.checks:
            data = self.io.pread(self.fd, block_bytes, slot * SLOT_BYTES)
            if len(data) < block_bytes or xxh64(data, check_seed(self.fold, slot)) != checksum:
                return True
        return False
