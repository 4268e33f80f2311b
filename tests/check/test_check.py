"""The checker finds nothing in a sound image, and every planted damage in an unsound one. Images come from image.py."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import random
import struct
import sys
from pathlib import Path

import pytest

from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.engine.check import check_file
from cowengine.errors import FormatError, NotFoundError, StorageError, UnsupportedVersionError

_spec = importlib.util.spec_from_file_location("check_image", Path(__file__).with_name("image.py"))
image = importlib.util.module_from_spec(_spec)
sys.modules["check_image"] = image
_spec.loader.exec_module(image)

Image, ImageIO, snapshot, commit = image.Image, image.ImageIO, image.snapshot, image.commit


def check(data: bytes):
    return check_file("image", ImageIO(data))


def sample(**fields) -> Image:
    """Two snapshots; blocks at home, redirected, shared and discarded; metadata."""
    img = Image(epoch=3, next_id=3, **fields)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 3, 2, 2
    img.lineage[1], img.lineage[2] = snapshot(1, 1), snapshot(2, 2, 1)
    home = img.home
    img.maps[1] = {0: (home(0), 1), 1: (home(1), 1), 260: (home(260), 1)}
    img.maps[2] = {0: (650, 2), 1: (home(1), 1), 260: (0, 2)}
    img.maps[0] = {0: (651, 3), 1: (home(1), 1), 260: (0, 2), 261: (home(261), 3)}
    img.metadata[1] = b"why it was taken"
    return img


def history(home) -> list[f.Record]:
    """Writes, snapshots, a rollback, a delete and a whole reclaim, all in the log."""
    return [
        commit(4, deltas=f.encode_delta(5, 1, 1, home(5), 3), events=[f.SnapshotEvent(3, 3, 7, 7, "three")]),
        commit(4, deltas=f.encode_delta(5, 1, 1, 652, 4) + f.encode_delta(0, 1, 1, 653, 4)),
        commit(6, events=[f.SnapshotEvent(4, 4, 7, 7, "auto"), f.RollbackEvent(0, 1, 6, 300 * 4096)]),
        commit(6, deltas=f.encode_delta(0, 2, 1, 655, 6), events=[f.DeleteEvent(4)]),
        commit(6, events=[f.ReclaimEvent(4, 2)], freed=[(653, 1)]),
        commit(6, events=[f.ReclaimedEvent(4)], freed=[(652, 1)]),
    ]


def test_a_sound_image_has_no_problem_and_is_counted():
    report = check(sample().build())
    assert report.ok and report.problems == []
    assert report.counts["blocks"] == 6
    assert report.counts["snapshots"] == 2
    assert report.counts["leaked"] == report.counts["dropped"] == report.counts["records"] == 0


def test_a_sound_image_with_a_history_in_its_log_has_no_problem():
    img = sample()
    img.records = history(img.home)
    report = check(img.build())
    assert report.problems == []
    assert report.counts["records"] == 6
    assert report.counts["snapshots"] == 3
    assert report.counts["blocks"] == 9


def test_every_prefix_of_a_history_is_sound():
    for count in range(7):
        img = sample()
        img.records = history(img.home)[:count]
        assert check(img.build()).problems == []


def test_a_history_that_wraps_in_the_log_is_followed():
    img = sample(log_offset=16384 - 512)
    img.records = history(img.home)
    report = check(img.build())
    assert report.problems == []
    assert report.counts["records"] == 6


# --- what is no volume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", bytes(100), bytes(65536), b"SQLite format 3\0" + bytes(70000)])
def test_what_is_no_volume_raises(data):
    with pytest.raises(FormatError):
        check(data)


def test_a_newer_format_raises():
    img = sample()
    img.build()
    img.write_superblock(1, features_incompatible=1 << 63, generation=2)
    with pytest.raises(UnsupportedVersionError):
        check(bytes(img.data))


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(NotFoundError):
        check_file(str(tmp_path / "none.cow"))


def test_what_is_no_regular_file_is_no_volume(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "link", tmp_path / "fifo"):
        with pytest.raises(FormatError):
            check_file(str(path))


# --- superblocks ------------------------------------------------------------------------------------------------------


def test_the_newer_superblock_is_chosen_and_a_torn_one_is_no_problem():
    img = sample()
    img.build()
    img.write_superblock(1, generation=2, epoch=500)
    assert check(bytes(img.data)).problems == []
    img.data[4096 + 150] ^= 1
    assert check(bytes(img.data)).problems == []


def test_two_damaged_superblocks_are_reported():
    img = sample()
    img.build()
    img.data[200] ^= 1
    assert "superblocks are damaged" in check(bytes(img.data)).problems[0]


def test_two_superblocks_of_one_generation_are_reported():
    img = sample()
    img.build()
    img.write_superblock(1, created_ns=5)
    assert "two different superblocks" in check(bytes(img.data)).problems[0]


def test_two_superblocks_of_different_volumes_are_reported():
    img = sample()
    img.build()
    img.write_superblock(1, generation=9, log_shift=12)
    assert "different volumes" in check(bytes(img.data)).problems[0]


# --- one flipped bit anywhere that matters ----------------------------------------------------------------------------


def test_every_damaged_node_or_blob_is_reported():
    img = sample()
    data = img.build()
    for slot in range(image.HOME + img.blocks, img.next_slot):
        spoilt = bytearray(data)
        spoilt[slot * 4096 + 3] ^= 0x10
        assert not check(bytes(spoilt)).ok, f"slot {slot}"


def test_a_truncated_file_is_reported():
    img = sample()
    data = img.build()
    for slots in range(2, img.next_slot):
        assert not check(data[: slots * 4096]).ok, f"cut to {slots} slots"


def test_random_damage_in_metadata_never_raises_but_a_format_error():
    rng = random.Random(7)
    img = sample()
    img.records = history(img.home)
    data = img.build()
    metadata = [*range(image.HOME), *range(image.HOME + img.blocks, img.next_slot)]
    for _ in range(400):
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            slot = rng.choice(metadata)
            spoilt[slot * 4096 + rng.randrange(4096)] ^= 1 << rng.randrange(8)
        with contextlib.suppress(FormatError):
            check(bytes(spoilt))


# --- the log ----------------------------------------------------------------------------------------------------------


def with_tip(img: Image, sequence: int, checksum: int) -> bytes:
    img.write_superblock(1, generation=1, tip_sequence=sequence, tip_checksum=checksum)
    img.data[:4096] = img.data[4096:8192]
    return bytes(img.data)


def test_a_chain_that_reaches_its_tip_is_sound_and_one_cut_before_it_is_reported():
    img = sample()
    img.records = history(img.home)
    img.build()
    data = with_tip(img, 6, img.tip_checksum)
    assert check(data).problems == []
    for number in range(6):
        spoilt = bytearray(data)
        start = image.LOG_FIRST * 4096
        offsets = [o for o, _ in f.scan_records(data[start : image.HOME * 4096], 9, image.FOLD)]
        spoilt[start + offsets[number] + 40] ^= 1
        assert any(f"ends after record {number}," in p for p in check(bytes(spoilt)).problems)


def test_a_tip_with_another_checksum_is_reported():
    img = sample()
    img.records = history(img.home)
    img.build()
    assert any("not the one" in p for p in check(with_tip(img, 6, img.tip_checksum ^ 1)).problems)


def test_records_up_to_the_tip_may_have_an_old_salt_and_later_ones_are_not_followed():
    img = sample()
    img.records = history(img.home)
    img.build()
    img.superblock.salt = 1234
    assert check(with_tip(img, 6, img.tip_checksum)).counts["records"] == 6
    assert check(with_tip(img, 0, 0)).counts["records"] == 0


def test_a_record_of_a_lost_superblock_is_reported():
    img = sample()
    img.build()
    record = commit(3)
    record.sequence, record.generation = 77, 5
    encoded = f.encode_record(record, image.FOLD)
    img.data[image.LOG_FIRST * 4096 + 1024 : image.LOG_FIRST * 4096 + 1024 + len(encoded)] = encoded
    assert any("generation 5" in p for p in check(bytes(img.data)).problems)


def test_a_record_behind_a_clean_close_is_reported():
    img = sample()
    img.records = history(img.home)[:1]
    img.build()
    img.write_superblock(0, clean=True)
    assert any("clean close" in p for p in check(bytes(img.data)).problems)


def test_a_last_one_barrier_record_whose_block_is_not_on_the_disk_is_dropped_and_counted():
    img = sample()
    block = b"\x5a" * 4096
    good = commit(3, one_barrier=True, deltas=f.encode_delta(7, 1, 1, img.home(7), 3))
    good.checks = [(img.home(7), xxh64(block, f.check_seed(image.FOLD, img.home(7))))]
    img.records = [good]
    img.build()
    report = check(bytes(img.data))
    assert report.problems == [] and report.counts["dropped"] == 1 and report.counts["records"] == 0
    img.data[img.home(7) * 4096 : img.home(7) * 4096 + 4096] = block
    report = check(bytes(img.data))
    assert report.problems == [] and report.counts["dropped"] == 0 and report.counts["records"] == 1


def test_a_last_record_that_checks_a_block_twice_is_reported():
    img = sample()
    twice = commit(3, one_barrier=True, deltas=f.encode_delta(7, 1, 1, img.home(7), 3))
    twice.checks = [(img.home(7), 1), (img.home(7), 1)]
    img.records = [twice]
    assert any("checks of record 1 overlap" in p for p in check(img.build()).problems)


def test_a_superblock_that_was_written_over_the_log_is_reported():
    img = sample()
    img.build()
    img.write_superblock(image.LOG_FIRST + 2, generation=7)
    assert check(bytes(img.data)).problems == ["log: superblock 7 was written over it, not into its slot"]


BAD_RECORDS = {
    "born too early": commit(4, deltas=f.encode_delta(5, 1, 1, 660, 2)),
    "beyond the end": commit(4, deltas=f.encode_delta(300, 1, 1, 660, 3)),
    "in a foreign home": commit(4, deltas=f.encode_delta(5, 1, 1, image.HOME + 6, 3)),
    "below the homes": commit(4, deltas=f.encode_delta(5, 1, 1, 3, 3)),
    "beyond the file": commit(4, deltas=f.encode_delta(5, 1, 1, 700, 3)),
    "on a block of a snapshot": commit(4, deltas=f.encode_delta(5, 1, 1, 650, 3)),
    "on the same block, another birth": commit(4, deltas=f.encode_delta(1, 1, 1, image.HOME + 1, 3)),
    "on a node": commit(4, deltas=f.encode_delta(5, 1, 1, image.HOME + 301, 3)),
    "old block not freed": commit(4, deltas=f.encode_delta(261, 1, 1, 660, 3)),
    "freed too early": commit(4, deltas=f.encode_delta(0, 1, 1, 660, 3), freed=[(650, 1), (651, 1)]),
    "freed and kept": commit(4, freed=[(651, 1)]),
    "node freed": commit(4, freed_nodes=[(image.HOME + 300, 1)]),
    "hold of a deleted one": commit(4, events=[f.DeleteEvent(1), f.HoldEvent(1, "audit")]),
    "retention of a deleted one": commit(4, events=[f.DeleteEvent(1), f.RetainEvent(1, 7, 0, 0, bytes(16))]),
    "retention that is cut": commit(4, events=[f.RetainEvent(1, n, 0, 0, bytes(16)) for n in (7, 6)]),
    "delete of nothing": commit(4, events=[f.DeleteEvent(9)]),
    "delete of a held one": commit(4, events=[f.HoldEvent(1, "audit"), f.DeleteEvent(1)]),
    "anchor of a deleted one": commit(4, events=[f.DeleteEvent(1), f.AnchorEvent(1)]),
    "delete of the head": commit(4, events=[f.DeleteEvent(0)]),
    "deleted twice": commit(4, events=[f.DeleteEvent(1), f.DeleteEvent(1)]),
    "reclaim of a live one": commit(4, events=[f.ReclaimEvent(1, 0)]),
    "reclaimed without delete": commit(4, events=[f.ReclaimedEvent(1)]),
    "reclaim of nothing": commit(4, events=[f.ReclaimedEvent(8)]),
    "nothing given back": commit(4, events=[f.DeleteEvent(1), f.ReclaimEvent(1, 0), f.ReclaimedEvent(1)]),
    "two reclaims": commit(4, events=[f.DeleteEvent(i) for i in (1, 2)] + [f.ReclaimEvent(i, 0) for i in (1, 2)]),
    "rollback to nothing": commit(5, events=[f.RollbackEvent(0, 9, 5, 4096)]),
    "rollback of another head": commit(5, events=[f.RollbackEvent(1, 1, 5, 300 * 4096)]),
    "rollback with another size": commit(5, events=[f.RollbackEvent(0, 1, 5, 4096)]),
    "rollback to a head": commit(5, events=[f.RollbackEvent(0, 0, 5, 300 * 4096)]),
    "rollback to a deleted one": commit(5, events=[f.DeleteEvent(1), f.RollbackEvent(0, 1, 5, 300 * 4096)]),
    "rollback in a frozen epoch": commit(5, events=[f.RollbackEvent(0, 1, 2, 300 * 4096)]),
    "an anchor twice": commit(4, events=[f.AnchorEvent(1), f.AnchorEvent(1)]),
    "an anchor that is held": commit(4, events=[f.HoldEvent(1, "audit"), f.AnchorEvent(1)]),
    "given up while held": commit(4, events=[f.HoldEvent(1, "audit"), f.GiveUpEvent(1, 7)]),
    "hold of the head": commit(4, events=[f.HoldEvent(0, "audit")]),
    "a reclaim that goes back": commit(4, events=[f.DeleteEvent(1), f.ReclaimEvent(1, 5), f.ReclaimEvent(1, 4)]),
    "an id twice": commit(5, events=[f.SnapshotEvent(2, 4, 0, 0, "again")]),
    "a name twice": commit(5, events=[f.SnapshotEvent(3, 4, 0, 0, "s1")]),
    "an old epoch": commit(5, events=[f.SnapshotEvent(3, 2, 0, 0, "old")]),
    "the epoch goes back": commit(4, events=[f.SnapshotEvent(3, 8, 0, 0, "far")]),
}


FAR = f"log, byte 0: record 1 of epoch 4: an event of another epoch: {f.SnapshotEvent(3, 8, 0, 0, 'far')}"
LOST = "log: record 1 at byte 0 follows superblock generation 1; the newest valid one is 1, and the chain ends after 0"
TOLD_OF_RECORDS = {
    "born too early": ["record 1: delta of block 5 has birth 2, but epoch 2 is frozen"],
    "beyond the end": [
        "record 1: blocks 300 to 300 of epoch 3 in slot 660: beyond the end of the volume, which has 300 blocks"
    ],
    "in a foreign home": ["record 1: blocks 5 to 5 of epoch 3 in slot 12: in a home that is not its own"],
    "below the homes": ["record 1: blocks 5 to 5 of epoch 3 in slot 3: below the first home region"],
    "beyond the file": [
        "record 1: blocks 5 to 5 of epoch 3 in slot 700: beyond the end of the file",
        "after the log: slots 700 to 700 lie behind the end of the file, and the free map calls them used",
    ],
    "on a block of a snapshot": [
        "record 1: slot 650 holds block 5 of epoch 3 and, from block 0 on, others of epoch 2",
        "record 1: places block 5 in slot 650, which is in use",
    ],
    "on the same block, another birth": [
        "record 1: slot 7 holds block 1 of epoch 3 and, from block 0 on, others of epoch 1",
        "record 1: places block 1 in slot 7, which is in use",
    ],
    "on a node": [
        "record 1: slot 307 holds a block and node (1, 0, 1)",
        "record 1: places block 5 in slot 307, which is in use",
        "log: places a block in slot 307, which holds node (1, 0, 1)",
    ],
    "old block not freed": ["after the log: slots 267 to 267 are leaked: marked used and reached by nothing"],
    "freed too early": ["after the log: slots 650 to 650 are in use and the free map calls them free"],
    "freed and kept": ["after the log: slots 651 to 651 are in use and the free map calls them free"],
    "node freed": ["log: frees node (1, 0, 0) in slot 306, which is still reachable"],
    "hold of a deleted one": [
        "record 1: snapshot 1 is held or released, and was deleted",
        "record 1: snapshot 1 is held, and is a head or deleted",
    ],
    "retention of a deleted one": ["record 1: snapshot 1 is retained until 7, and was deleted or is so for longer"],
    "retention that is cut": ["record 1: snapshot 1 is retained until 6, and was deleted or is so for longer"],
    "delete of nothing": ["record 1: DeleteEvent of snapshot 9, which does not exist"],
    "delete of a held one": [
        "record 1: snapshot 1 is deleted and was held",
        "record 1: snapshot 1 is held, and is a head or deleted",
    ],
    "anchor of a deleted one": ["record 1: snapshot 1 becomes an anchor, and is one, is deleted or held"],
    "delete of the head": ["record 1: DeleteEvent of snapshot 0, which does not exist"],
    "deleted twice": ["record 1: snapshot 1 is deleted twice"],
    "reclaim of a live one": [
        "record 1: reclaim of snapshot 1 moves to 0, and it is not deleted or was further",
        "record 1: snapshot 1 has a reclaim cursor, and its data was not given up or is given back",
    ],
    "reclaimed without delete": [
        "record 1: snapshot 1 is reclaimed and was not deleted",
        "after the log: slots 6 to 6 are leaked: marked used and reached by nothing",
        "after the log: slots 266 to 266 are leaked: marked used and reached by nothing",
    ],
    "reclaim of nothing": ["record 1: ReclaimedEvent of snapshot 8, which does not exist"],
    "nothing given back": [
        "after the log: slots 6 to 6 are leaked: marked used and reached by nothing",
        "after the log: slots 266 to 266 are leaked: marked used and reached by nothing",
    ],
    "two reclaims": ["record 1: 2 snapshots are being reclaimed at once"],
    "rollback to nothing": ["record 1: rollback of head 0 to 9, which is no snapshot"],
    "rollback of another head": [
        "record 1: it speaks of head 1, which does not exist",
        "record 1: rollback of head 1 to 1, which is no snapshot",
    ],
    "rollback with another size": [
        "record 1: rollback to 1 with epoch 5 and size 4096",
        "after the log: slots 267 to 267 are leaked: marked used and reached by nothing",
        "after the log: slots 651 to 651 are leaked: marked used and reached by nothing",
    ],
    "rollback to a head": ["record 1: rollback of head 0 to 0, which is no snapshot"],
    "rollback to a deleted one": [
        "record 1: rollback to 1, whose data was given up",
        "after the log: slots 267 to 267 are leaked: marked used and reached by nothing",
        "after the log: slots 651 to 651 are leaked: marked used and reached by nothing",
    ],
    "rollback in a frozen epoch": [
        "record 1: rollback to 1 with epoch 2 and size 1228800",
        "after the log: slots 267 to 267 are leaked: marked used and reached by nothing",
        "after the log: slots 651 to 651 are leaked: marked used and reached by nothing",
    ],
    "an anchor twice": ["record 1: snapshot 1 becomes an anchor, and is one, is deleted or held"],
    "an anchor that is held": ["record 1: snapshot 1 becomes an anchor, and is one, is deleted or held"],
    "given up while held": [
        "record 1: snapshot 1 is deleted and was held",
        "record 1: snapshot 1 is held, and is a head or deleted",
    ],
    "hold of the head": ["record 1: HoldEvent of snapshot 0, which does not exist"],
    "a reclaim that goes back": [
        "record 1: reclaim of snapshot 1 moves to 4, and it is not deleted or was further",
        "after the log: slots 6 to 6 are leaked: marked used and reached by nothing",
    ],
    "an id twice": [
        "record 1: snapshot takes id 2 where 3 is next",
        "record 1: snapshot 2 of epoch 4 stands on snapshot 2 of epoch 4",
        "after the log: slots 650 to 650 are leaked: marked used and reached by nothing",
    ],
    "a name twice": ["record 1: snapshot 3 has the name of 1"],
    "an old epoch": [
        "record 1: snapshot 3 takes epoch 2, the head is in 3",
        "record 1: snapshot 3 has epoch 2, as has 2",
    ],
    "the epoch goes back": [FAR, LOST],
}


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_a_record_that_breaks_an_invariant_is_reported(what):
    img = sample()
    img.records = [BAD_RECORDS[what]]
    assert check(img.build()).problems == TOLD_OF_RECORDS[what]


# --- the trees and the free map ---------------------------------------------------------------------------------------


def test_a_leaked_slot_is_reported_and_counted():
    report = check(sample(extra_used=(640, 641, 643)).build())
    assert [p for p in report.problems if "leaked" in p] == report.problems
    assert report.counts["leaked"] == 3


def test_a_slot_in_use_that_the_free_map_calls_free_is_reported():
    for slot in (650, image.HOME + 1, image.HOME + 300):
        report = check(sample(unmarked=(slot,)).build())
        assert len(report.problems) == 1 and f"slots {slot} to {slot}" in report.problems[0]


def damaged_map(member: int, block: int, entry: tuple[int, int]) -> bytes:
    img = sample()
    img.maps[member][block] = entry
    return img.build()


@pytest.mark.parametrize(
    ("member", "block", "entry"),
    [
        (0, 9, (650, 3)),
        (0, 0, (650, 3)),
        (0, 9, (image.HOME + 8, 3)),
        (0, 9, (image.HOME + 300, 3)),
        (0, 9, (5, 3)),
        (0, 9, (700, 3)),
        (0, 299, (652, 4)),
        (0, 300, (652, 3)),
        (1, 9, (652, 2)),
        (0, 9, (652, 2)),
        (0, 1, (652, 2)),
        (2, 0, (652, 1)),
    ],
    ids=["shared by two blocks", "shared with another birth", "foreign home", "on a node", "in the log",
         "beyond the file", "from the future", "beyond the volume", "younger than its snapshot",
         "older than its ancestor, which lacks it", "older than its ancestor, which has another",
         "in a snapshot, older than the one before it"],
)  # fmt: skip
def test_an_impossible_entry_is_reported(member, block, entry):
    assert not check(damaged_map(member, block, entry)).ok


@pytest.mark.parametrize("raw", [(2 << 56 | 650, 1), (1 << 56, 1), (5, 1), (1 << 56 | 652, 0), (0, 2**60)])
def test_an_entry_that_is_none_is_reported(raw):
    img = sample()
    entries = bytearray(4096)
    struct.pack_into("<QQ", entries, 16, *raw)
    node = img.node

    def bad(tree, level, index, data, birth, slot=None):
        if tree == f.TREE_MAP and level == 0 and index == 1:
            data = bytes(entries)
        return node(tree, level, index, data, birth, slot)

    img.node = bad
    assert any("impossible" in p for p in check(img.build()).problems)


def test_a_birth_in_a_pointer_that_is_not_the_largest_below_is_reported():
    for wrong in (-1, 1):
        img = sample()
        node = img.node

        def bad(tree, level, index, data, birth, slot=None, node=node, wrong=wrong):
            return node(tree, level, index, data, birth + wrong * (tree == f.TREE_MAP and level == 0), slot)

        img.node = bad
        assert any("largest below" in p for p in check(img.build()).problems)


def test_a_wrong_level_in_a_pointer_is_reported():
    img = sample()
    node = img.node

    def bad(tree, level, index, data, birth, slot=None):
        if tree == f.TREE_MAP and level == 1:
            data = data[:-32] + f.hole(1).encode()
        return node(tree, level, index, data, birth, slot)

    img.node = bad
    assert any("level 1 instead of 0" in p for p in check(img.build()).problems)


# --- lineage ----------------------------------------------------------------------------------------------------------


BAD_LINEAGES = [
    (2, {"parent": 7}, ["checkpoint: snapshot 2 stands on 7, which is no snapshot"]),
    (2, {"parent": 0}, ["checkpoint: snapshot 2 stands on 0, which is no snapshot"]),
    (1, {"parent": 2}, ["checkpoint: snapshot 1 of epoch 1 stands on snapshot 2 of epoch 2"]),
    (2, {"epoch": 1}, ["checkpoint: snapshot 2 has epoch 1, as has 1"]),
    (2, {"epoch": 9}, ["checkpoint: head 0 of epoch 3 stands on snapshot 2 of epoch 9"]),
    (2, {"name": "s1"}, ["checkpoint: snapshot 2 has the name of 1"]),
    (
        2,
        {"flags": f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, "cursor": 0, "root": f.hole(1)},
        [
            "lineage record at place 2: lineage record 2: empty, and no anchor without a map",
            "checkpoint: head 0 stands on 2, which is no snapshot",
        ],
    ),
    (
        2,
        {"flags": f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY},
        [
            "lineage record at place 2: lineage record 2: empty, and no anchor without a map",
            "checkpoint: head 0 stands on 2, which is no snapshot",
        ],
    ),
    (2, {"cursor": 0}, ["checkpoint: snapshot 2 has a reclaim cursor, and its data was not given up or is given back"]),
    (
        2,
        {"flags": f.LINEAGE_HELD | f.LINEAGE_DELETED, "hold_reason": "audit"},
        ["checkpoint: snapshot 2 is held, and is a head or deleted"],
    ),
    (
        2,
        {"kind": f.LINEAGE_HEAD},
        [
            "lineage record at place 2: lineage record 2: number 0 of a head",
            "checkpoint: head 0 stands on 2, which is no snapshot",
        ],
    ),
    (0, {"kind": f.LINEAGE_SNAPSHOT, "frozen": 0}, ["the lineage table has no live head"]),
    (0, {"frozen": 1}, ["checkpoint: head 0 stands on snapshot 2 of epoch 2, but only 1 is frozen"]),
    (0, {"parent": 1, "frozen": 0}, ["checkpoint: head 0 stands on snapshot 1 of epoch 1, but only 0 is frozen"]),
    (2, {"id": 3}, ["lineage record 3 lies at place 2", "checkpoint: head 0 stands on 2, which is no snapshot"]),
]


@pytest.mark.parametrize(("member", "changes", "told"), BAD_LINEAGES)
def test_a_lineage_that_breaks_a_rule_is_reported(member, changes, told):
    img = sample()
    for name, value in changes.items():
        setattr(img.lineage[member], name, value)
    assert check(img.build()).problems == told


def test_a_snapshot_not_below_next_id_is_reported():
    img = sample()
    img.next_id = 2
    assert any("next_id" in p for p in check(img.build()).problems)


def test_damaged_metadata_is_reported_by_its_snapshot():
    img = sample()
    img.build()
    img.data[img.lineage[1].metadata_slot * 4096] ^= 1
    assert any("metadata of snapshot 1" in p for p in check(bytes(img.data)).problems)


def test_two_deleted_snapshots_may_share_a_name_with_a_live_one():
    img = sample()
    img.lineage[1].flags, img.lineage[1].name = f.LINEAGE_DELETED, "s2"
    report = check(img.build())
    assert report.problems == []
    assert report.counts["deleted"] == 1


@pytest.mark.parametrize(("features", "problems"), [(0, ["the superblock does not say so"]), (f.FEATURE_HEADS, [])])
def test_clones_that_the_superblock_does_not_tell_of_are_reported(features, problems):
    """A cowengine that knows no clones must not open the file."""
    img = sample()
    img.lineage[0].next_head, img.next_id, img.epoch = 5, 6, 4
    img.lineage[5] = f.LineageRecord(
        f.LINEAGE_HEAD, 5, "clone", 4, 300 * 4096, parent=1, frozen=3, number=1, origin=1
    )  # fmt: skip
    img.maps[5] = img.maps[1]
    img.build()
    img.write_superblock(0, features_incompatible=features)
    found = check(bytes(img.data)).problems
    assert len(found) == len(problems)
    assert all(told in problem for told, problem in zip(problems, found, strict=True))


def test_records_whose_epochs_fall_are_reported():
    img = sample()
    img.records = [commit(6), commit(4)]
    assert any("epoch 4 after epoch 6" in problem for problem in check(img.build()).problems)


def test_heads_in_a_chain_that_leads_past_one_are_reported():
    img = sample()
    img.next_id, img.epoch = 6, 4
    img.lineage[5] = f.LineageRecord(f.LINEAGE_HEAD, 5, "clone", 4, 300 * 4096, parent=1, frozen=3, number=1, origin=1)
    img.maps[5] = img.maps[1]
    img.build()
    img.write_superblock(0, features_incompatible=f.FEATURE_HEADS)
    assert check(bytes(img.data)).problems == ["head 0, number 0, leads to 0, not 5"]


def test_metadata_in_the_log_is_reported():
    img = sample()
    take = img.take

    def in_the_log(data):
        return image.LOG_FIRST if data == img.metadata[1] else take(data)

    img.take = in_the_log
    assert any("is a home, the log or a superblock" in problem for problem in check(img.build()).problems)


@pytest.mark.parametrize("wrong", ["birth", "kind"])
def test_a_pointer_that_cannot_be_in_a_tree_that_is_no_map_is_reported(wrong):
    img = sample()
    img.lineage[9], img.next_id, img.maps[9] = snapshot(9, 2, name="nine"), 10, {}
    img.lineage[2].epoch = 1
    node = img.node

    def bad(tree, level, index, data, birth, slot=None):
        if tree == f.TREE_LINEAGE and level == 1:
            pointer = bytearray(data[:32])
            pointer[8 if wrong == "birth" else 7] = 7
            data = bytes(pointer) + data[32:]
        return node(tree, level, index, data, birth, slot)

    img.node = bad
    told = "a birth or a run outside the map" if wrong == "birth" else "unknown kind 7"
    assert any(told in problem for problem in check(img.build()).problems)


def test_metadata_in_the_slot_of_a_node_is_reported():
    img = sample()
    node, lineage_tree = img.node, img.lineage_tree

    def over_the_lineage(tree, level, index, data, birth, slot=None):
        slot = img.lineage[1].metadata_slot if tree == f.TREE_LINEAGE else slot
        return node(tree, level, index, data, birth, slot)

    img.node = over_the_lineage
    problems = check(img.build()).problems
    assert any("holds metadata of snapshot 1 and node" in p for p in problems)
    img.node, img.lineage_tree = node, lineage_tree
    assert check(img.build()).problems == []


def test_a_snapshot_below_sealed_below_that_is_not_sealed_is_reported():
    img = sample()
    img.build()
    img.write_superblock(0, sealed_below=2)
    problems = check(bytes(img.data)).problems
    assert problems == ["checkpoint: snapshot 1 is not sealed, and all below 2 should be"]


# --- reclaim ----------------------------------------------------------------------------------------------------------


def under_reclaim(cursor: int) -> Image:
    """Snapshot 1 is being reclaimed: block 0 (its own, at home) was given back if the cursor has passed it."""
    img = sample()
    img.lineage[1].flags, img.lineage[1].cursor = f.LINEAGE_DELETED, cursor
    if cursor:
        img.unmarked = (img.home(0),)
    return img


@pytest.mark.parametrize("cursor", [0, 1, 200, 256, 260])
def test_blocks_below_the_cursor_of_a_reclaim_are_given_back_and_those_above_are_not(cursor):
    assert check(under_reclaim(cursor).build()).problems == []
    spoilt = under_reclaim(cursor)
    spoilt.unmarked = () if cursor else (spoilt.home(0),)
    assert not check(spoilt.build()).ok


@pytest.mark.parametrize("marked", [True, False])
def test_a_node_below_the_cursor_of_a_reclaim_may_be_marked_or_be_free_and_overwritten(marked):
    img = under_reclaim(256)
    img.build()
    root = img.lineage[1].root.slot * 4096
    own = f.Pointer.decode(bytes(img.data[root : root + f.POINTER_BYTES])).slot
    again = under_reclaim(256)
    again.unmarked += () if marked else (own,)
    again.build()
    if not marked:
        again.data[own * 4096 : own * 4096 + 4096] = bytes(4096)
    assert check(bytes(again.data)).problems == []


def test_a_snapshot_whose_reclaim_the_log_ends_shows_nothing_of_its_map():
    img = sample()
    reclaimed = [f.DeleteEvent(1), f.ReclaimEvent(1, 1 << 46)]
    img.records = [commit(3, events=reclaimed, freed=[(img.home(0), 1), (img.home(260), 1)])]
    assert check(img.build()).problems == []
    img.records = [commit(3, events=reclaimed, freed=[(img.home(0), 1)])]
    assert any("leaked" in problem for problem in check(img.build()).problems)


# --- size of the report -----------------------------------------------------------------------------------------------


def test_the_report_of_a_thoroughly_damaged_image_is_bounded():
    img = Image(epoch=3)
    img.lineage[0].epoch = 3
    img.maps[0] = {block: (img.home(block + 1), 1) for block in range(0, 298, 2)}
    img.maps[0] |= {block: (300 + block, 2) for block in range(1, 298, 2)}
    report = check(img.build())
    assert 100 < len(report.problems) <= 201


def test_a_node_that_the_disk_does_not_give_is_an_error_and_no_problem_of_the_file():
    class Sick(ImageIO):
        def pread(self, fd, length, offset):
            if offset == img.superblock.lineage_root.slot * 4096:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().pread(fd, length, offset)

    img = sample()
    data = img.build()
    with pytest.raises(StorageError, match="a read failed: Input/output error") as caught:
        check_file("image", Sick(data))
    assert caught.value.errno == errno.EIO
