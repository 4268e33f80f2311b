"""The byte tables of docs/store-format.md as code: encode, decode and validate the store log's header and records.

Does no I/O and keeps no state. Everything that comes from a file is checked in full before anything is built from it;
what is reserved must be zero.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from cowengine.core.checksum import xxh64
from cowengine.errors import CorruptionError, FormatError, UnsupportedVersionError

HEADER_BYTES: Final = 4096
RING_OFFSET: Final = 2 * HEADER_BYTES
RING_BYTES_MIN: Final = 16 * 1024
RING_BYTES_MAX: Final = 64 * 1024 * 1024
RING_BYTES_DEFAULT: Final = 256 * 1024
RECORD_HEADER_BYTES: Final = 96
MEMBER_BYTES: Final = 48
NAME_BYTES_MAX: Final = 255
METADATA_BYTES_MAX: Final = 4096
FORMAT_VERSION: Final = 1
HEADER_MAGIC: Final = b"COWSTO\r\n"
RECORD_MAGIC: Final = b"CWSR"
COUNTER_MAX: Final = 2**63
"""Sequences, generations, times and ids are below this."""
TYPE_SET: Final = 1
TYPE_DELETE: Final = 2

_MASK: Final = (1 << 64) - 1

# name: (offset, bytes), in the order of the document
HEADER_FIELDS: Final[dict[str, tuple[int, int]]] = {
    "magic": (0, 8),
    "format_version": (8, 4),
    "log_shift": (12, 1),
    "clean": (13, 1),
    "features_incompatible": (16, 8),
    "features_read_only_compatible": (24, 8),
    "features_compatible": (32, 8),
    "store_uuid": (40, 16),
    "generation": (56, 8),
    "salt": (64, 8),
    "created_ns": (72, 8),
    "ring_bytes": (80, 8),
    "base_sequence": (88, 8),
    "base_checksum": (96, 8),
    "base_offset": (104, 8),
    "tip_sequence": (112, 8),
    "tip_checksum": (120, 8),
    "checksum": (4088, 8),
}
RECORD_FIELDS: Final[dict[str, tuple[int, int]]] = {
    "magic": (0, 4),
    "record_bytes": (4, 4),
    "salt": (8, 8),
    "sequence": (16, 8),
    "generation": (24, 8),
    "previous": (32, 8),
    "created_ns": (40, 8),
    "type": (48, 2),
    "name_bytes": (50, 2),
    "metadata_bytes": (52, 4),
    "member_count": (56, 4),
    "set_id": (64, 16),
    "checksum": (88, 8),
}
MEMBER_FIELDS: Final[dict[str, tuple[int, int]]] = {
    "volume_uuid": (0, 16),
    "snapshot_id": (16, 8),
    "epoch": (24, 8),
    "sequence": (32, 8),
    "tag": (40, 8),
}


# The same as RECORD_FIELDS without the checksum, and as MEMBER_FIELDS.
_RECORD: Final = struct.Struct("<4sIQQQQQHHII4x16s16x")
_MEMBER: Final = struct.Struct("<16sQQQQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header slot of the store log."""

    log_shift: int
    clean: int
    features_read_only_compatible: int = 0
    features_compatible: int = 0
    store_uuid: bytes
    generation: int
    salt: int
    created_ns: int
    ring_bytes: int
    base_sequence: int
    base_checksum: int
    base_offset: int
    tip_sequence: int
    tip_checksum: int


