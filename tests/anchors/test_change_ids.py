"""Change ids: what a base can be, and what is said about one that is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume, list_backups, restore, verify_backup
from cowengine.backup.write import write_backup
from cowengine.errors import AnchorError, FullBackupRequired, NotFoundError, OutOfRangeError

BLOCK = 4096
SIZE = 64 * BLOCK
ROWS = [[BLOCK, BLOCK]]  # what changed since "base"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v", SIZE, background=False) as made:
        made.pwrite(b"a" * 4 * BLOCK, 0)
        made.snapshot("base")
        made.pwrite(b"b" * BLOCK, BLOCK)
        made.snapshot("target")
        yield made


def askers(volume: Volume) -> list[Callable[[Any], Any]]:
    return [volume.changed_extents, volume.get_snapshot("target").changed_extents]


@pytest.mark.parametrize("anchored", [False, True])
def test_a_snapshot_a_name_an_id_and_a_change_id_are_the_same_base(volume: Volume, anchored: bool) -> None:
    base = volume.get_snapshot("base")
    if anchored:
        base.to_anchor()
    for ask in askers(volume):
        for each in (base, base.name, base.id, base.change_id):
            assert ask(each).tolist() == ROWS


def test_a_base_of_another_type_is_a_usage_error(volume: Volume) -> None:
    for ask in askers(volume):
        for base in (None, True, 1.0, b"base", 0, -1, 1 << 80, ["base"], object()):
            with pytest.raises(OutOfRangeError):
                ask(base)
        for base in (99, "no such name"):
            with pytest.raises(NotFoundError):
                ask(base)


@pytest.mark.parametrize(
    "text", ["{id}/{epoch}/0000000000000000", "{id}/77/{tag}", "11111111-2222-3333-4444-555555555555/{epoch}/{tag}"]
)
def test_a_wrong_tag_an_unknown_epoch_and_another_volume_need_a_full_backup(volume: Volume, text: str) -> None:
    uuid, epoch, tag = volume.get_snapshot("base").change_id.split("/")
    for ask in askers(volume):
        with pytest.raises(FullBackupRequired):
            ask(text.format(id=uuid, epoch=epoch, tag=tag))


@pytest.mark.parametrize("anchored", [False, True])
def test_a_snapshot_of_another_volume_needs_a_full_backup(volume: Volume, tmp_path: Path, anchored: bool) -> None:
    with Volume.create(tmp_path / "other", SIZE) as other:
        foreign = other.snapshot("base")
        if anchored:
            foreign.to_anchor()
        assert (foreign.id, foreign.epoch) == (1, 1)  # as in the volume
        for ask in askers(volume):
            for base in (foreign, foreign.change_id):
                with pytest.raises(FullBackupRequired, match="another volume"):
                    ask(base)


def test_a_copy_of_the_file_that_went_its_own_way_does_not_pass_for_the_first_one(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.snapshot("base")
    shutil.copy(tmp_path / "v", tmp_path / "copy")
    with Volume.open(tmp_path / "v") as volume, Volume.open(tmp_path / "copy") as copy:
        volume.pwrite(b"x", 0)
        mine, its = volume.snapshot("mine"), copy.snapshot("its")
        assert mine.epoch == its.epoch
        assert copy.changed_extents(volume.get_snapshot("base")).tolist() == []  # taken before they parted
        with pytest.raises(FullBackupRequired):
            copy.changed_extents(mine)
        with pytest.raises(FullBackupRequired):
            volume.changed_extents(its.change_id)


def test_an_incremental_backup_whose_base_became_an_anchor_restores_to_the_byte(volume: Volume, tmp_path: Path) -> None:
    target = tmp_path / "target"
    base, latest = volume.get_snapshot("base"), volume.get_snapshot("target")
    write_backup(target, {"v": base}, kind="full")
    base.to_anchor()
    second = write_backup(target, {"v": latest}, kind="incremental")
    latest.to_anchor()
    volume.discard(0, BLOCK)
    volume.pwrite(b"c" * 100, 9 * BLOCK)
    newest = volume.snapshot("newest")
    third = write_backup(target, {"v": newest}, kind="incremental")
    differential = write_backup(target, {"v": newest}, kind="differential")
    assert second.bytes_written < SIZE // 4
    assert verify_backup(target).ok and len(list_backups(target)) == 4
    for backup in (third, differential):
        folder = tmp_path / f"restored-{backup.id}"
        restore(target, backup.id, folder)
        assert (folder / "v.raw").read_bytes() == newest.pread(SIZE, 0)


def test_an_anchor_cannot_be_backed_up(volume: Volume, tmp_path: Path) -> None:
    latest = volume.get_snapshot("target")
    write_backup(tmp_path / "target", {"v": volume.get_snapshot("base")}, kind="full")
    latest.to_anchor()
    with pytest.raises(AnchorError, match="'target' is an anchor"):
        write_backup(tmp_path / "target", {"v": latest}, kind="full")
    with pytest.raises(FullBackupRequired, match="'target' is an anchor"):
        write_backup(tmp_path / "target", {"v": latest}, kind="incremental")
    assert len(list_backups(tmp_path / "target")) == 1
