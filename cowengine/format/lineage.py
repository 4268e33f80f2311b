"""Lineage records: heads and snapshots (docs/format.md section 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cowengine.errors import CorruptionError
from cowengine.format.layout import (
    COUNTER_MAX,
    EPOCH_MAX,
    HEADS_MAX,
    ID_MAX,
    LINEAGE_ANCHOR,
    LINEAGE_AUTOMATIC,
    LINEAGE_BYTES,
    LINEAGE_DELETED,
    LINEAGE_EMPTY,
    LINEAGE_HEAD,
    LINEAGE_HELD,
    LINEAGE_RECORD,
    LINEAGE_SEALED,
    LINEAGE_SNAPSHOT,
    LINEAGE_UNUSED,
    METADATA_BYTES_MAX,
    NAME_BYTES_MAX,
    NO_CURSOR,
    NO_UUID,
    NONE_ID,
    POINTER_HOLE,
    SIZE_MAX,
    SIZE_MIN,
    SLOT_MASK,
    check_gaps,
    gaps_of,
    struct_of,
)
from cowengine.format.trees import HOLE, Pointer

_RECORD = struct_of(LINEAGE_RECORD, LINEAGE_BYTES)
_GAPS = gaps_of(LINEAGE_RECORD, LINEAGE_BYTES)
_UNUSED = bytes(LINEAGE_BYTES)
_FLAGS = LINEAGE_DELETED | LINEAGE_ANCHOR | LINEAGE_AUTOMATIC | LINEAGE_HELD | LINEAGE_EMPTY | LINEAGE_SEALED


@dataclass(slots=True)
class LineageRecord:
    """A head or a snapshot; the fields are those of the document."""

    kind: int
    id: int
    name: str
    epoch: int
    size: int
    flags: int = 0
    parent: int = NONE_ID
    frozen: int = 0
    created_ns: int = 0
    tag: int = 0
    root: Pointer = HOLE
    cursor: int = NO_CURSOR
    set_id: bytes = NO_UUID
    retain_until_ns: int = 0
    metadata_bytes: int = 0
    metadata_slot: int = 0
    metadata_checksum: int = 0
    number: int = 0
    next_head: int = 0
    origin: int = 0
    hold_reason: str = ""


def encode_lineage(record: LineageRecord | None) -> bytes:
    """The 512 bytes of a record; None is an unused one."""
    if record is None:
        return _UNUSED
    r = record
    name = r.name.encode()
    assert 1 <= len(name) <= NAME_BYTES_MAX, "the engine checks names before they come here"
    return _RECORD.pack(
        r.kind, r.flags, len(name), r.metadata_bytes, r.id, r.parent, r.epoch, r.frozen, r.size, r.created_ns, r.tag,
        r.root.encode(), r.cursor, r.set_id, r.retain_until_ns, r.metadata_slot, r.metadata_checksum,
        r.number, r.next_head, r.origin, name, r.hold_reason.encode(),
    )  # fmt: skip


def decode_lineage(data: bytes) -> LineageRecord | None:
    """The record in these 512 bytes; None for an unused one. Raises CorruptionError if they are not a record."""
    if len(data) != LINEAGE_BYTES:
        raise CorruptionError(f"lineage record: {len(data)} bytes instead of {LINEAGE_BYTES}")
    if data[0] == LINEAGE_UNUSED:
        if data != _UNUSED:
            raise CorruptionError("lineage record: unused, and not zero")
        return None
    check_gaps(data, _GAPS, "lineage record")
    (
        kind, flags, name_bytes, metadata_bytes, id_, parent, epoch, frozen, size, created_ns, tag,
        root, cursor, set_id, retain_until_ns, metadata_slot, metadata_checksum,
        number, next_head, origin, name, hold_reason,
    ) = _RECORD.unpack(data)  # fmt: skip
    record = LineageRecord(
        kind, id_, decode_name(name, name_bytes), epoch, size, flags, parent, frozen, created_ns, tag,
        Pointer.decode(root), cursor, set_id, retain_until_ns, metadata_bytes, metadata_slot, metadata_checksum,
        number, next_head, origin, decode_reason(hold_reason),
    )  # fmt: skip
    problem = _problem(record)
    if problem:
        raise CorruptionError(f"lineage record {id_}: {problem}")
    return record


def decode_name(padded: bytes, count: int) -> str:
    """The name in the first `count` bytes of `padded`; the rest must be zero. Raises CorruptionError."""
    if not 1 <= count <= NAME_BYTES_MAX or count > len(padded):
        raise CorruptionError(f"a name of {count} bytes instead of 1 to {NAME_BYTES_MAX}")
    name = padded[:count]
    if any(padded[count:]):
        raise CorruptionError("a name is not padded with zeros")
    if b"\0" in name or b"/" in name:
        raise CorruptionError("a name holds NUL or a slash")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise CorruptionError("a name is not UTF-8") from None


def decode_reason(padded: bytes) -> str:
    """The reason of a hold, padded with zeros; empty: there is none. Raises CorruptionError."""
    reason = padded.rstrip(b"\0")
    if b"\0" in reason:
        raise CorruptionError("the reason of a hold is not padded with zeros")
    try:
        return reason.decode()
    except UnicodeDecodeError:
        raise CorruptionError("the reason of a hold is not UTF-8") from None


def size_is_legal(size: int) -> bool:
    """Whether a volume can have this size (bytes)."""
    return SIZE_MIN <= size <= SIZE_MAX and size % 512 == 0


def _problem(r: LineageRecord) -> str | None:
    if r.kind not in (LINEAGE_HEAD, LINEAGE_SNAPSHOT):
        return f"unknown kind {r.kind}"
    if r.flags & ~_FLAGS:
        return f"unknown flags {r.flags:#x}"
    if r.flags & LINEAGE_EMPTY and (not r.flags & LINEAGE_ANCHOR or r.root.kind != POINTER_HOLE or r.root.birth):
        return "empty, and no anchor without a map"
    if r.flags & LINEAGE_SEALED and r.kind == LINEAGE_HEAD:
        return "a head that is sealed"
    if r.id > ID_MAX or (r.parent > ID_MAX and r.parent != NONE_ID):
        return "an id out of bounds"
    if not 1 <= r.epoch <= EPOCH_MAX:
        return f"epoch {r.epoch}"
    if r.frozen >= r.epoch or (r.kind == LINEAGE_SNAPSHOT and r.frozen):
        return f"frozen epoch {r.frozen} of one in epoch {r.epoch}"
    if bool(r.flags & LINEAGE_HELD) != bool(r.hold_reason):
        return "held without a reason, or a reason without a hold"
    if r.retain_until_ns >= COUNTER_MAX:
        return f"retain_until_ns {r.retain_until_ns}"
    if not size_is_legal(r.size):
        return f"size {r.size}"
    if r.number >= HEADS_MAX or r.next_head > ID_MAX or r.origin > ID_MAX:
        return f"number {r.number}, next head {r.next_head}, origin {r.origin}"
    if (r.kind == LINEAGE_HEAD and (r.id == 0) != (r.number == 0)) or (
        r.kind == LINEAGE_SNAPSHOT and (r.number or r.next_head or r.origin)
    ):
        return f"number {r.number} of a {'head' if r.kind == LINEAGE_HEAD else 'snapshot'}"
    if r.metadata_bytes > METADATA_BYTES_MAX:
        return f"{r.metadata_bytes} bytes of metadata"
    if r.metadata_bytes and not 2 <= r.metadata_slot <= SLOT_MASK:
        return f"metadata in slot {r.metadata_slot}"
    if not r.metadata_bytes and (r.metadata_slot or r.metadata_checksum):
        return "a place for metadata that it does not have"
    return None


_NAME = next(field for field in LINEAGE_RECORD if field.name == "name")
_ESSENTIALS = struct.Struct(f"<BBHIQQQ{_NAME.offset - 32}x{_NAME.bytes}s{LINEAGE_BYTES - _NAME.offset - _NAME.bytes}x")


def iter_essentials(page: bytes) -> Iterator[tuple[int, int, int, int, str]]:
    """(kind, flags, parent, epoch, name) of each record of a leaf, unvalidated: for indexing many. Kind 0: none."""
    try:
        for kind, flags, name_bytes, _, _, parent, epoch, name in _ESSENTIALS.iter_unpack(page):
            yield kind, flags, parent, epoch, name[:name_bytes].decode()
    except UnicodeDecodeError:
        raise CorruptionError("a name in the lineage table is not UTF-8") from None
