"""Records of the commit log (docs/format.md section 6): encode, decode, validate, scan.

What every commit does, encoding, is `core/records.pyx`'s. What the records mean, and which of them form the chain, is
recovery's and the checker's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NamedTuple

from cowengine.core.checksum import xxh64
from cowengine.core.records import pack_record
from cowengine.errors import CorruptionError
from cowengine.format.events import (
    Event,
    SnapshotEvent,
    decode_events,
    encode_event,
)
from cowengine.format.layout import (
    DELTA,
    DELTA_BYTES,
    ENTRY_HOLE,
    ENTRY_MAPPED,
    EPOCH_MAX,
    HEADS_MAX,
    MASK64,
    PAIR_BYTES,
    RECORD_CHECKSUM_OFFSET,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    RECORD_ONE_BARRIER,
    SLOT_BITS,
    SLOT_MASK,
    SLOTS_MAX,
    check_gaps,
    gaps_of,
    struct_of,
)
from cowengine.format.lineage import size_is_legal
from cowengine.format.seeds import fold_of
from cowengine.format.superblock import Superblock

Buffer = bytes | bytearray | memoryview

_HEADER = struct_of(RECORD_HEADER, RECORD_HEADER_BYTES)
_GAPS = gaps_of(RECORD_HEADER, RECORD_HEADER_BYTES)
_DELTA = struct_of(DELTA, DELTA_BYTES)
_PAIR = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<Q")

SCAN_BUDGET = 16
"""`scan_records` reads at most this many times the log. Records of a lap do not overlap: no honest log needs more."""


@dataclass(slots=True)
class Record:
    """One commit. `deltas` are packed (`encode_delta`), freed runs and nodes (slot, count), checks (slot, checksum)."""

    salt: int
    sequence: int
    generation: int
    previous: int
    epoch: int
    time_ns: int
    size: int
    one_barrier: bool = False
    deltas: Buffer = b""
    freed: Sequence[tuple[int, int]] = ()
    freed_nodes: Sequence[tuple[int, int]] = ()
    checks: Sequence[tuple[int, int]] = ()
    events: Sequence[Event] = field(default_factory=list)


class RecordHeader(NamedTuple):
    """The header of a record, as it lies in the log."""

    magic: bytes
    record_bytes: int
    salt: int
    sequence: int
    generation: int
    previous: int
    epoch: int
    time_ns: int
    flags: int
    delta_count: int
    freed_count: int
    freed_node_count: int
    check_count: int
    event_bytes: int
    size: int
    checksum: int

    @property
    def contents_bytes(self) -> int:
        """What record_bytes must be by the counts; exact, as Python's integers do not wrap."""
        pairs = self.freed_count + self.freed_node_count + self.check_count
        return RECORD_HEADER_BYTES + DELTA_BYTES * self.delta_count + PAIR_BYTES * pairs + self.event_bytes


class Delta(NamedTuple):
    """A range of blocks and what they are now: mapped from `slot` on, or holes, with that birth."""

    block: int
    block_count: int
    kind: int
    slot: int
    birth: int
    head: int


def encode_delta(block: int, count: int, kind: int, slot: int, birth: int, head: int = 0) -> bytes:
    """The 32 bytes of a delta."""
    return _DELTA.pack(block, count, slot | kind << 56, birth | head << 48)


def iter_deltas(deltas: Buffer) -> Iterator[Delta]:
    """The deltas packed in `deltas`, whose length is a multiple of 32; no validation (decode_record has done it)."""
    for block, count, target, birth in _DELTA.iter_unpack(deltas):
        yield Delta(block, count, target >> 56, target & SLOT_MASK, birth & EPOCH_MAX, birth >> 48)


def checks_overlap(record: Record, block_slots: int) -> bool:
    """Whether two checks of a record speak of one slot: no honest one's do, and reading them is bounded by the file."""
    slots = sorted(slot for slot, _ in record.checks)
    return any(after - before < block_slots for before, after in pairwise(slots))


def record_bytes_for(record: Record) -> int:
    """How long `record` will be, without padding."""
    pairs = len(record.freed) + len(record.freed_nodes) + len(record.checks)
    events = sum(len(encode_event(event)) for event in record.events)
    return RECORD_HEADER_BYTES + len(record.deltas) + PAIR_BYTES * pairs + events


def encode_record(record: Record, fold: int) -> bytes:
    """The bytes of a record, checksum included, without padding."""
    r = record
    events = b"".join(map(encode_event, r.events))
    data, _ = pack_record(
        fold, r.salt, r.sequence, r.generation, r.previous, r.epoch, r.time_ns, r.size,
        RECORD_ONE_BARRIER if r.one_barrier else 0, bytes(r.deltas), r.freed, r.freed_nodes, r.checks, events, 1,
    )  # fmt: skip
    return data


def record_checksum(encoded: Buffer) -> int:
    """The checksum written in an encoded record: what the next one names as `previous`."""
    checksum: int = _CHECKSUM.unpack_from(encoded, RECORD_CHECKSUM_OFFSET)[0]
    return checksum


def peek_header(buffer: Buffer, offset: int, limit: int) -> RecordHeader | None:
    """The header at `offset` if magic and bounds are those of a record that ends at or before `limit`."""
    if limit > len(buffer) or offset < 0 or limit - offset < RECORD_HEADER_BYTES:
        return None
    header = RecordHeader._make(_HEADER.unpack_from(buffer, offset))
    if header.magic != RECORD_MAGIC or not RECORD_HEADER_BYTES <= header.record_bytes <= limit - offset:
        return None
    return header if header.record_bytes == header.contents_bytes else None