class RecordMember(NamedTuple):
    """One volume's part in a record."""

    volume_uuid: bytes
    snapshot_id: int
    epoch: int
    sequence: int
    tag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a record says; where it stands in the chain is the log's business."""

    type: int
    set_id: bytes
    created_ns: int
    members: tuple[RecordMember, ...]
    name: str = ""
    metadata: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a record stands: what ties it to the header and to the record before."""

    salt: int
    sequence: int
    generation: int
    previous: int


def shift_for(ring_bytes: int) -> int:
    """The log_shift of a new ring: whole pages where there is room for 64 of them, else sectors."""
    return 12 if ring_bytes >= 64 * 4096 else 9


def record_bytes_max(ring_bytes: int) -> int:
    """The longest record a ring takes."""
    return ring_bytes // 4


def _put(buffer: bytearray, fields: dict[str, tuple[int, int]], name: str, value: int | bytes, at: int = 0) -> None:
    offset, length = fields[name]
    raw = value.to_bytes(length, "little") if isinstance(value, int) else value
    assert len(raw) == length, name
    buffer[at + offset : at + offset + length] = raw


def _integer(raw: bytes | bytearray, fields: dict[str, tuple[int, int]], name: str, at: int = 0) -> int:
    offset, length = fields[name]
    return int.from_bytes(raw[at + offset : at + offset + length], "little")


def _reserved_is_zero(raw: bytes | bytearray, fields: dict[str, tuple[int, int]], length: int) -> bool:
    end = 0
    for offset, width in [*fields.values(), (length, 0)]:
        if any(raw[end:offset]):
            return False
        end = offset + width
    return True


# ---- header ----


def encode_header(header: Header) -> bytes:
    """The 4,096 bytes of a header slot."""
    buffer = bytearray(HEADER_BYTES)
    _put(buffer, HEADER_FIELDS, "magic", HEADER_MAGIC)
    _put(buffer, HEADER_FIELDS, "format_version", FORMAT_VERSION)
    for name in Header.__slots__:
        _put(buffer, HEADER_FIELDS, name, getattr(header, name))
    offset, _ = HEADER_FIELDS["checksum"]
    _put(buffer, HEADER_FIELDS, "checksum", xxh64(bytes(buffer[:offset])))
    return bytes(buffer)


def decode_header(raw: bytes) -> Header | None:
    """The header in a slot, or None if its magic or checksum is wrong (torn, never written, damaged).

    Raises UnsupportedVersionError for a newer format and CorruptionError for a header that cannot be though its
    checksum holds.
    """
    offset, _ = HEADER_FIELDS["checksum"]
    if len(raw) != HEADER_BYTES or raw[:8] != HEADER_MAGIC:
        return None
    if _integer(raw, HEADER_FIELDS, "checksum") != xxh64(raw[:offset]):
        return None
    version = _integer(raw, HEADER_FIELDS, "format_version")
    if version != FORMAT_VERSION or _integer(raw, HEADER_FIELDS, "features_incompatible"):
        raise UnsupportedVersionError(
            f"the store has format {version} or features that this cowengine does not know: upgrade it"
        )
    if not _reserved_is_zero(raw, HEADER_FIELDS, HEADER_BYTES):
        raise CorruptionError("the store log's header has reserved bytes that are not zero")
    values = {name: _integer(raw, HEADER_FIELDS, name) for name in Header.__slots__ if name != "store_uuid"}
    header = Header(store_uuid=bytes(raw[40:56]), **values)
    _validate_header(header)
    return header


def _validate_header(header: Header) -> None:
    ring = header.ring_bytes
    possible = (
        RING_BYTES_MIN <= ring <= RING_BYTES_MAX
        and ring % 4096 == 0
        and header.log_shift in (9, 12)
        and header.clean <= 1
        and header.base_offset <= ring
        and header.base_offset % (1 << header.log_shift) == 0
        and header.base_sequence <= header.tip_sequence < COUNTER_MAX
        and header.generation < COUNTER_MAX
    )
    if not possible:
        raise CorruptionError("the store log's header holds values that cannot be")


# ---- records ----


def record_bytes(member_count: int, name_bytes: int, metadata_bytes: int) -> int:
    """Bytes of a record without its padding."""
    return RECORD_HEADER_BYTES + MEMBER_BYTES * member_count + name_bytes + metadata_bytes


def record_seed(store_uuid: bytes, sequence: int) -> int:
    """The checksum's seed, which binds a record to its store and its place in the chain."""
    return (int.from_bytes(store_uuid[:8], "little") + sequence) & _MASK


def encode_record(record: Record, frame: Frame, store_uuid: bytes) -> tuple[bytes, int]:
    """(bytes without padding, checksum)."""
    name = record.name.encode()
    length = record_bytes(len(record.members), len(name), len(record.metadata))
    head = _RECORD.pack(
        RECORD_MAGIC, length, frame.salt, frame.sequence, frame.generation, frame.previous, record.created_ns,
        record.type, len(name), len(record.metadata), len(record.members), record.set_id,
    )  # fmt: skip
    buffer = bytearray(head)
    buffer += b"".join([_MEMBER.pack(*member) for member in record.members])
    buffer += name + record.metadata
    checksum = xxh64(bytes(buffer), record_seed(store_uuid, frame.sequence))
    _put(buffer, RECORD_FIELDS, "checksum", checksum)
    return bytes(buffer), checksum


