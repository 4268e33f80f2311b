"""Every bound of the format at both of its sides: the last value that may be is read back, the next one is refused.

test_codec.py has values that are far out; an off-by-one in a decoder shows only here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import cowengine.format as f
from cowengine.errors import CorruptionError
from cowengine.format import layout
from cowengine.format.intent import HEAD_BYTES_MAX, INTENT_BYTES, Intent, encode_intent, intent_bytes

FOLD = 0xFEDC_BA98_7654_3210
NODE = f.Pointer(f.POINTER_NODE, 90, 0, 0, 5)

# -- pointers ----------------------------------------------------------------------------------------------------------
POINTERS = {
    "node": NODE,
    "hole": f.hole(),
    "run": f.Pointer(f.POINTER_RUN, 2, 0, 1, 0),
    "the first slot": NODE._replace(slot=2),
    "the last slot": NODE._replace(slot=layout.SLOT_MASK),
    "the tallest tree": NODE._replace(level=layout.LEVEL_MAX),
    "the last epoch": NODE._replace(birth=f.EPOCH_MAX),
    "a discarded hole": f.hole(layout.LEVEL_MAX, f.EPOCH_MAX),
}
NO_POINTERS = {
    "unknown kind": NODE._replace(kind=3),
    "above": NODE._replace(level=layout.LEVEL_MAX + 1),
    "beyond 48 bits": NODE._replace(birth=f.EPOCH_MAX + 1),
    "a hole with slot 1": f.Pointer(f.POINTER_HOLE, 1, 0, 0, 0),
    "a checksum without a child": f.Pointer(f.POINTER_HOLE, 0, 0, 0, 1),
    "checksum without": f.Pointer(f.POINTER_RUN, 2, 0, 1, 1),
    "superblock slot 1": NODE._replace(slot=1),
    "superblock slot": f.Pointer(f.POINTER_RUN, 1, 0, 1, 0),
    "a run without a birth": f.Pointer(f.POINTER_RUN, 2, 0, 0, 0),
}


@pytest.mark.parametrize("what", POINTERS)
def test_a_pointer_at_a_bound_is_read(what: str) -> None:
    assert f.Pointer.decode(POINTERS[what].encode()) == POINTERS[what]


@pytest.mark.parametrize("why", NO_POINTERS)
def test_a_pointer_beyond_a_bound_is_corrupt(why: str) -> None:
    with pytest.raises(CorruptionError, match=why):
        f.Pointer.decode(NO_POINTERS[why].encode())


# -- records of the lineage --------------------------------------------------------------------------------------------
HEAD = f.LineageRecord(f.LINEAGE_HEAD, 7, "clone", 12, 4096, parent=3, root=f.hole(), number=1)
SNAPSHOT = f.LineageRecord(f.LINEAGE_SNAPSHOT, 7, "daily", 12, 4096, parent=3, root=f.hole())
BLOB = replace(SNAPSHOT, metadata_bytes=3, metadata_slot=91, metadata_checksum=92)

MEMBERS = [
    HEAD,
    SNAPSHOT,
    replace(HEAD, id=0, number=0),
    replace(SNAPSHOT, id=f.ID_MAX),
    replace(SNAPSHOT, parent=f.ID_MAX),
    replace(SNAPSHOT, parent=f.NONE_ID),
    replace(SNAPSHOT, epoch=1),
    replace(SNAPSHOT, epoch=f.EPOCH_MAX),
    replace(HEAD, frozen=11),
    replace(HEAD, number=f.HEADS_MAX - 1, next_head=f.ID_MAX, origin=f.ID_MAX),
    replace(SNAPSHOT, retain_until_ns=f.COUNTER_MAX - 1),
    replace(SNAPSHOT, size=layout.SIZE_MIN),
    replace(SNAPSHOT, size=layout.SIZE_MAX),
    replace(SNAPSHOT, name="n" * layout.NAME_BYTES_MAX),
    replace(SNAPSHOT, flags=f.LINEAGE_HELD, hold_reason="r" * layout.HOLD_REASON_BYTES),
    replace(SNAPSHOT, flags=f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, root=f.hole(1)),
    replace(BLOB, metadata_bytes=layout.METADATA_BYTES_MAX),
    replace(BLOB, metadata_slot=2),
    replace(BLOB, metadata_slot=layout.SLOT_MASK),
]
NO_MEMBERS = [
    ("out of bounds", replace(SNAPSHOT, id=f.ID_MAX + 1)),
    ("out of bounds", replace(SNAPSHOT, parent=f.ID_MAX + 1)),
    ("epoch 0", replace(SNAPSHOT, epoch=0)),
    ("epoch", replace(SNAPSHOT, epoch=f.EPOCH_MAX + 1)),
    ("frozen epoch 12", replace(HEAD, frozen=12)),
    ("frozen epoch 1", replace(SNAPSHOT, frozen=1)),
    ("number 256", replace(HEAD, number=f.HEADS_MAX)),
    ("next head", replace(HEAD, next_head=f.ID_MAX + 1)),
    ("origin", replace(HEAD, origin=f.ID_MAX + 1)),
    ("number 0 of a head", replace(HEAD, number=0)),
    ("number 1 of a head", replace(HEAD, id=0)),
    ("number 1 of a snapshot", replace(SNAPSHOT, number=1)),
    ("of a snapshot", replace(SNAPSHOT, next_head=1)),
    ("of a snapshot", replace(SNAPSHOT, origin=1)),
    ("retain_until_ns", replace(SNAPSHOT, retain_until_ns=f.COUNTER_MAX)),
    ("size 0", replace(SNAPSHOT, size=0)),
    ("size", replace(SNAPSHOT, size=layout.SIZE_MAX + 512)),
    ("size 513", replace(SNAPSHOT, size=513)),
    ("empty", replace(SNAPSHOT, flags=f.LINEAGE_EMPTY)),
    ("empty", replace(SNAPSHOT, flags=f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, root=NODE)),
    ("empty", replace(SNAPSHOT, flags=f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, root=f.hole(1, 1))),
    ("a head that is sealed", replace(HEAD, flags=f.LINEAGE_SEALED)),
    ("bytes of metadata", replace(BLOB, metadata_bytes=layout.METADATA_BYTES_MAX + 1)),
    ("metadata in slot 1", replace(BLOB, metadata_slot=1)),
    ("metadata in slot", replace(BLOB, metadata_slot=layout.SLOT_MASK + 1)),
    ("does not have", replace(SNAPSHOT, metadata_slot=2)),
    ("does not have", replace(SNAPSHOT, metadata_checksum=2)),
]


@pytest.mark.parametrize("record", MEMBERS)
def test_a_lineage_record_at_a_bound_is_read(record: f.LineageRecord) -> None:
    assert f.decode_lineage(f.encode_lineage(record)) == record


@pytest.mark.parametrize(("why", "record"), NO_MEMBERS)
def test_a_lineage_record_beyond_a_bound_is_corrupt(why: str, record: f.LineageRecord) -> None:
    with pytest.raises(CorruptionError, match=why):
        f.decode_lineage(f.encode_lineage(record))


# -- records of the log ------------------------------------------------------------------------------------------------
def record(**changes: Any) -> f.Record:
    fields: dict[str, Any] = {
        "salt": 1, "sequence": 9, "generation": 3, "previous": 4, "epoch": 5, "time_ns": 6, "size": 4096,
        "one_barrier": False, "deltas": b"", "freed": [], "freed_nodes": [], "checks": [], "events": [],
    }  # fmt: skip
    return f.Record(**{**fields, **changes})


def mapped(block: int = 3, count: int = 2, slot: int = 900, birth: int = 5) -> bytes:
    return f.encode_delta(block, count, f.ENTRY_MAPPED, slot, birth)


def taken(epoch: int, *, before: bool = False, head: int = 0) -> f.SnapshotEvent:
    return f.SnapshotEvent(1, epoch, 99, 1, "a", before=before, head=head)


ALL_SLOTS = layout.SLOTS_MAX
OF_HEAD_1 = 1 << 48
RECORDS = [
    record(epoch=1),
    record(epoch=f.EPOCH_MAX),
    record(one_barrier=True),
    record(deltas=mapped(birth=1) + mapped(birth=5)),
    record(deltas=mapped(slot=2)),
    record(deltas=mapped(block=ALL_SLOTS - 2)),
    record(deltas=mapped(slot=ALL_SLOTS - 2)),
    record(deltas=mapped(birth=255 << 48 | 5)),
    record(deltas=f.encode_delta(ALL_SLOTS - 1, 1, f.ENTRY_HOLE, 0, 5)),
    record(freed=[(2, 1), (ALL_SLOTS - 1, 1)], freed_nodes=[(2, ALL_SLOTS - 2)]),
    record(checks=[(2, 0), (ALL_SLOTS - 1, 2**64 - 1)]),
    record(events=[taken(4)], deltas=mapped(birth=4)),
    record(events=[taken(4)], deltas=mapped(birth=OF_HEAD_1 | 5)),
    record(events=[taken(4, head=1)], deltas=mapped(birth=5)),
    record(events=[taken(4, before=True)], deltas=mapped(birth=5)),
    record(events=[f.DeleteHeadEvent(1, 5)]),
]
NO_RECORDS = [
    ("epoch 0", record(epoch=0)),
    ("impossible delta", record(deltas=mapped(birth=0))),
    ("impossible delta", record(deltas=mapped(birth=6))),
    ("impossible delta", record(deltas=mapped(slot=1))),
    ("impossible delta", record(deltas=mapped(count=0))),
    ("impossible delta", record(deltas=mapped(block=ALL_SLOTS - 1))),
    ("impossible delta", record(deltas=mapped(slot=ALL_SLOTS - 1))),
    ("impossible delta", record(deltas=mapped(birth=256 << 48 | 5))),
    ("impossible delta", record(deltas=f.encode_delta(0, 1, f.ENTRY_HOLE, 0, 6))),
    ("freed run of 1 slots at 1", record(freed=[(1, 1)])),
    ("freed run of 0 slots", record(freed=[(2, 0)])),
    ("freed run", record(freed_nodes=[(2, ALL_SLOTS - 1)])),
    ("check of slot 1", record(checks=[(1, 0)])),
    ("another epoch", record(events=[taken(5)])),
    ("another epoch", record(events=[f.DeleteHeadEvent(1, 6)])),
    ("impossible delta", record(events=[taken(4)], deltas=mapped(birth=5))),
    ("impossible delta", record(events=[taken(3), taken(4)], deltas=mapped(birth=4))),
    ("impossible delta", record(events=[taken(4), taken(3)], deltas=mapped(birth=4))),
    ("impossible delta", record(events=[taken(4, head=1)], deltas=mapped(birth=OF_HEAD_1 | 5))),
]


@pytest.mark.parametrize("one", RECORDS)
def test_a_record_at_a_bound_is_read(one: f.Record) -> None:
    data = f.encode_record(one, FOLD)
    found = f.decode_record(data, 0, len(data), FOLD, one.sequence)
    assert found is not None and found[0] == one


@pytest.mark.parametrize(("why", "one"), NO_RECORDS)
def test_a_record_beyond_a_bound_is_corrupt(why: str, one: f.Record) -> None:
    data = f.encode_record(one, FOLD)
    with pytest.raises(CorruptionError, match=why):
        f.decode_record(data, 0, len(data), FOLD, one.sequence)


def test_a_header_is_read_only_from_within_the_log() -> None:
    data = f.encode_record(record(), FOLD)
    assert f.peek_header(data, 0, len(data)) is not None
    assert f.peek_header(data, 0, len(data) + 1) is None
    assert f.peek_header(data, 0, len(data) - 1) is None
    assert f.peek_header(data, -1, len(data)) is None
    assert f.peek_header(bytes(8) + data, 8, len(data) + 8) is not None
    assert f.peek_header(data + bytes(8), -len(data) - 8, len(data)) is None


# -- events ------------------------------------------------------------------------------------------------------------
EVENTS = [
    f.SnapshotEvent(f.ID_MAX, f.EPOCH_MAX, 3, 4, "a" * layout.NAME_BYTES_MAX, flags=f.LINEAGE_AUTOMATIC),
    f.SnapshotEvent(1, 1, 3, 4, "a", metadata=bytes(layout.METADATA_BYTES_MAX), head=255),
    f.DeleteEvent(f.ID_MAX),
    f.ReclaimEvent(f.ID_MAX, 2**64 - 1),
    f.ReclaimedEvent(f.ID_MAX),
    f.RollbackEvent(255, f.ID_MAX, f.EPOCH_MAX, layout.SIZE_MAX),
    f.RollbackEvent(0, 1, 1, layout.SIZE_MIN),
    f.ResizeEvent(255, layout.SIZE_MAX, f.EPOCH_MAX),
    f.ResizeEvent(0, layout.SIZE_MIN, 1),
    f.AnchorEvent(f.ID_MAX),
    f.HoldEvent(f.ID_MAX, "r" * layout.HOLD_REASON_BYTES),
    f.RetainEvent(f.ID_MAX, f.COUNTER_MAX - 1, f.COUNTER_MAX - 1, f.COUNTER_MAX - 1, b"b" * 16),
    f.PolicyEvent(f.WHEN_FULL_GIVE_UP, 2**32 - 1, 2**64 - 1),
    f.GiveUpEvent(f.ID_MAX, 2**64 - 1),
    f.CloneEvent(255, f.ID_MAX, f.ID_MAX, f.EPOCH_MAX, 5, "a" * layout.NAME_BYTES_MAX),
    f.DeleteHeadEvent(255, f.EPOCH_MAX),
    f.RegionEvent(2**64 - 1, 2**64 - 1, 2**64 - 1),
    f.StoreEvent(2**64 - 1),
]
NO_EVENTS = [
    f.SnapshotEvent(f.ID_MAX + 1, 1, 3, 4, "a"),
    f.SnapshotEvent(1, 0, 3, 4, "a"),
    f.SnapshotEvent(1, f.EPOCH_MAX + 1, 3, 4, "a"),
    f.DeleteEvent(f.ID_MAX + 1),
    f.ReclaimEvent(f.ID_MAX + 1, 0),
    f.ReclaimedEvent(f.ID_MAX + 1),
    f.RollbackEvent(256, 1, 1, 512),
    f.RollbackEvent(0, f.ID_MAX + 1, 1, 512),
    f.RollbackEvent(0, 1, 0, 512),
    f.RollbackEvent(0, 1, 1, layout.SIZE_MAX + 512),
    f.ResizeEvent(256, 512, 1),
    f.ResizeEvent(0, 0, 1),
    f.ResizeEvent(0, 512, 0),
    f.AnchorEvent(f.ID_MAX + 1),
    f.HoldEvent(f.ID_MAX + 1, ""),
    f.RetainEvent(f.ID_MAX + 1, 1, 1, 1, bytes(16)),
    f.GiveUpEvent(f.ID_MAX + 1, 1),
    f.CloneEvent(1, f.ID_MAX + 1, 1, 1, 5, "a"),
    f.CloneEvent(1, 1, f.ID_MAX + 1, 1, 5, "a"),
    f.CloneEvent(1, 1, 1, 0, 5, "a"),
    f.DeleteHeadEvent(256, 1),
    f.DeleteHeadEvent(1, 0),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("before", [False, True])
def test_an_event_at_a_bound_is_read(event: Any, before: bool) -> None:
    one = replace(event, before=before)
    assert f.decode_events(f.encode_event(one)) == [one]


@pytest.mark.parametrize("event", NO_EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_beyond_a_bound_is_corrupt(event: Any) -> None:
    with pytest.raises(CorruptionError):
        f.decode_events(f.encode_event(event))


# -- superblocks -------------------------------------------------------------------------------------------------------
SUPERBLOCK = f.Superblock(
    block_shift=12, log_shift=9, volume_uuid=bytes(range(16)), log_first=2, log_slots=4,
    regions=(f.Region(0, 6, 100), f.Region(100, 206, 28)), lineage_root=NODE,
    free_map_root=f.Pointer(f.POINTER_NODE, 501, 1, 0, 78), base_sequence=1, tip_sequence=1, next_id=9,
)  # fmt: skip
NAMED = replace(SUPERBLOCK, name_root=NODE, name_buckets=1, name_entries=1, linear=True)
SEALS = layout.FEATURE_SEALS

SUPERBLOCKS: list[dict[str, Any]] = [
    {"generation": f.COUNTER_MAX - 1},
    {"generation": 1},
    {"tip_sequence": f.COUNTER_MAX - 1},
    {"given_up_count": f.COUNTER_MAX - 1},
    {"clock_ns": f.COUNTER_MAX - 1, "clock_boot_ns": f.COUNTER_MAX - 1},
    {"epoch": f.EPOCH_MAX},
    {"next_id": 1},
    {"next_id": f.ID_MAX + 1},
    {"base_offset": 4 * 4096},
    {"base_offset": 512},
    {"base_sequence": 0, "tip_sequence": 0},
    {"when_full": f.WHEN_FULL_GIVE_UP},
    {"sealed_below": 9},
    {"seal_root": NODE, "features_incompatible": SEALS},
    {"seal_root": f.hole(2), "features_incompatible": SEALS},
    {"free_map_root": f.hole(1)},
    {"log_slots": layout.LOG_BYTES_MAX >> 12, "regions": (f.Region(0, 20000, 1),)},
    {"log_first": layout.SLOTS_MAX - 4},
    {"block_shift": layout.BLOCK_SHIFT_MAX, "regions": (f.Region(0, 6, 1),)},
    {"regions": tuple(f.Region(number, 6 + number, 1) for number in range(layout.REGIONS_MAX))},
    {"regions": (f.Region(0, layout.SLOTS_MAX - 1, 1),)},
    {"regions": (f.Region(layout.SLOTS_MAX - 1, 6, 1),)},
    {"regions": (f.Region(0, 2, 1),), "log_first": 3},
]
NO_SUPERBLOCKS: list[tuple[str, dict[str, Any]]] = [
    ("generation 0", {"generation": 0}),
    ("generation", {"generation": f.COUNTER_MAX}),
    ("tip_sequence", {"tip_sequence": f.COUNTER_MAX}),
    ("given_up_count", {"given_up_count": f.COUNTER_MAX}),
    ("clock_ns", {"clock_ns": f.COUNTER_MAX}),
    ("clock_boot_ns", {"clock_boot_ns": f.COUNTER_MAX}),
    ("epoch 0", {"epoch": 0}),
    ("epoch", {"epoch": f.EPOCH_MAX + 1}),
    ("next_id 0", {"next_id": 0}),
    ("next_id", {"next_id": f.ID_MAX + 2}),
    ("beyond the log", {"base_offset": 4 * 4096 + 512}),
    ("not aligned", {"base_offset": 511}),
    ("above tip_sequence", {"base_sequence": 2}),
    ("a base_checksum", {"base_sequence": 0, "base_checksum": 1}),
    ("a tip_checksum", {"base_sequence": 0, "tip_sequence": 0, "tip_checksum": 1}),
    ("no lineage table", {"lineage_root": f.hole()}),
    ("the free map is a run", {"free_map_root": f.Pointer(f.POINTER_RUN, 20, 1, 1, 0)}),
    ("has a birth", {"lineage_root": NODE._replace(birth=1)}),
    ("has a birth", {"free_map_root": NODE._replace(birth=1)}),
    ("when_full", {"when_full": f.WHEN_FULL_GIVE_UP + 1}),
    ("and more are listed", {"given_up": (f.Loss(1, 1, 2, 3, "a"),), "given_up_count": 0}),
    ("seal_root is not zero", {"seal_root": NODE}),
    ("sealed_below 10", {"sealed_below": 10}),
    ("seal_root is a run", {"seal_root": f.Pointer(f.POINTER_RUN, 20, 1, 1, 0), "features_incompatible": SEALS}),
    ("seal_root is a run or has", {"seal_root": NODE._replace(birth=1), "features_incompatible": SEALS}),
    ("log_slots", {"log_slots": (layout.LOG_BYTES_MAX >> 12) + 1, "regions": (f.Region(0, 20000, 1),)}),
    ("log_slots 3", {"log_slots": 3}),
    ("log_first 1", {"log_first": 1}),
    ("log_first", {"log_first": layout.SLOTS_MAX - 3}),
    ("block_shift 11", {"block_shift": 11}),
    ("block_shift 21", {"block_shift": 21}),
    ("log_shift", {"log_shift": 10}),
    ("region 0 is empty", {"regions": (f.Region(0, 6, 0),)}),
    ("region 1 is not behind", {"regions": (f.Region(0, 6, 100), f.Region(99, 206, 28))}),
    ("region 0 ends at block", {"regions": (f.Region(layout.SLOTS_MAX, 6, 1),)}),
    ("region 0 lies in slots", {"regions": (f.Region(0, layout.SLOTS_MAX, 1),)}),
    ("region 0 lies in slots 1", {"regions": (f.Region(0, 1, 1),), "log_first": 3}),
    ("overlap", {"regions": (f.Region(0, 6, 100), f.Region(100, 105, 28))}),
    ("overlap", {"regions": (f.Region(0, 5, 100),)}),
    ("words about it", {"name_buckets": 1}),
    ("words about it", {"name_entries": 1}),
    ("words about it", {"linear": True}),
]
NO_NAMES: list[tuple[str, dict[str, Any]]] = [
    ("name_root is no node", {"name_root": f.hole(1)}),
    ("has a birth", {"name_root": NODE._replace(birth=1)}),
    ("name_buckets 0", {"name_buckets": 0}),
    ("name_buckets", {"name_buckets": layout.NAME_BUCKETS_MAX + 1}),
    ("and next_id", {"next_id": layout.NAMED_IDS_MAX + 1}),
]


@pytest.mark.parametrize("changes", SUPERBLOCKS)
def test_a_superblock_at_a_bound_is_read(changes: dict[str, Any]) -> None:
    one = replace(SUPERBLOCK, **changes)
    assert f.decode_superblock(f.encode_superblock(one)) == one


@pytest.mark.parametrize("changes", [{}, {"name_buckets": layout.NAME_BUCKETS_MAX}, {"next_id": layout.NAMED_IDS_MAX}])
def test_an_index_of_names_at_a_bound_is_read(changes: dict[str, Any]) -> None:
    one = replace(NAMED, **changes)
    assert f.decode_superblock(f.encode_superblock(one)) == one


@pytest.mark.parametrize(("why", "changes"), NO_SUPERBLOCKS)
def test_a_superblock_beyond_a_bound_is_corrupt(why: str, changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError, match=why):
        f.decode_superblock(f.encode_superblock(replace(SUPERBLOCK, **changes)))


@pytest.mark.parametrize(("why", "changes"), NO_NAMES)
def test_an_index_of_names_beyond_a_bound_is_corrupt(why: str, changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError, match=why):
        f.decode_superblock(f.encode_superblock(replace(NAMED, **changes)))


# -- intents -----------------------------------------------------------------------------------------------------------
def test_an_intent_has_a_head_of_at_most_so_many_bytes() -> None:
    longest = encode_intent(Intent(512, bytes(16), bytes(HEAD_BYTES_MAX)))
    assert intent_bytes(longest) == len(longest) == INTENT_BYTES + HEAD_BYTES_MAX
    assert intent_bytes(encode_intent(Intent(512, bytes(16), bytes(HEAD_BYTES_MAX + 1)))) == 0
    assert intent_bytes(longest[:INTENT_BYTES]) == len(longest)
    assert intent_bytes(longest[: INTENT_BYTES - 1]) == 0
