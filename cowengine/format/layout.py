"""The byte tables of docs/format.md as data, and the numbers that go with them.

Each table is a tuple of `Field`; the `struct.Struct` that packs it and the gaps that must read as zero follow from it,
so a table is written down once. `tests/format/test_document.py` compares every row with the document.

Does no I/O and knows no objects: the other modules of this package make objects of the bytes.

Threads   constants only.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cowengine.errors import CorruptionError

SLOT_BYTES: Final = 4096
SLOT_SHIFT: Final = 12
LEAF_ENTRIES: Final = 256
FANOUT: Final = 128
FANOUT_SHIFT: Final = 7
RECORDS_PER_LEAF: Final = 8
BITS_PER_LEAF: Final = 32768
SEALS_PER_LEAF: Final = 1024
LEVEL_MAX: Final = 6

FORMAT_VERSION: Final = 1
MAGIC: Final = b"COWENG\r\n"
RECORD_MAGIC: Final = b"CWRC"
NONE_ID: Final = 2**64 - 1
NO_CURSOR: Final = 2**64 - 1
NO_UUID: Final = bytes(16)
EPOCH_SKIP: Final = 1024
COUNTER_MAX: Final = 2**63
"""What is counted up once for each commit or checkpoint stays below this."""

FEATURE_SEALS: Final = 1
FEATURE_HEADS: Final = 2
FEATURES_INCOMPATIBLE: Final = FEATURE_SEALS | FEATURE_HEADS
FEATURES_READ_ONLY_COMPATIBLE: Final = 0

MASK64: Final = 2**64 - 1
SLOT_BITS: Final = 48
SLOT_MASK: Final = 2**48 - 1
SLOTS_MAX: Final = 2**48
EPOCH_MAX: Final = 2**48 - 1
SIZE_MIN: Final = 512
SIZE_MAX: Final = 2**48 - 4096
BLOCK_SHIFT_MIN: Final = 12
BLOCK_SHIFT_MAX: Final = 20
LOG_SHIFTS: Final = (9, 12)
LOG_BYTES_MIN: Final = 16 * 1024
LOG_BYTES_MAX: Final = 64 * 1024 * 1024
REGIONS_MAX: Final = 8
NAME_BYTES_MAX: Final = 255
HEADS_MAX: Final = 256
HOLD_REASON_BYTES: Final = 64
METADATA_BYTES_MAX: Final = 4096
ID_MAX: Final = RECORDS_PER_LEAF * FANOUT**LEVEL_MAX - 1
# Byte offsets of locks (docs/format.md section 10); no data lies there.
LOCK_FIRST: Final = 1 << 62
LOCK_COMMITS: Final = LOCK_FIRST + (1 << 61)

TREE_MAP: Final = 1
TREE_LINEAGE: Final = 2
TREE_FREE_MAP: Final = 3
TREE_SEALS: Final = 4
TREE_NAMES: Final = 5

POINTER_HOLE: Final = 0
POINTER_RUN: Final = 1
POINTER_NODE: Final = 2

ENTRY_HOLE: Final = 0
ENTRY_MAPPED: Final = 1

LINEAGE_UNUSED: Final = 0
LINEAGE_HEAD: Final = 1
LINEAGE_SNAPSHOT: Final = 2
LINEAGE_DELETED: Final = 1
LINEAGE_ANCHOR: Final = 2
LINEAGE_AUTOMATIC: Final = 4
LINEAGE_HELD: Final = 8
LINEAGE_EMPTY: Final = 16
LINEAGE_SEALED: Final = 32

EVENT_SNAPSHOT: Final = 1
EVENT_DELETE: Final = 2
EVENT_RECLAIM: Final = 3
EVENT_RECLAIMED: Final = 4
EVENT_ROLLBACK: Final = 5
EVENT_STORE: Final = 6
EVENT_RESIZE: Final = 7
EVENT_CLONE: Final = 8
EVENT_ANCHOR: Final = 9
EVENT_HOLD: Final = 10
EVENT_POLICY: Final = 11
EVENT_GIVE_UP: Final = 12
EVENT_DELETE_HEAD: Final = 13
EVENT_REGION: Final = 14
EVENT_RETAIN: Final = 15
EVENT_BEFORE: Final = 1
EVENT_HEAD_SHIFT: Final = 8

RECORD_ONE_BARRIER: Final = 1

WHEN_FULL_FAIL: Final = 0
WHEN_FULL_GIVE_UP: Final = 1


class Field(NamedTuple):
    """One row of a byte table."""

    name: str
    offset: int
    bytes: int


def struct_of(table: tuple[Field, ...], size: int) -> struct.Struct:
    """The little-endian struct of `size` bytes that holds the fields of `table`; gaps are written as zero."""
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    parts = ["<"]
    position = 0
    for field in table:
        if field.offset > position:
            parts.append(f"{field.offset - position}x")
        raw = field.name == "magic" or field.bytes not in codes
        parts.append(f"{field.bytes}s" if raw else codes[field.bytes])
        position = field.offset + field.bytes
    if size > position:
        parts.append(f"{size - position}x")
    return struct.Struct("".join(parts))


def gaps_of(table: tuple[Field, ...], size: int) -> tuple[tuple[int, int], ...]:
    """The reserved spans (begin, end) of a table."""
    gaps = []
    position = 0
    for field in (*table, Field("end", size, 0)):
        if field.offset > position:
            gaps.append((position, field.offset))
        position = field.offset + field.bytes
    return tuple(gaps)


def check_gaps(data: bytes, gaps: tuple[tuple[int, int], ...], what: str) -> None:
    """Raise CorruptionError unless every reserved span of `data` is zero."""
    for begin, end in gaps:
        if data.count(0, begin, end) != end - begin:
            raise CorruptionError(f"{what}: reserved bytes {begin} to {end - 1} are not zero")


SUPERBLOCK: Final = (
    Field("magic", 0, 8),
    Field("format_version", 8, 4),
    Field("block_shift", 12, 1),
    Field("log_shift", 13, 1),
    Field("clean", 14, 1),
    Field("needs_store", 15, 1),
    Field("features_incompatible", 16, 8),
    Field("features_read_only_compatible", 24, 8),
    Field("features_compatible", 32, 8),
    Field("volume_uuid", 40, 16),
    Field("store_uuid", 56, 16),
    Field("generation", 72, 8),
    Field("salt", 80, 8),
    Field("created_ns", 88, 8),
    Field("log_first", 96, 8),
    Field("log_slots", 104, 8),
    Field("base_sequence", 112, 8),
    Field("base_checksum", 120, 8),
    Field("base_offset", 128, 8),
    Field("tip_sequence", 136, 8),
    Field("tip_checksum", 144, 8),
    Field("epoch", 152, 8),
    Field("next_id", 160, 8),
    Field("store_sequence", 168, 8),
    Field("region_count", 176, 8),
    Field("regions", 184, 192),
    Field("lineage_root", 376, 32),
    Field("free_map_root", 408, 32),
    Field("seal_root", 440, 32),
    Field("name_root", 472, 32),
    Field("name_buckets", 504, 8),
    Field("name_entries", 512, 8),
    Field("linear", 520, 8),
    Field("clock_ns", 528, 8),
    Field("clock_boot_ns", 536, 8),
    Field("clock_boot_id", 544, 16),
    Field("sealed_below", 976, 8),
    Field("when_full", 984, 8),
    Field("keep_newest", 992, 8),
    Field("snapshot_bytes_max", 1000, 8),
    Field("given_up_count", 1008, 8),
    Field("given_up_bytes", 1016, 8),
    Field("given_up", 1024, 3064),
    Field("checksum", 4088, 8),
)
LOSSES_BYTES: Final = 3064
SUPERBLOCK_CHECKSUM_OFFSET: Final = 4088

POINTER_BYTES: Final = 32
POINTER: Final = (
    Field("target", 0, 8),
    Field("birth", 8, 8),
    Field("checksum", 16, 8),
)

ENTRY_BYTES: Final = 16
MAP_ENTRY: Final = (
    Field("target", 0, 8),
    Field("birth", 8, 8),
)

NAME_ENTRY_BYTES: Final = 16
NAME_ENTRY: Final = (
    Field("hash", 0, 8),
    Field("place", 8, 8),
)
NAME_ENTRIES_PER_LEAF: Final = 256
NAME_BUCKETS_MAX: Final = 127 << 14
NAMED_IDS_MAX: Final = 1 << 32
IDS_PER_COUNT: Final = 64
COUNTS_PER_LEAF: Final = 4096

LINEAGE_BYTES: Final = 512
LINEAGE_RECORD: Final = (
    Field("kind", 0, 1),
    Field("flags", 1, 1),
    Field("name_bytes", 2, 2),
    Field("metadata_bytes", 4, 4),
    Field("id", 8, 8),
    Field("parent", 16, 8),
    Field("epoch", 24, 8),
    Field("frozen", 32, 8),
    Field("size", 40, 8),
    Field("created_ns", 48, 8),
    Field("tag", 56, 8),
    Field("root", 64, 32),
    Field("cursor", 96, 8),
    Field("set_id", 104, 16),
    Field("retain_until_ns", 120, 8),
    Field("metadata_slot", 128, 8),
    Field("metadata_checksum", 136, 8),
    Field("number", 144, 8),
    Field("next_head", 152, 8),
    Field("origin", 160, 8),
    Field("name", 192, 255),
    Field("hold_reason", 448, 64),
)

RECORD_HEADER_BYTES: Final = 128
RECORD_HEADER: Final = (
    Field("magic", 0, 4),
    Field("record_bytes", 4, 4),
    Field("salt", 8, 8),
    Field("sequence", 16, 8),
    Field("generation", 24, 8),
    Field("previous", 32, 8),
    Field("epoch", 40, 8),
    Field("time_ns", 48, 8),
    Field("flags", 56, 4),
    Field("delta_count", 60, 4),
    Field("freed_count", 64, 4),
    Field("freed_node_count", 68, 4),
    Field("check_count", 72, 4),
    Field("event_bytes", 76, 4),
    Field("size", 80, 8),
    Field("checksum", 120, 8),
)
RECORD_CHECKSUM_OFFSET: Final = 120

DELTA_BYTES: Final = 32
DELTA: Final = (
    Field("block", 0, 8),
    Field("count", 8, 8),
    Field("target", 16, 8),
    Field("birth", 24, 8),
)

PAIR_BYTES: Final = 16
"""Freed runs, freed nodes (slot, count) and checks (slot, checksum)."""

EVENT_HEADER_BYTES: Final = 8
EVENT_HEADER: Final = (
    Field("type", 0, 2),
    Field("flags", 2, 2),
    Field("bytes", 4, 4),
)
EVENT_PAYLOADS: Final = {
    EVENT_SNAPSHOT: (
        Field("id", 0, 8),
        Field("epoch", 8, 8),
        Field("tag", 16, 8),
        Field("created_ns", 24, 8),
        Field("set_id", 32, 16),
        Field("name_bytes", 48, 2),
        Field("lineage_flags", 50, 2),
        Field("metadata_bytes", 52, 4),
    ),
    EVENT_DELETE: (Field("id", 0, 8),),
    EVENT_RECLAIM: (Field("id", 0, 8), Field("cursor", 8, 8)),
    EVENT_RECLAIMED: (Field("id", 0, 8),),
    EVENT_ROLLBACK: (Field("head", 0, 8), Field("to", 8, 8), Field("epoch", 16, 8), Field("size", 24, 8)),
    EVENT_STORE: (Field("store_sequence", 0, 8),),
    EVENT_RESIZE: (Field("head", 0, 8), Field("size", 8, 8), Field("epoch", 16, 8)),
    EVENT_CLONE: (
        Field("number", 0, 8),
        Field("id", 8, 8),
        Field("snapshot", 16, 8),
        Field("epoch", 24, 8),
        Field("created_ns", 32, 8),
        Field("name_bytes", 40, 8),
    ),
    EVENT_ANCHOR: (Field("id", 0, 8),),
    EVENT_REGION: (Field("first_block", 0, 8), Field("slot", 8, 8), Field("block_count", 16, 8)),
    EVENT_HOLD: (Field("id", 0, 8), Field("reason", 8, 64)),
    EVENT_POLICY: (Field("when_full", 0, 8), Field("keep_newest", 8, 8), Field("snapshot_bytes_max", 16, 8)),
    EVENT_GIVE_UP: (Field("id", 0, 8), Field("given_up_ns", 8, 8)),
    EVENT_DELETE_HEAD: (Field("number", 0, 8), Field("epoch", 8, 8)),
    EVENT_RETAIN: (
        Field("id", 0, 8),
        Field("retain_until_ns", 8, 8),
        Field("clock_ns", 16, 8),
        Field("clock_boot_ns", 24, 8),
        Field("clock_boot_id", 32, 16),
    ),
}
SNAPSHOT_FIXED_BYTES: Final = 56
CLONE_FIXED_BYTES: Final = 48

INTENT_MAGIC: Final = b"COWADOPT"
INTENT_BYTES: Final = 48
INTENT: Final = (
    Field("magic", 0, 8),
    Field("format_version", 8, 4),
    Field("head_bytes", 12, 4),
    Field("size", 16, 8),
    Field("volume_uuid", 24, 16),
    Field("checksum", 40, 8),
)