def peek_record(ring: bytes, offset: int, length_max: int, store_uuid: bytes) -> tuple[Frame, bytes, int] | None:
    """The whole, undamaged record at a place of the ring as (frame, its bytes, checksum), or None if there is none."""
    head = ring[offset : offset + RECORD_HEADER_BYTES]
    if len(head) < RECORD_HEADER_BYTES or head[:4] != RECORD_MAGIC:
        return None
    length = _integer(head, RECORD_FIELDS, "record_bytes")
    if not RECORD_HEADER_BYTES < length <= length_max or length > len(ring) - offset:
        return None
    raw = bytearray(ring[offset : offset + length])
    checksum = _integer(raw, RECORD_FIELDS, "checksum")
    _put(raw, RECORD_FIELDS, "checksum", 0)
    frame = Frame(**{field: _integer(raw, RECORD_FIELDS, field) for field in Frame.__slots__})
    if xxh64(bytes(raw), record_seed(store_uuid, frame.sequence)) != checksum:
        return None
    return frame, bytes(raw), checksum


def decode_record(raw: bytes) -> Record:
    """What a record says whose checksum holds. Raises UnsupportedVersionError or CorruptionError."""
    kind = _integer(raw, RECORD_FIELDS, "type")
    if kind not in (TYPE_SET, TYPE_DELETE):
        raise UnsupportedVersionError(f"the store log holds a record of type {kind}: upgrade cowengine")
    count = _integer(raw, RECORD_FIELDS, "member_count")
    name_bytes = _integer(raw, RECORD_FIELDS, "name_bytes")
    metadata_bytes = _integer(raw, RECORD_FIELDS, "metadata_bytes")
    created_ns = _integer(raw, RECORD_FIELDS, "created_ns")
    possible = (
        count >= 1
        and created_ns < COUNTER_MAX
        and record_bytes(count, name_bytes, metadata_bytes) == len(raw)
        and metadata_bytes <= METADATA_BYTES_MAX
        and _reserved_is_zero(raw, RECORD_FIELDS, RECORD_HEADER_BYTES)
        and (1 <= name_bytes <= NAME_BYTES_MAX if kind == TYPE_SET else not name_bytes and not metadata_bytes)
    )
    if not possible:
        raise CorruptionError("a record of the store log holds values that cannot be")
    name_at = RECORD_HEADER_BYTES + MEMBER_BYTES * count
    members = tuple(_decode_member(raw, RECORD_HEADER_BYTES + MEMBER_BYTES * index) for index in range(count))
    if len({member.volume_uuid for member in members}) != count:
        raise CorruptionError("a record of the store log names a volume twice")
    try:
        name = raw[name_at : name_at + name_bytes].decode()
    except UnicodeDecodeError:
        raise CorruptionError("a record of the store log holds a name that is not UTF-8") from None
    if "\0" in name or "/" in name:
        raise CorruptionError("a record of the store log holds a name with NUL or a slash")
    return Record(
        type=kind,
        set_id=raw[64:80],
        created_ns=created_ns,
        members=members,
        name=name,
        metadata=raw[name_at + name_bytes :],
    )


def _decode_member(raw: bytes, at: int) -> RecordMember:
    values = {name: _integer(raw, MEMBER_FIELDS, name, at) for name in MEMBER_FIELDS if name != "volume_uuid"}
    if values["snapshot_id"] >= COUNTER_MAX:
        raise CorruptionError("a record of the store log names a snapshot that cannot be")
    return RecordMember(volume_uuid=raw[at : at + 16], **values)


def choose_header(slots: tuple[bytes, bytes], path: str) -> tuple[Header, int]:
    """(the chosen header, its slot). Raises FormatError if neither slot holds one."""
    headers = [decode_header(slot) for slot in slots]
    first, second = headers
    if first is None and second is None:
        raise FormatError(f"{path} is not a store log, or both of its headers are damaged")
    if second is None or (first is not None and first.generation >= second.generation):
        assert first is not None
        return first, 0
    return second, 1