def _checked_bytes(buffer: Buffer, offset: int, header: RecordHeader, fold: int) -> bytes | None:
    """A copy of the record with a zero checksum field, if its checksum is right."""
    data = bytearray(memoryview(buffer)[offset : offset + header.record_bytes])
    _CHECKSUM.pack_into(data, RECORD_CHECKSUM_OFFSET, 0)
    return bytes(data) if xxh64(data, (fold + header.sequence) & MASK64) == header.checksum else None


def decode_record(buffer: Buffer, offset: int, limit: int, fold: int, sequence: int) -> tuple[Record, int, int] | None:
    """The record with this sequence that begins at `offset` and ends by `limit`, its checksum and its length in bytes.

    None if there is no such record. Raises CorruptionError if its checksum is right and its contents are impossible,
    and UnsupportedVersionError if it holds an event of a newer version.
    """
    header = peek_header(buffer, offset, limit)
    if header is None or header.sequence != sequence:
        return None
    data = _checked_bytes(buffer, offset, header, fold)
    if data is None:
        return None
    _check_header(data, header)
    deltas_end = RECORD_HEADER_BYTES + DELTA_BYTES * header.delta_count
    freed_end = deltas_end + PAIR_BYTES * header.freed_count
    nodes_end = freed_end + PAIR_BYTES * header.freed_node_count
    checks_end = nodes_end + PAIR_BYTES * header.check_count
    record = Record(
        header.salt, header.sequence, header.generation, header.previous, header.epoch, header.time_ns, header.size,
        bool(header.flags & RECORD_ONE_BARRIER), data[RECORD_HEADER_BYTES:deltas_end],
        _pairs(data, deltas_end, freed_end), _pairs(data, freed_end, nodes_end), _pairs(data, nodes_end, checks_end),
        decode_events(data[checks_end:]),
    )  # fmt: skip
    _check_contents(record)
    return record, header.checksum, header.record_bytes


def _pairs(data: bytes, begin: int, end: int) -> list[tuple[int, int]]:
    numbers = struct.unpack_from(f"<{(end - begin) // 8}Q", data, begin)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _check_header(data: bytes, header: RecordHeader) -> None:
    what = f"record {header.sequence}"
    check_gaps(data, _GAPS, what)
    if header.flags & ~RECORD_ONE_BARRIER:
        raise CorruptionError(f"{what}: unknown flags {header.flags:#x}")
    if not 1 <= header.epoch <= EPOCH_MAX:
        raise CorruptionError(f"{what}: epoch {header.epoch}")
    if not size_is_legal(header.size):
        raise CorruptionError(f"{what}: size {header.size}")


def _check_contents(record: Record) -> None:
    what = f"record {record.sequence}"
    limits: dict[int, int] = {}  # of births, by the number of the head
    for event in record.events:
        if isinstance(event, SnapshotEvent) and not event.before:
            limits[event.head] = min(limits.get(event.head, event.epoch), event.epoch)
        last = record.epoch - isinstance(event, SnapshotEvent)  # the head goes on behind a snapshot
        if getattr(event, "epoch", 0) > last:
            raise CorruptionError(f"{what} of epoch {record.epoch}: an event of another epoch: {event}")
    for block, count, target, birth in _DELTA.iter_unpack(record.deltas):
        if birth >> 48 >= HEADS_MAX or not _delta_is_legal(
            block, count, target, birth & EPOCH_MAX, limits.get(birth >> 48, record.epoch)
        ):
            raise CorruptionError(f"{what}: an impossible delta of {count} blocks from {block} to {target:#x}")
    for slot, count in chain(record.freed, record.freed_nodes):
        if slot < 2 or count < 1 or slot + count > SLOTS_MAX:
            raise CorruptionError(f"{what}: freed run of {count} slots at {slot}")
    for slot, _ in record.checks:
        if not 2 <= slot < SLOTS_MAX:
            raise CorruptionError(f"{what}: check of slot {slot}")


def _delta_is_legal(block: int, count: int, target: int, birth: int, epoch: int) -> bool:
    """In bounds; `birth` is without the number of the head."""
    if count < 1 or block + count > SLOTS_MAX or birth > epoch:
        return False
    slot = target & SLOT_MASK
    if target >> SLOT_BITS == ENTRY_MAPPED << 8:
        return birth >= 1 and slot >= 2 and slot + count <= SLOTS_MAX
    return target == ENTRY_HOLE


def records_beyond(log: Buffer, sb: Superblock, last: int | None) -> Iterator[tuple[int, RecordHeader]]:
    """Every (offset, header) of a record that shows, unless it is part of the chain, that something was lost.

    It names a newer superblock than `sb`, or it is of this one's salt and comes behind record `last`, the end of the
    chain: it was written only when all those before it were durable. None for `last`: somebody may be writing.
    """

    def is_beyond(header: RecordHeader) -> bool:
        later = last is not None and header.salt == sb.salt and header.sequence > last
        return later or header.generation > sb.generation

    return scan_records(log, sb.log_shift, fold_of(sb.volume_uuid), is_beyond)


def scan_records(
    log: Buffer, log_shift: int, fold: int, wanted: Callable[[RecordHeader], bool] = lambda header: True
) -> Iterator[tuple[int, RecordHeader]]:
    """Every (offset, header) at which a record with a right checksum lies, of whatever sequence, ascending.

    Only those that are `wanted`. Of a hostile log no more than SCAN_BUDGET times its size is read; what lies behind is
    then not found.
    """
    budget = SCAN_BUDGET * len(log)
    for offset in range(0, len(log), 1 << log_shift):
        if log[offset : offset + len(RECORD_MAGIC)] != RECORD_MAGIC:
            continue
        header = peek_header(log, offset, len(log))
        if header is None or not wanted(header):
            continue
        budget -= header.record_bytes
        if budget < 0:
            return
        if _checked_bytes(log, offset, header, fold) is not None:
            yield offset, header
