"""What mutants of the engine survived (tests/torture/mutants.py): each of these fails for a small change that no other
test had noticed.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.engine import create
from cowengine.engine.check import check_file
from cowengine.engine.check_trees import PROBLEMS_MAX, Problems
from cowengine.engine.flatten import _typed
from cowengine.engine.forecast import SAMPLES_MAX, Forecast
from cowengine.engine.log import CommitLog
from cowengine.engine.salvage import Lost, _joined
from cowengine.errors import ClosedError, CorruptionError, NotFoundError

_spec = importlib.util.spec_from_file_location("check_image", Path(__file__).parents[1] / "check" / "image.py")
assert _spec is not None and _spec.loader is not None
image = sys.modules.get("check_image") or importlib.util.module_from_spec(_spec)
if "check_image" not in sys.modules:
    sys.modules["check_image"] = image
    _spec.loader.exec_module(image)

MIB = 1 << 20
BLOCK = 4096


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v", 4 * MIB, background=False) as created:
        yield created


def problems_of(img: image.Image) -> list[str]:
    return check_file("image", image.ImageIO(img.build())).problems


# -- the checker -------------------------------------------------------------------------------------------------------
def shared(block: int, birth: int) -> image.Image:
    """A head that has a block of this birth, on a snapshot of epoch 1 that has nothing at all."""
    img = image.Image(epoch=2, next_id=2)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 2, 1, 1
    img.lineage[1] = image.snapshot(1, 1)
    img.maps[1], img.maps[0] = {}, {block: (650, birth)}
    return img


@pytest.mark.parametrize("block", [0, 261])
def test_what_is_older_than_an_empty_snapshot_below_is_reported_wherever_it_lies(block: int) -> None:
    assert problems_of(shared(block, 2)) == []
    (problem,) = problems_of(shared(block, 1))
    assert f"head 0 maps blocks {block} to {block}, which are older than snapshot 1" in problem


def test_a_confirmed_record_stays_whatever_its_blocks_hold_now() -> None:
    img = image.Image(epoch=1, next_id=1)
    record = image.commit(1, one_barrier=True, deltas=f.encode_delta(7, 1, 1, img.home(7), 1))
    record.checks = [(img.home(7), xxh64(b"\x5a" * BLOCK, f.check_seed(image.FOLD, img.home(7))))]
    img.records = [record]
    img.build()
    assert check_file("image", image.ImageIO(bytes(img.data))).counts["dropped"] == 1
    last = f.record_checksum(f.encode_record(record, image.FOLD))
    img.write_superblock(0, tip_sequence=1, tip_checksum=last)
    report = check_file("image", image.ImageIO(bytes(img.data)))
    assert report.counts["dropped"] == 0 and report.counts["records"] == 1, report


@pytest.mark.parametrize("generation", [2, 3])
def test_no_more_than_one_superblock_can_be_lost(generation: int, tmp_path: Path) -> None:
    img = image.Image(epoch=1, next_id=1)
    img.records = [image.commit(1), image.commit(1)]
    img.records[1].generation = generation
    (tmp_path / "v").write_bytes(img.build())
    if generation == 2:
        assert problems_of(img) == []
        Volume.open(tmp_path / "v", background=False).close()
        return
    assert any("follows superblock generation 3" in problem for problem in problems_of(img))
    with pytest.raises(CorruptionError, match="follows superblock 3, which is lost"):
        Volume.open(tmp_path / "v", background=False)


def test_a_slot_with_two_blocks_is_reported_also_behind_a_shorter_extent() -> None:
    img = image.Image(epoch=3, next_id=3)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 3, 2, 2
    img.lineage[1], img.lineage[2] = image.snapshot(1, 1), image.snapshot(2, 2, 1)
    img.maps[1], img.maps[2] = {}, {0: (650, 2), 1: (651, 2)}
    img.maps[0] = {0: (650, 2), 5: (651, 3)}
    assert any("slot 651 holds block 5 of epoch 3" in problem for problem in problems_of(img))


def test_a_record_that_names_another_before_it_is_none_of_the_chain(tmp_path: Path) -> None:
    img = image.Image(epoch=1, next_id=1)
    img.records = [image.commit(1), image.commit(1)]
    img.build()
    img.records[1].previous ^= 1
    other = f.encode_record(img.records[1], image.FOLD)
    at = image.LOG_FIRST * BLOCK + 512
    img.data[at : at + len(other)] = other
    assert any("chain ends after 1" in each for each in check_file("image", image.ImageIO(bytes(img.data))).problems)
    (tmp_path / "v").write_bytes(img.data)
    with pytest.raises(CorruptionError, match="what leads to it is not"):
        Volume.open(tmp_path / "v", background=False)


def test_a_last_record_that_is_dropped_leaves_the_log_where_the_one_before_it_ends(tmp_path: Path) -> None:
    img = image.Image(epoch=1, next_id=1)
    dropped = image.commit(1, one_barrier=True, deltas=f.encode_delta(7, 1, 1, img.home(7), 1))
    dropped.checks = [(img.home(7), 1)]
    img.records = [image.commit(1), dropped]
    (tmp_path / "v").write_bytes(img.build())
    with Volume.open(tmp_path / "v", read_only=True, background=False) as volume:
        log = volume.engine.log
        assert (log.sequence, log.position) == (1, 512)


def test_an_empty_anchor_on_which_two_stand_is_reported() -> None:
    img = image.Image(epoch=3, next_id=3)
    img.lineage[0].epoch, img.lineage[0].frozen, img.lineage[0].parent = 3, 2, 2
    img.lineage[1] = image.snapshot(1, 1, flags=f.LINEAGE_ANCHOR | f.LINEAGE_EMPTY, root=f.hole(1))
    img.lineage[2] = image.snapshot(2, 2, 1)
    img.maps[2] = {}
    assert problems_of(img) == []
    img.lineage[0].parent = 1
    assert any("more than one line of data goes through it" in problem for problem in problems_of(img))


def test_a_list_of_problems_says_once_that_there_are_more() -> None:
    problems = Problems()
    for number in range(PROBLEMS_MAX + 5):
        problems.add(f"problem {number}")
    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[PROBLEMS_MAX - 1 :] == [
        f"problem {PROBLEMS_MAX - 1}", f"more than {PROBLEMS_MAX} problems; the rest is not listed",
    ]  # fmt: skip


def test_what_there_is_is_counted_in_blocks_of_the_volume(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 4 * MIB, block_size=8192, background=False) as volume:
        volume.pwrite(b"x" * 3 * 8192, 0)
        volume.flush()
        counts = volume.check().counts
        assert (counts["blocks"], counts["clones"], counts["snapshots"]) == (3, 0, 0)
        volume.snapshot("one").clone("two").close()
        counts = volume.check().counts
        assert (counts["blocks"], counts["clones"], counts["snapshots"]) == (3, 1, 1)


# -- what an open finds ------------------------------------------------------------------------------------------------
def test_the_clock_of_a_retention_goes_on_from_the_log_alone(volume: Volume, tmp_path: Path) -> None:
    engine = volume.engine
    engine.checkpoint()
    assert (engine.superblock.clock_ns, engine.superblock.clock_boot_ns) == (0, 0)
    assert engine.superblock.clock_boot_id == bytes(16)
    snapshot = volume.snapshot("kept")
    snapshot.retain_until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    shutil.copy(volume.path, tmp_path / "crashed")
    with Volume.open(tmp_path / "crashed", background=False) as crashed:
        assert crashed.engine.retention.now_ns() >= engine.retention.now_ns() - 60 * 10**9 > 0


# -- space and memory --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "log"), [(MIB, 256 << 10), (16 * MIB - 512, 256 << 10), (16 * MIB, 4 * MIB)])
def test_a_large_volume_has_a_large_log(size: int, log: int) -> None:
    assert create.default_log_size(size) == log


def test_behind_a_gap_between_homes_the_search_for_space_goes_on(volume: Volume) -> None:
    volume.resize(8 * MIB)
    allocator = volume.engine.allocator
    allocator.runway(1000)  # some of it lies behind the homes that came last
    (gap,) = allocator._gaps
    allocator._cursor = gap[1]
    start, end = allocator._piece()
    assert gap[1] < allocator._tail_start <= start < end


def test_what_the_reserve_does_not_need_is_free_again(volume: Volume) -> None:
    engine = volume.engine
    allocator, slots = engine.allocator, engine.path.slots
    runs = allocator.take(40)
    short = allocator._reserve_slots - sum(count for _, count in allocator._reserve)
    assert 0 <= short < 40
    allocator.recycle(runs)
    taken = [slot for first, count in runs for slot in range(first, first + count)]
    assert sum(slots.count_busy(slot, slot + 1) for slot in taken) == short


def test_the_nodes_of_a_snapshot_go_when_nobody_has_read_it_since_the_last_time(volume: Volume) -> None:
    volume.pwrite(b"x", 0)
    snapshot = volume.snapshot("one")
    volume.pwrite(b"y", 0)
    lineage = volume.engine.lineage
    volume.engine.checkpoint()
    assert snapshot.pread(1, 0) == b"x"
    number = next(iter(lineage.loaded_roots))
    lineage.unload_roots()
    assert number in lineage.loaded_roots
    lineage.unload_roots()
    assert number not in lineage.loaded_roots
    assert snapshot.pread(1, 0) == b"x"


def test_space_is_asked_for_once_a_second_at_most(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    space, asked = volume.engine.space, []
    disk = space._disk
    monkeypatch.setattr(space, "_disk", lambda: asked.append(1) or disk())
    space.look(now=True)
    for _ in range(10):
        space.look()
    assert len(asked) <= 2


def test_a_forecast_takes_no_sample_before_it_is_due() -> None:
    forecast = Forecast()
    forecast.add(0.0, 0)
    forecast.add(forecast.spacing / 2, 1000)
    assert forecast.bytes_a_minute(60.0, 600) == 600 and len(forecast._samples) == 1


def test_a_forecast_of_many_samples_looks_at_every_second_one(volume: Volume) -> None:
    forecast = Forecast()
    for second in range(SAMPLES_MAX + 1):
        forecast.add(float(second), second)
    assert forecast.spacing == 2.0 and len(forecast._samples) == SAMPLES_MAX // 2 + 1


def test_a_record_has_its_place_in_the_ring_also_behind_the_first_turn(volume: Volume) -> None:
    log = CommitLog(volume.engine.io, volume.engine.fd, 2, 4, 9)
    for turn in range(3):
        log.position = turn * log.size + 1024
        assert log.place(512) == log.position
        log.position = turn * log.size + log.size - 512
        assert log.place(512) == log.position and log.place(513) == (turn + 1) * log.size


# -- the rest ----------------------------------------------------------------------------------------------------------
def test_what_is_lost_for_two_reasons_is_told_apart() -> None:
    lost = [Lost(8, 8, "torn"), Lost(0, 8, "torn"), Lost(16, 8, "gone"), Lost(32, 8, "gone")]
    assert _joined(lost) == [Lost(0, 16, "torn"), Lost(16, 8, "gone"), Lost(32, 8, "gone")]


def test_a_directory_that_is_not_there_is_what_a_copy_says() -> None:
    for error in (FileNotFoundError(2, "no"), NotADirectoryError(20, "no")):
        told = _typed(error, "/nowhere/image", 1)
        assert isinstance(told, NotFoundError) and "/nowhere" in str(told) and "image" not in str(told)
    already = NotFoundError("the snapshot was deleted")
    assert _typed(already, "/nowhere/image", 1) is already


def test_a_volume_that_was_closed_is_free_although_a_child_still_has_its_file(volume: Volume) -> None:
    kept = os.dup(volume.engine.fd)  # as in the child of a fork
    try:
        volume.close()
        Volume.open(volume.path, background=False).close()
    finally:
        os.close(kept)


def test_a_clone_that_was_closed_is_not_changed(volume: Volume) -> None:
    clone = volume.snapshot("one").clone("two")
    head = clone._head
    clone.close()
    with pytest.raises(ClosedError):
        volume.engine.resize(MIB, head)
    with pytest.raises(ClosedError):
        volume.engine.snapshot("of two", b"", head)
