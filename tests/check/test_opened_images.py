"""An open refuses what the checker reports, and takes the rest as it is: images that no engine wrote, opened by it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable
from cowengine.engine.check import check_file
from cowengine.errors import CorruptionError, StorageError

_spec = importlib.util.spec_from_file_location("opened_image", Path(__file__).with_name("image.py"))
assert _spec is not None and _spec.loader is not None
image = importlib.util.module_from_spec(_spec)
sys.modules["opened_image"] = image
_spec.loader.exec_module(image)

BLOCK = b"\x5a" * 4096


def sample(**fields: Any) -> Any:
    """A snapshot of two blocks, of which one was written anew behind it."""
    img = image.Image(epoch=2, next_id=2, **fields)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 2, 1, 1
    img.lineage[1] = image.snapshot(1, 1)
    img.maps[1] = {0: (img.home(0), 1), 1: (img.home(1), 1)}
    img.maps[0] = {0: (650, 2), 1: (img.home(1), 1)}
    return img


def of_one_barrier(img: Any, blocks: int, checks: int) -> f.Record:
    """A record that vouches for the blocks from 7 on itself, `checks` times for each."""
    places = [img.home(block) for block in range(7, 7 + blocks)]
    record = image.commit(2, one_barrier=True, deltas=f.encode_delta(7, blocks, 1, img.home(7), 2))
    record.checks = [(slot, xxh64(BLOCK, f.check_seed(image.FOLD, slot))) for slot in places for _ in range(checks)]
    return record


def opened(data: bytes, path: Path, work: Callable[[Volume], Any], **options: Any) -> Any:
    """What `work` says of the volume, for reading and for writing: the same."""
    path.write_bytes(data)
    answers = []
    for read_only in (True, False):
        with Volume.open(path, read_only=read_only, background=False, **options) as volume:
            answers.append(work(volume))
    assert answers[0] == answers[1]
    return answers[0]


def refused(data: bytes, path: Path, told: str) -> None:
    """Whoever opens it is told, and nothing of the file changes."""
    path.write_bytes(data)
    for read_only in (True, False):
        with pytest.raises(CorruptionError, match=told):
            Volume.open(path, read_only=read_only, background=False)
    assert path.read_bytes() == data


def fails(data: bytes, path: Path, told: str, work: Callable[[Volume], object]) -> None:
    """`work` with the volume, or already the open, is refused."""
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=told), Volume.open(path, background=False) as volume:
        work(volume)


def records(volume: Volume) -> int:
    return volume.engine.recovered["records"]


def test_a_log_that_is_full_to_its_last_byte_is_replayed_to_its_end(tmp_path: Path) -> None:
    img = sample()
    units = image.LOG_SLOTS * 4096 // 512
    img.records = [image.commit(2, deltas=f.encode_delta(5, 1, 1, img.home(5), 2))]
    img.records += [image.commit(2) for _ in range(units - 1)]
    assert opened(img.build(), tmp_path / "v", records) == units
    assert check_file(str(tmp_path / "v")).ok


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_last_record_of_one_barrier_counts_if_all_its_blocks_are_there(tmp_path: Path, written: int) -> None:
    img = sample()
    img.records = [image.commit(2), of_one_barrier(img, 2, 1)]
    img.build()
    for block in range(7, 7 + written):
        img.data[img.home(block) * 4096 : img.home(block) * 4096 + 4096] = BLOCK
    found = opened(bytes(img.data), tmp_path / "v", lambda volume: volume.pread(2 * 4096, 7 * 4096))
    assert found == (2 * BLOCK if written == 2 else bytes(2 * 4096))
    assert check_file(str(tmp_path / "v")).ok


def test_a_last_record_that_checks_a_block_twice_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.records = [of_one_barrier(img, 1, 2)]
    refused(img.build(), tmp_path / "v", "checks a block twice")


def test_a_superblock_over_the_log_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.build()
    img.write_superblock(image.LOG_FIRST + 2, generation=7)
    refused(bytes(img.data), tmp_path / "v", "superblock 7 was written over the commit log")


def test_records_whose_epochs_fall_are_refused(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(6), image.commit(4)]
    refused(img.build(), tmp_path / "v", "goes back to epoch 4 from 6")


def test_a_reclaim_that_goes_back_is_refused(tmp_path: Path) -> None:
    img = sample()
    deleted = [f.DeleteEvent(1), f.ReclaimEvent(1, 5)]
    img.records = [image.commit(2, events=deleted)]
    opened(img.build(), tmp_path / "v", records)
    img.records.append(image.commit(2, events=[f.ReclaimEvent(1, 4)]))
    refused(img.build(), tmp_path / "v", "goes back to block 4")


def test_a_file_larger_than_any_volume_is_refused(tmp_path: Path) -> None:
    """No file system here has such files: the table says that it is one."""

    class Huge(IOTable):
        def size(self, fd: int) -> int:
            return 2**62

    (tmp_path / "v").write_bytes(sample().build())
    with pytest.raises(CorruptionError, match="more than a volume can"):
        Volume.open(tmp_path / "v", background=False, io=Huge())


def test_an_open_that_meets_an_error_of_the_disk_says_so(tmp_path: Path) -> None:
    class Sick(IOTable):
        def size(self, fd: int) -> int:
            raise OSError(5, "Input/output error")

    (tmp_path / "v").write_bytes(sample().build())
    with pytest.raises(StorageError, match="opening failed: Input/output error"):
        Volume.open(tmp_path / "v", background=False, io=Sick())


def test_a_lineage_without_a_live_head_is_refused(tmp_path: Path) -> None:
    img = sample()
    encode = img.lineage_tree

    def without_head() -> f.Pointer:
        del img.lineage[0]
        return encode()

    img.lineage_tree = without_head
    refused(img.build(), tmp_path / "v", "no live head")


@pytest.mark.parametrize(
    ("following", "told"),
    [(9, "leads to 9, which does not exist"), (1, "leads to 1, which is none"), (5, "leads to 5, which is none")],
)
def test_a_chain_of_heads_that_leads_nowhere_or_back_is_refused(tmp_path: Path, following: int, told: str) -> None:
    img = sample()
    img.next_id = 6
    img.lineage[0].next_head = 5
    img.lineage[5] = f.LineageRecord(
        f.LINEAGE_HEAD, 5, "clone", 2, 300 * 4096, parent=1, frozen=1, number=1, origin=1, next_head=following
    )  # fmt: skip
    img.maps[5] = img.maps[1]
    refused(img.build(), tmp_path / "v", told)


# --- what a record may not say of what is there -----------------------------------------------------------------------
SNAPSHOT_OF_OLD_ID = f.SnapshotEvent(1, 2, 7, 7, "again")
IMPOSSIBLE = {
    "which does not exist": [f.DeleteEvent(9)],
    "whose data was not given up": [f.ReclaimEvent(1, 0)],
    "which was deleted": [f.DeleteEvent(1), f.DeleteEvent(1)],
    "which is one": [f.AnchorEvent(1), f.AnchorEvent(1)],
    "which is held": [f.HoldEvent(1, "audit"), f.DeleteEvent(1)],
    "snapshot 1 where 2 is next": [SNAPSHOT_OF_OLD_ID],
}


@pytest.mark.parametrize("told", IMPOSSIBLE)
def test_a_record_of_events_that_cannot_be_is_refused(tmp_path: Path, told: str) -> None:
    img = sample()
    img.records = [image.commit(3, events=IMPOSSIBLE[told])]
    data = img.build()
    assert not check_file("image", image.ImageIO(data)).ok
    refused(data, tmp_path / "v", told)


def test_events_of_the_policy_and_of_the_store_are_taken(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(2, events=[f.PolicyEvent(f.WHEN_FULL_GIVE_UP, 5, 0), f.StoreEvent(9)])]

    def work(volume: Volume) -> tuple[str, int]:
        return volume.policy().when_full, volume.policy().keep_newest

    assert opened(img.build(), tmp_path / "v", work) == ("give-up", 5)
    with Volume.open(tmp_path / "v", read_only=True, background=False) as volume:
        assert volume.policy().keep_newest == 5


def test_a_change_behind_the_end_of_the_volume_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(2, deltas=f.encode_delta(40000, 1, f.ENTRY_HOLE, 0, 2))]
    refused(img.build(), tmp_path / "v", "beyond the end of the volume")


def test_a_change_of_a_head_that_is_not_there_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(2, deltas=f.encode_delta(5, 1, f.ENTRY_HOLE, 0, 2, 9))]
    data = img.build()
    assert any("head 9, which does not exist" in p for p in check_file("image", image.ImageIO(data)).problems)
    path = tmp_path / "v"
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        Volume.open(path, background=False)
    assert path.read_bytes() == data


def test_a_record_that_follows_a_lost_superblock_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(2)]
    img.records[0].generation = 5
    data = img.build()
    assert any("generation 5" in problem for problem in check_file("image", image.ImageIO(data)).problems)
    refused(data, tmp_path / "v", "record 1 follows superblock 5, which is lost")


def test_a_confirmed_record_that_is_missing_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.build()
    img.write_superblock(0, tip_sequence=3, tip_checksum=7)
    refused(bytes(img.data), tmp_path / "v", "record 1 of the commit log is missing; it was confirmed")


def test_a_record_of_an_earlier_life_of_the_log_is_the_end_of_the_chain(tmp_path: Path) -> None:
    """Its sequence fits, its salt does not: it was never acknowledged by who wrote the newest superblock."""
    img = sample()
    img.records = [image.commit(2, deltas=f.encode_delta(1, 1, f.ENTRY_HOLE, 0, 2))]
    img.build()
    img.write_superblock(0, salt=img.salt + 1)
    (tmp_path / "v").write_bytes(img.data)
    with Volume.open(tmp_path / "v", background=False) as volume:
        assert records(volume) == 0


def test_a_region_of_homes_that_the_file_does_not_reach_is_refused_to_who_writes(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(2, size=400 * 4096, events=[
        f.RegionEvent(300, 700, 100), f.ResizeEvent(0, 400 * 4096, 2)])]  # fmt: skip
    (tmp_path / "v").write_bytes(img.build())
    with Volume.open(tmp_path / "v", read_only=True, background=False) as volume:
        assert volume.size == 400 * 4096
    with pytest.raises(CorruptionError, match="ends before a region of home slots"):
        Volume.open(tmp_path / "v", background=False)


def test_a_region_of_homes_over_the_log_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.records = [image.commit(2, events=[f.RegionEvent(300, image.LOG_FIRST, 100)])]
    data = img.build()
    told = check_file("image", image.ImageIO(data)).problems
    assert any(problem.startswith("record 1: superblock: ") for problem in told), told
    path = tmp_path / "v"
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        Volume.open(path, background=False)
    assert path.read_bytes() == data


def test_a_file_that_ends_before_what_the_superblock_needs_is_refused(tmp_path: Path) -> None:
    data = sample().build()
    refused(data[: 100 * 4096], tmp_path / "v", "it was cut short")


def test_a_volume_without_epochs_left_can_only_be_read(tmp_path: Path) -> None:
    img = sample()
    img.build()
    img.write_superblock(0, epoch=f.EPOCH_MAX - 5)
    (tmp_path / "v").write_bytes(img.data)
    with Volume.open(tmp_path / "v", read_only=True, background=False) as volume:
        assert volume.snapshots()[0].name == "s1"
    with pytest.raises(CorruptionError, match="no epochs or ids left"):
        Volume.open(tmp_path / "v", background=False)


def test_slots_that_are_used_behind_the_end_of_the_file_are_not_given_out(tmp_path: Path) -> None:
    img = sample(extra_used=tuple(range(700, 4000)))
    # A block of the snapshot needs another place.
    fails(img.build(), tmp_path / "v", "in use: it was cut short", lambda volume: volume.pwrite(b"x", 4096))


# --- what a lineage record may not say --------------------------------------------------------------------------------
def lineage_problem(img: Any, path: Path, told: str) -> None:
    """The checker reports something, and an open, or the first look at the snapshot, is refused."""
    data = img.build()
    assert not check_file("image", image.ImageIO(data)).ok
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=told), Volume.open(path, read_only=True, background=False) as volume:
        for snapshot in volume.snapshots():
            snapshot.pread(512, 0)


def test_a_record_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.lineage[2] = image.snapshot(3, 1)
    lineage_problem(img, tmp_path / "v", "lineage record 2 says that it is 3")


def test_a_record_of_an_id_that_was_not_given_out_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.lineage[5] = image.snapshot(5, 1, name="early")
    img.maps[5] = {}
    lineage_problem(img, tmp_path / "v", "lineage record 5 is there, and 2 is the next to be given out")


@pytest.mark.parametrize("member", [0, 1])
def test_a_map_too_small_for_its_size_is_refused(tmp_path: Path, member: int) -> None:
    img = sample(level=0)
    img.lineage[1 - member].size = 200 * 4096
    lineage_problem(img, tmp_path / "v", "has level 0, which does not span 300 blocks")


def test_a_map_that_is_a_run_behind_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    img = sample()
    map_tree = img.map_tree
    img.map_tree = lambda blocks, level, index: (
        f.Pointer(f.POINTER_RUN, 10, 2, 1, 0) if blocks is img.maps[1] else map_tree(blocks, level, index)
    )
    lineage_problem(img, tmp_path / "v", "is a run that ends behind slot 700")


def test_metadata_behind_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.lineage[1] = image.snapshot(1, 1, metadata_bytes=3, metadata_slot=5000, metadata_checksum=1)
    lineage_problem(img, tmp_path / "v", "metadata in slot 5000, behind the end of the file")


def test_metadata_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    img = sample()
    img.metadata[1] = b'{"why": "night"}'
    img.build()
    (tmp_path / "v").write_bytes(img.data)
    with Volume.open(tmp_path / "v", read_only=True, background=False) as volume:
        assert volume.get_snapshot("s1").metadata == {"why": "night"}
    img.data[img.lineage[1].metadata_slot * 4096] ^= 1
    fails(img.data, tmp_path / "v", "metadata is damaged", lambda volume: volume.get_snapshot("s1").metadata)


def branched(**of_the_second: Any) -> Any:
    """Two snapshots; the live volume stands on the first."""
    img = image.Image(epoch=4, next_id=3)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 4, 3, 1
    img.lineage[1] = image.snapshot(1, 1)
    img.lineage[2] = image.snapshot(2, 3, **{"parent": 1, **of_the_second})
    for member in (0, 1, 2):
        img.maps[member] = {0: (img.home(0), 1)}
    return img


def test_a_branch_point_under_reclaim_is_refused(tmp_path: Path) -> None:
    img = branched()
    img.lineage[1].flags, img.lineage[1].cursor = f.LINEAGE_DELETED, 0
    data = img.build()
    assert any("is being reclaimed, and more than one" in p for p in check_file("image", image.ImageIO(data)).problems)
    fails(data, tmp_path / "v", "branch point under reclaim", Volume.reclaim)


@pytest.mark.parametrize("parent", [0, 7])
def test_a_snapshot_on_a_head_or_on_nothing_is_refused(tmp_path: Path, parent: int) -> None:
    data = branched(parent=parent).build()
    assert not check_file("image", image.ImageIO(data)).ok

    def work(volume: Volume) -> None:
        volume.get_snapshot("s2").delete()
        volume.reclaim()

    fails(data, tmp_path / "v", "the lineage is broken at snapshot", work)


def test_a_child_that_is_older_than_what_it_stands_on_is_refused(tmp_path: Path) -> None:
    """Through empty anchors, a lineage that is a ring would be walked for ever."""
    img = branched(flags=f.LINEAGE_DELETED)
    img.lineage[1] = image.snapshot(1, 3, flags=f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, parent=2, root=f.hole(1))
    del img.maps[1]
    img.lineage[0].parent = 2
    data = img.build()
    assert not check_file("image", image.ImageIO(data)).ok
    fails(data, tmp_path / "v", "the lineage is broken at snapshot", Volume.reclaim)


def test_a_child_that_is_older_than_the_empty_anchor_it_stands_on_is_refused(tmp_path: Path) -> None:
    img = image.Image(epoch=5, next_id=4)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 5, 4, 3
    img.lineage[1] = image.snapshot(1, 1, flags=f.LINEAGE_DELETED)
    img.lineage[2] = image.snapshot(2, 4, flags=f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, parent=1, root=f.hole(1))
    img.lineage[3] = image.snapshot(3, 3, parent=2)
    for member in (0, 1, 3):
        img.maps[member] = {0: (img.home(0), 1)}
    data = img.build()
    assert not check_file("image", image.ImageIO(data)).ok
    fails(data, tmp_path / "v", "the lineage is broken at snapshot 3", Volume.reclaim)
