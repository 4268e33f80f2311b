"""What was encoded comes back; what was damaged is told apart; hostile bytes give typed errors and nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import struct
import sys
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.errors import CorruptionError, CowEngineError, FormatError, UnsupportedVersionError
from cowengine.format.intent import Intent, decode_intent, encode_intent
from cowengine.format.layout import LOSSES_BYTES

_spec = importlib.util.spec_from_file_location("format_strategies", Path(__file__).with_name("strategies.py"))
make = importlib.util.module_from_spec(_spec)
sys.modules["format_strategies"] = make
_spec.loader.exec_module(make)

FOLD = 0xFEDC_BA98_7654_3210


def sample_superblock(**changes) -> f.Superblock:
    fields = {
        "block_shift": 12,
        "log_shift": 9,
        "volume_uuid": bytes(range(16)),
        "log_first": 2,
        "log_slots": 4,
        "regions": (f.Region(0, 6, 100), f.Region(100, 206, 28)),
        "lineage_root": f.Pointer(f.POINTER_NODE, 500, 0, 0, 77),
        "free_map_root": f.Pointer(f.POINTER_NODE, 501, 1, 0, 78),
    }
    return f.Superblock(**{**fields, **changes})


def sample_record(**changes) -> f.Record:
    fields = {
        "salt": 1,
        "sequence": 9,
        "generation": 3,
        "previous": 4,
        "epoch": 5,
        "time_ns": 6,
        "size": 4096 * 100,
        "one_barrier": True,
        "deltas": f.encode_delta(3, 2, f.ENTRY_MAPPED, 900, 5) + f.encode_delta(7, 1, f.ENTRY_HOLE, 0, 4),
        "freed": [(40, 1)],
        "freed_nodes": [(50, 2)],
        "checks": [(900, 77), (901, 78)],
        "events": [f.SnapshotEvent(1, 4, 99, 1, "täglich", metadata=b"why"), f.DeleteEvent(1, before=True)],
    }
    return f.Record(**{**fields, **changes})


def sealed_superblock(data: bytearray) -> bytes:
    """The same bytes with a right checksum: what a hostile author would write."""
    struct.pack_into("<Q", data, 4088, xxh64(bytes(data[:4088]), 0))
    return bytes(data)


def sealed_record(data: bytearray, sequence: int = 9) -> bytes:
    struct.pack_into("<Q", data, 120, 0)
    struct.pack_into("<Q", data, 120, xxh64(bytes(data), f.record_seed(FOLD, sequence)))
    return bytes(data)


# --- round trips ------------------------------------------------------------------------------------------------------


@given(make.superblocks())
def test_a_superblock_comes_back_as_it_was(sb):
    data = f.encode_superblock(sb)
    assert len(data) == f.SLOT_BYTES
    assert f.decode_superblock(data) == sb


@given(make.pointers)
def test_a_pointer_comes_back_as_it_was(pointer):
    assert f.Pointer.decode(pointer.encode()) == pointer


@given(make.lineage_records())
def test_a_lineage_record_comes_back_as_it_was(record):
    data = f.encode_lineage(record)
    assert len(data) == f.LINEAGE_BYTES
    assert f.decode_lineage(data) == record


def test_an_unused_lineage_record_is_none():
    assert f.encode_lineage(None) == bytes(512)
    assert f.decode_lineage(bytes(512)) is None


@given(make.records(), st.integers(0, 3), st.integers(0, 2**64 - 1))
def test_a_record_comes_back_as_it_was(record, lead, fold):
    data = f.encode_record(record, fold)
    offset = 512 * lead
    decoded, checksum, count = f.decode_record(
        bytes(offset) + data + b"x", offset, offset + len(data), fold, record.sequence
    )
    assert decoded == record
    assert checksum == f.record_checksum(data)
    assert count == len(data) == f.record_bytes_for(record)


@given(st.lists(make.events, max_size=6))
def test_events_come_back_as_they_were_and_are_padded_to_eight(events):
    data = b"".join(f.encode_event(event) for event in events)
    assert len(data) % 8 == 0
    assert f.decode_events(data) == events


def test_deltas_come_back_one_by_one():
    assert list(f.iter_deltas(sample_record().deltas)) == [
        (3, 2, f.ENTRY_MAPPED, 900, 5, 0),
        (7, 1, f.ENTRY_HOLE, 0, 4, 0),
    ]


# --- checksums --------------------------------------------------------------------------------------------------------


def test_checksums_are_xxh64_with_the_seeds_of_the_document():
    """An independent implementation of XXH64 must find the same numbers."""
    superblock = f.encode_superblock(sample_superblock())
    assert struct.unpack_from("<Q", superblock, 4088)[0] == xxhash.xxh64_intdigest(superblock[:4088], 0)
    record = bytearray(f.encode_record(sample_record(), FOLD))
    stored = f.record_checksum(record)
    record[120:128] = bytes(8)
    assert stored == xxhash.xxh64_intdigest(bytes(record), (FOLD + 9) % 2**64)
    assert f.fold_of(bytes(range(16))) == 0x0706050403020100
    assert f.node_seed(2**64 - 1, 3, 2, 5) == (2**64 - 1 + 3 * 2**56 + 2 * 2**48 + 5) % 2**64
    assert f.blob_seed(2**64 - 1, 4) == 3
    assert f.check_seed(7, 900) == 907


# --- single bit flips -------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_superblock_is_detected():
    data = bytearray(f.encode_superblock(sample_superblock()))
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((FormatError, CorruptionError)):
            f.decode_superblock(bytes(data))
        data[bit >> 3] ^= 1 << (bit & 7)


def test_every_flipped_bit_of_a_record_is_detected():
    data = bytearray(f.encode_record(sample_record(), FOLD))
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        assert f.decode_record(bytes(data), 0, len(data), FOLD, 9) is None
        data[bit >> 3] ^= 1 << (bit & 7)


def test_a_record_of_another_volume_or_another_sequence_is_none():
    data = f.encode_record(sample_record(), FOLD)
    assert f.decode_record(data, 0, len(data), FOLD + 1, 9) is None
    assert f.decode_record(data, 0, len(data), FOLD, 10) is None
    assert f.decode_record(data, 0, len(data) - 1, FOLD, 9) is None
    assert f.decode_record(data, 8, len(data), FOLD, 9) is None


def test_every_flipped_bit_of_a_lineage_record_changes_it_or_is_refused():
    """A lineage record has no checksum of its own (its node's parent has): no flip may decode to the same record."""
    record = f.LineageRecord(
        f.LINEAGE_SNAPSHOT, 7, "daily", 12, 1 << 20, f.LINEAGE_AUTOMATIC, 6, 0, 1, 2, f.Pointer(2, 90, 0, 11, 5),
        f.NO_CURSOR, bytes(range(16)), 0, 3, 91, 92,
    )  # fmt: skip
    data = bytearray(f.encode_lineage(record))
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        with contextlib.suppress(CorruptionError):
            assert f.decode_lineage(bytes(data)) != record
        data[bit >> 3] ^= 1 << (bit & 7)


# --- what a superblock may not say, even with a right checksum --------------------------------------------------------

BAD_SUPERBLOCK = {
    "block_shift": (12, "B", 11),
    "block_shift too large": (12, "B", 64),
    "log_shift": (13, "B", 10),
    "clean": (14, "B", 2),
    "needs_store": (15, "B", 255),
    "generation": (72, "Q", 0),
    "log_first inside the superblocks": (96, "Q", 1),
    "log_first beyond the file": (96, "Q", 2**64 - 1),
    "log_slots too small": (104, "Q", 3),
    "log_slots too large": (104, "Q", 2**64 - 4),
    "base_sequence above the tip": (112, "Q", 1),
    "base_checksum without a record": (120, "Q", 1),
    "base_offset not aligned": (128, "Q", 8),
    "base_offset beyond the log": (128, "Q", 2**64 - 512),
    "tip_checksum without a record": (144, "Q", 1),
    "epoch 0": (152, "Q", 0),
    "epoch beyond 48 bits": (152, "Q", 2**48),
    "next_id 0": (160, "Q", 0),
    "next_id too large": (160, "Q", 2**64 - 1),
    "no region": (176, "Q", 0),
    "too many regions": (176, "Q", 9),
    "one region less than there are": (176, "Q", 1),
    "a region in the log": (192, "Q", 4),
    "a region that wraps": (192, "Q", 2**64 - 50),
    "an empty region": (200, "Q", 0),
    "a region with blocks that wrap": (200, "Q", 2**64 - 1),
    "regions that overlap in blocks": (208, "Q", 99),
    "regions that overlap in slots": (216, "Q", 105),
    "reserved bytes": (600, "B", 1),
    "a lineage root that is a hole": (376 + 7, "B", 0),
    "a lineage root of unknown kind": (376 + 7, "B", 3),
    "a lineage root too tall": (376 + 6, "B", 7),
    "a lineage root with a birth": (384, "Q", 1),
    "a lineage root in the superblock": (376, "H", 1),
    "a reserved part of a pointer": (400, "B", 1),
    "seal_root": (440 + 6, "B", 1),
    "a name_root that is no node": (472 + 6, "B", 1),
    "name_buckets without a name_root": (504, "Q", 1),
    "name_entries without a name_root": (512, "Q", 1),
    "linear without a name_root": (520, "Q", 1),
    "a linear that is neither 0 nor 1": (520, "Q", 2),
}


@pytest.mark.parametrize(
    ("offset", "code", "value"), [(504, "Q", 0), (504, "Q", 2_080_769), (480, "Q", 1), (160, "Q", 2**32 + 1)]
)
def test_an_impossible_index_of_names_is_corrupt(offset, code, value):
    indexed = sample_superblock(name_root=f.Pointer(f.POINTER_NODE, 502, 1, 0, 79), name_buckets=1, linear=True)
    data = bytearray(f.encode_superblock(indexed))
    assert f.decode_superblock(bytes(data)) == indexed
    struct.pack_into("<" + code, data, offset, value)
    with pytest.raises(CorruptionError):
        f.decode_superblock(sealed_superblock(data))


@pytest.mark.parametrize("what", BAD_SUPERBLOCK)
def test_a_superblock_with_a_right_checksum_and_an_impossible_field_is_corrupt(what):
    offset, code, value = BAD_SUPERBLOCK[what]
    data = bytearray(f.encode_superblock(sample_superblock()))
    struct.pack_into("<" + code, data, offset, value)
    with pytest.raises(CorruptionError):
        f.decode_superblock(sealed_superblock(data))


@pytest.mark.parametrize(("offset", "value"), [(8, 2), (8, 0), (16, 4), (23, 128)])
def test_another_version_or_an_unknown_incompatible_feature_is_a_newer_format(offset, value):
    data = bytearray(f.encode_superblock(sample_superblock()))
    data[offset] = value
    with pytest.raises(UnsupportedVersionError):
        f.decode_superblock(sealed_superblock(data))


@pytest.mark.parametrize("data", [b"", b"COWENG\r\n", bytes(4096), b"COWENG\n\n" + bytes(4088), bytes(4097)])
def test_what_has_no_magic_or_not_its_length_is_no_superblock(data):
    with pytest.raises(FormatError):
        f.decode_superblock(data)


# --- what a record may not say, even with a right checksum ------------------------------------------------------------

BAD_RECORD = {
    "reserved bytes": (88, "B", 1),
    "flags": (56, "I", 2),
    "epoch": (40, "Q", 0),
    "size": (80, "Q", 513),
    "size beyond the limit": (80, "Q", 2**64 - 512),
    "count 0 of a delta": (136, "Q", 0),
    "a delta that wraps": (136, "Q", 2**64 - 1),
    "kind of a delta": (151, "B", 2),
    "bits 48 to 55 of a target": (150, "B", 1),
    "slot 0 of a mapped range": (144, "Q", 1 << 56),
    "a mapped range beyond the file": (144, "Q", 1 << 56 | 2**48 - 1),
    "a hole with a slot": (176, "Q", 5),
    "a birth in the future": (152, "Q", 6),
    "a head beyond the last": (152, "Q", 256 << 48 | 5),
    "a freed run in the superblock": (192, "Q", 0),
    "an empty freed run": (200, "Q", 0),
    "a freed run that wraps": (200, "Q", 2**64 - 1),
    "freed nodes that wrap": (216, "Q", 2**64 - 1),
    "a check of slot 2^48": (224, "Q", 2**48),
}


@pytest.mark.parametrize("what", BAD_RECORD)
def test_a_record_with_a_right_checksum_and_impossible_contents_is_corrupt(what):
    offset, code, value = BAD_RECORD[what]
    data = bytearray(f.encode_record(sample_record(), FOLD))
    struct.pack_into("<" + code, data, offset, value)
    data = sealed_record(data)
    with pytest.raises(CorruptionError):
        f.decode_record(data, 0, len(data), FOLD, 9)


@pytest.mark.parametrize("offset", [4, 60, 64, 68, 72, 76])
@pytest.mark.parametrize("value", [0, 1, 127, 2**31, 2**32 - 1])
def test_a_record_whose_counts_do_not_fill_it_is_none_and_costs_nothing(offset, value):
    data = bytearray(f.encode_record(sample_record(), FOLD))
    if struct.unpack_from("<I", data, offset)[0] == value:
        value += 8
    struct.pack_into("<I", data, offset, value)
    assert f.decode_record(sealed_record(data), 0, len(data), FOLD, 9) is None


def test_an_unknown_event_in_a_valid_record_is_a_newer_format():
    data = bytearray(f.encode_record(sample_record(events=[f.DeleteEvent(1)]), FOLD))
    struct.pack_into("<H", data, len(data) - 16, 999)
    data = sealed_record(data)
    with pytest.raises(UnsupportedVersionError):
        f.decode_record(data, 0, len(data), FOLD, 9)


@pytest.mark.parametrize(
    "data",
    [
        bytes(7),
        struct.pack("<HHI", 2, 0, 7) + bytes(8),
        struct.pack("<HHI", 2, 0, 2**32 - 8),
        struct.pack("<HHI", 2, 2, 16) + bytes(8),
        struct.pack("<HHI", 2, 0, 24) + bytes(16),
        struct.pack("<HHI", 2, 0, 8),
        struct.pack("<HHIQ", 2, 0, 16, 2**63),
        struct.pack("<HHIQQQQ", 5, 0, 40, 0, 1, 0, 4096),
        struct.pack("<HHIQQQQ", 5, 0, 40, 0, 1, 2, 100),
        struct.pack("<HHIQQQ", 7, 0, 32, 0, 100, 2),
        struct.pack("<HHIQQQ", 7, 0, 32, 0, 512, 0),
        struct.pack("<HHI", 1, 0, 16) + bytes(8),
        f.encode_event(f.SnapshotEvent(1, 2, 3, 4, "a")).replace(b"a", b"/"),
        f.encode_event(f.SnapshotEvent(1, 2, 3, 4, "a")).replace(b"a", b"\0"),
        f.encode_event(f.SnapshotEvent(1, 2, 3, 4, "a")).replace(b"a", b"\xff"),
        f.encode_event(f.SnapshotEvent(1, 2, 3, 4, "a"))[:-1] + b"x",
        f.encode_event(f.SnapshotEvent(0, 2, 3, 4, "a")),
        f.encode_event(f.SnapshotEvent(1, 2, 3, 4, "a", flags=f.LINEAGE_DELETED)),
        f.encode_event(f.CloneEvent(1, 2, 3, 4, 5, "a"))[:-16].replace(b"\x40", b"\x30", 1),
        f.encode_event(f.CloneEvent(1, 2, 3, 4, 5, "a"))[:-1] + b"x",
        f.encode_event(f.CloneEvent(0, 2, 3, 4, 5, "a")),
        f.encode_event(f.CloneEvent(1, 0, 3, 4, 5, "a")),
        f.encode_event(f.CloneEvent(256, 2, 3, 4, 5, "a")),
        f.encode_event(f.DeleteHeadEvent(0, 2)),
        f.encode_event(f.RetainEvent(1, f.COUNTER_MAX, 0, 0, bytes(16))),
        f.encode_event(f.RetainEvent(1, 0, f.COUNTER_MAX, 0, bytes(16))),
        f.encode_event(f.RetainEvent(1, 0, 0, f.COUNTER_MAX, bytes(16))),
        f.encode_event(f.PolicyEvent(f.WHEN_FULL_GIVE_UP + 1, 0, 0)),
    ],
)
def test_an_event_that_breaks_its_bounds_is_corrupt(data):
    with pytest.raises(CorruptionError):
        f.decode_events(data)


# --- lineage records with impossible contents -------------------------------------------------------------------------

BAD_LINEAGE = {
    "kind": (0, "B", 3),
    "unused but not zero": (0, "B", 0),
    "flags": (1, "B", 16),
    "held without a reason": (1, "B", 8),
    "a reason without a hold": (448, "B", 65),
    "no name": (2, "H", 0),
    "a name longer than there is": (2, "H", 256),
    "a name with NUL": (2, "H", 6),
    "a name cut": (2, "H", 4),
    "a slash": (192, "B", 0x2F),
    "not UTF-8": (192, "B", 0xFF),
    "reserved": (144, "B", 1),
    "metadata too long": (4, "I", 4097),
    "metadata nowhere": (128, "Q", 0),
    "metadata in no slot": (128, "Q", 2**48),
    "id": (8, "Q", 2**64 - 1),
    "parent": (16, "Q", 2**64 - 2),
    "epoch": (24, "Q", 2**48),
    "frozen snapshot": (32, "Q", 3),
    "size": (40, "Q", 1),
    "root": (71, "B", 9),
}


@pytest.mark.parametrize("what", BAD_LINEAGE)
def test_a_lineage_record_with_impossible_contents_is_corrupt(what):
    offset, code, value = BAD_LINEAGE[what]
    record = f.LineageRecord(
        f.LINEAGE_SNAPSHOT, 7, "daily", 12, 1 << 20, root=f.Pointer(2, 90, 0, 11, 5),
        metadata_bytes=3, metadata_slot=91, metadata_checksum=92,
    )  # fmt: skip
    data = bytearray(f.encode_lineage(record))
    struct.pack_into("<" + code, data, offset, value)
    with pytest.raises(CorruptionError):
        f.decode_lineage(bytes(data))


def test_a_head_cannot_be_sealed():
    data = bytearray(f.encode_lineage(f.LineageRecord(f.LINEAGE_HEAD, 0, "live", 5, 4096, root=f.hole(1))))
    data[1] = f.LINEAGE_SEALED
    with pytest.raises(CorruptionError, match="sealed"):
        f.decode_lineage(bytes(data))


def test_names_that_are_scanned_must_be_utf_8():
    page = bytearray(f.encode_lineage(f.LineageRecord(f.LINEAGE_SNAPSHOT, 7, "daily", 12, 4096, root=f.hole(1))))
    assert list(f.iter_essentials(bytes(page))) == [(f.LINEAGE_SNAPSHOT, 0, f.NONE_ID, 12, "daily")]
    page[192] = 0xFF
    with pytest.raises(CorruptionError, match="UTF-8"):
        list(f.iter_essentials(bytes(page)))


def test_a_run_needs_a_birth():
    with pytest.raises(CorruptionError, match="birth"):
        f.Pointer.decode(f.Pointer(f.POINTER_RUN, 90, 0, 0, 0).encode())


# --- what was given up ------------------------------------------------------------------------------------------------


def losses(count: int, name: str) -> list[f.Loss]:
    return [f.Loss(number, 1, 2, 3, name) for number in range(1, count + 1)]


def test_a_superblock_keeps_the_newest_losses_that_it_has_room_for():
    many = losses(100, "n" * 248)
    kept = f.newest_losses(many)
    assert kept and list(kept) == many[-len(kept) :]
    assert len(kept) == LOSSES_BYTES // (40 + 248)
    assert f.newest_losses(many[:3]) == tuple(many[:3])
    sb = sample_superblock(given_up=kept, given_up_count=100)
    assert f.decode_superblock(f.encode_superblock(sb)).given_up == kept


@pytest.mark.parametrize("changes", [{0: 40}, {0: 8}, {40: 9}, {40: 2**64 - 1}, {0: 2**64 - 1}])
def test_losses_that_are_cut_off_are_corrupt(changes):
    """The number of bytes that they take (at 0 here), and the length of the first name (at 40)."""
    data = bytearray(f.encode_superblock(sample_superblock(given_up=tuple(losses(1, "n" * 8)), given_up_count=1)))
    start = data.index(struct.pack("<5Q", 1, 1, 2, 3, 8)) - 8
    assert struct.unpack_from("<Q", data, start) == (48,)
    for offset, value in changes.items():
        struct.pack_into("<Q", data, start + offset, value)
    if 0 in changes and changes[0] < 48:
        data[start + 8 + changes[0] : start + 8 + 48] = bytes(48 - changes[0])
    with pytest.raises(CorruptionError, match="given_up"):
        f.decode_superblock(sealed_superblock(data))


# --- superblocks in the log -------------------------------------------------------------------------------------------


def test_a_newer_superblock_in_the_log_is_found_and_what_only_looks_like_one_is_not():
    here = sample_superblock(generation=5)
    log = bytearray(8 * f.SLOT_BYTES)
    others = {
        1: b"COWENG\r\n" + bytes(4088),
        2: f.encode_superblock(sample_superblock(generation=5)),
        3: f.encode_superblock(sample_superblock(generation=9, volume_uuid=bytes(15) + b"x")),
        4: sealed_superblock(bytearray(f.encode_superblock(sample_superblock(generation=9)))[:12] + bytes(4084)),
    }
    for slot, data in others.items():
        log[slot * f.SLOT_BYTES : (slot + 1) * f.SLOT_BYTES] = data
    assert f.superblock_astray(bytes(log), here) is None
    log[6 * f.SLOT_BYTES : 7 * f.SLOT_BYTES] = f.encode_superblock(sample_superblock(generation=6))
    assert f.superblock_astray(bytes(log), here) == 6


# --- intent files -----------------------------------------------------------------------------------------------------


def test_an_intent_file_is_whole_or_incomplete_or_none():
    intent = Intent(4096, bytes(range(16)), b"head" * 1024)
    data = encode_intent(intent)
    assert decode_intent(data) == intent
    for cut in (0, 8, 100, len(data) - 1):
        with pytest.raises(CorruptionError, match="incomplete"):
            decode_intent(data[:cut])
    for incomplete in (bytes(len(data)), data[:-1] + b"x"):
        with pytest.raises(CorruptionError, match="incomplete"):
            decode_intent(incomplete)
    with pytest.raises(FormatError):
        decode_intent(b"x" + data[1:])


# --- random bytes -----------------------------------------------------------------------------------------------------


def spoil(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.randint(1, 6)):
        position = rng.randrange(len(data))
        width = rng.choice([1, 2, 4, 8])
        data[position : position + width] = rng.choice([bytes(width), b"\xff" * width, rng.randbytes(width)])
    return data


@pytest.mark.parametrize("seed", range(4))
def test_spoilt_bytes_with_right_checksums_give_typed_errors_only(seed):
    rng = random.Random(seed)
    superblock = f.encode_superblock(sample_superblock())
    record = f.encode_record(sample_record(), FOLD)
    lineage = f.encode_lineage(f.LineageRecord(1, 0, "live", 5, 4096, root=f.hole(1)))
    for _ in range(3000):
        data = spoil(rng, bytearray(superblock))[:4096]
        with contextlib.suppress(CowEngineError):
            f.decode_superblock(sealed_superblock(data))
        data = spoil(rng, bytearray(record))[: len(record)]
        try:
            f.decode_record(sealed_record(data), 0, len(data), FOLD, 9)
            list(f.scan_records(data, 9, FOLD))
        except CowEngineError:
            pass
        with contextlib.suppress(CowEngineError):
            f.decode_lineage(bytes(spoil(rng, bytearray(lineage))[:512]))


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_random_bytes_give_typed_errors_only(data):
    for parse in (f.decode_superblock, f.decode_lineage, f.decode_events, f.Pointer.decode):
        with contextlib.suppress(CowEngineError):
            parse(data)
    assert f.decode_record(data, 0, len(data), FOLD, 0) is None


# --- scanning ---------------------------------------------------------------------------------------------------------


def test_scan_finds_every_record_at_an_aligned_place_and_no_other():
    one, two = (f.encode_record(sample_record(sequence=n, generation=n), FOLD) for n in (4, 9))
    log = bytearray(16384)
    log[512 : 512 + len(one)] = one
    log[4096 : 4096 + len(two)] = two
    log[8200 : 8200 + len(two)] = two
    assert [(offset, header.sequence) for offset, header in f.scan_records(log, 9, FOLD)] == [(512, 4), (4096, 9)]
    assert [offset for offset, _ in f.scan_records(bytes(log), 12, FOLD)] == [4096]
    assert [offset for offset, _ in f.scan_records(memoryview(log), 9, FOLD, lambda header: header.generation > 4)] == [
        4096
    ]


def test_scan_of_a_hostile_log_reads_a_bounded_multiple_of_it():
    """Every 512 bytes a header claims the rest of the log: unbounded, that is quadratic in the log's size."""
    size = 4 << 20
    log = bytearray(size)
    for offset in range(0, size, 512):
        count = size - offset
        log[offset : offset + 128] = struct.pack(
            "<4sI6QIIIIIIQ32xQ", b"CWRC", count, 0, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, count - 128, 512, 0
        )
    assert list(f.scan_records(log, 9, FOLD)) == []


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_a_tree_is_as_tall_as_its_keys_need():
    assert [f.level_for(f.TREE_MAP, n) for n in (1, 256, 257, 256 * 128, 256 * 128 + 1)] == [0, 0, 1, 1, 2]
    assert f.level_for(f.TREE_LINEAGE, 9) == 1
    assert f.span(f.TREE_FREE_MAP, 2) == 32768 * 128 * 128
    assert f.level_for(f.TREE_MAP, 2**36) <= f.LEVEL_MAX
