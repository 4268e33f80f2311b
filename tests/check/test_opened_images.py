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
