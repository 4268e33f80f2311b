"""A full disk under a store, its sets, a backup target and a restore: typed, all or nothing, and room helps."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from small_disk import MIB, Disk

from cowengine import Volume
from cowengine.backup import delete_backup, list_backups, restore, verify_backup
from cowengine.backup.write import write_backup
from cowengine.errors import NoSpaceError
from cowengine.store import Store

SIZE = 2 * MIB
BLOCK = 4096
RANDOM = random.Random(7)


def made(disk: Disk, contents: dict[str, bytes], **options: Any) -> Store:
    """A store on the disk with two volumes."""
    store = Store.create(disk.path / "store", io=disk.io, background=False, **options)
    for name in ("a", "b"):
        contents[name] = RANDOM.randbytes(SIZE)
        volume = store.create_volume(name, SIZE)
        volume.pwrite(contents[name], 0)
        volume.flush()
    return store


def test_a_store_that_has_no_room_is_not_made(disk: Disk) -> None:
    for left in (0, BLOCK, 4 * BLOCK):
        disk.fill(left)
        with pytest.raises(NoSpaceError):
            Store.create(disk.path / "store", io=disk.io, log_size=1 << 20)
        assert not (disk.path / "store").exists()
    disk.clear()
    Store.create(disk.path / "store", io=disk.io).close()


def test_a_set_on_a_full_disk_is_whole_or_not_there(disk: Disk) -> None:
    live: dict[str, bytes] = {}
    sets: dict[str, dict[str, bytes]] = {}
    with made(disk, live) as store:
        store.snapshot(["a", "b"], "first")
        sets["first"] = dict(live)
        disk.fill(6 * BLOCK)
        with pytest.raises(NoSpaceError):
            for number in range(1000):
                for name in ("a", "b"):
                    data = RANDOM.randbytes(9000)
                    offset = RANDOM.randrange(SIZE - len(data))
                    store.open_volume(name).pwrite(data, offset)
                    live[name] = live[name][:offset] + data + live[name][offset + len(data) :]
                store.snapshot(["a", "b"], f"set {number}")
                sets[f"set {number}"] = dict(live)
        assert store.open_volume("a").pread(SIZE, 0)
        check_sets(store, sets)
    with Store.open(disk.path / "store", io=disk.io, background=False) as store:
        check_sets(store, sets)
        # sets can be deleted at 100 %, which makes room
        disk.fill()
        for found in store.snapshot_sets():
            if found.name != "first":
                found.delete()
        disk.clear()
        store.open_volume("b").pwrite(b"room", 0)
        store.snapshot(["a", "b"], "afterwards")
    with Store.open(disk.path / "store", io=disk.io, background=False) as store:
        report = store.check()
        assert report.ok, report.problems
        check_sets(store, {"first": sets["first"]})
        assert {found.name for found in store.snapshot_sets()} == {"first", "afterwards"}


def check_sets(store: Store, sets: dict[str, dict[str, bytes]]) -> None:
    found = {found.name: found for found in store.snapshot_sets()}
    assert sets.keys() <= found.keys()
    for name, contents in sets.items():
        assert found[name].snapshots.keys() == contents.keys()
        for member, snapshot in found[name].snapshots.items():
            assert snapshot.pread(SIZE, 0) == contents[member], f"{member} in {name} is wrong"
    for name in found.keys() - sets.keys():
        assert len(found[name].snapshots) == 2, f"set {name} is not whole"


def test_a_volume_or_document_that_has_no_room_leaves_the_store_as_it_was(disk: Disk) -> None:
    live: dict[str, bytes] = {}
    with made(disk, live) as store:
        disk.fill()
        with pytest.raises(NoSpaceError):
            store.create_volume("c", SIZE)
        with pytest.raises(NoSpaceError):
            store.put_document("note", "x", {"text": "y" * 100_000})
        assert store.volumes() == ["a", "b"]
        assert store.documents("note") == []
        for name in live:
            assert store.open_volume(name).pread(SIZE, 0) == live[name]
        disk.clear()
        store.create_volume("c", SIZE)
        store.put_document("note", "x", {"text": "y"})
        assert store.check().ok
    with Store.open(disk.path / "store", io=disk.io, background=False) as store:
        assert store.volumes() == ["a", "b", "c"]
        assert store.documents("note") == ["x"]


def test_a_backup_that_has_no_room_leaves_the_target_as_it_was(disk: Disk, tmp_path: Path) -> None:
    target = disk.path / "target"
    target.mkdir()
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(RANDOM.randbytes(SIZE), 0)
        snapshot = volume.snapshot("one")
        full = write_backup(target, {"v": snapshot}, kind="full", io=disk.io)
        volume.pwrite(RANDOM.randbytes(SIZE), 0)
        for left in (0, 2 * BLOCK, MIB):
            disk.fill(left)
            with pytest.raises(NoSpaceError):
                write_backup(target, {"v": volume.snapshot(f"left {left}")}, kind="incremental", io=disk.io)
            assert [backup.id for backup in list_backups(target, io=disk.io)] == [full.id]
            assert verify_backup(target, io=disk.io).ok
            disk.clear()
        second = write_backup(target, {"v": volume.snapshot("two")}, kind="incremental", io=disk.io)
        assert second.base == full.id
        assert verify_backup(target, io=disk.io).ok
        disk.fill()
        delete_backup(target, second.id, io=disk.io)  # works at 100 %
        assert disk.free() >= SIZE - 20 * BLOCK
        assert verify_backup(target, io=disk.io).ok


LITTLE = (0, 2 * BLOCK, MIB)


def one_backup(path: Path, contents: bytes) -> tuple[Path, str]:
    """A target with one full backup, on a disk with room."""
    target = path / "target"
    target.mkdir()
    with Volume.create(path / "v", SIZE) as volume:
        volume.pwrite(contents, 0)
        return target, write_backup(target, {"v": volume.snapshot("one")}, kind="full").id


def test_a_restore_into_a_folder_that_has_no_room_leaves_nothing(disk: Disk, tmp_path: Path) -> None:
    contents = RANDOM.randbytes(SIZE)
    target, backup = one_backup(tmp_path, contents)
    folder = disk.path / "folder"
    folder.mkdir()
    for left in LITTLE:
        disk.fill(left)
        with pytest.raises(NoSpaceError):
            restore(target, backup, folder, io=disk.io)
        assert os.listdir(folder) == []
    disk.clear()
    restore(target, backup, folder, io=disk.io)
    assert (folder / "v.raw").read_bytes() == contents


def test_a_restore_into_a_store_that_has_no_room_leaves_nothing(disk: Disk, tmp_path: Path) -> None:
    contents = RANDOM.randbytes(SIZE)
    target, backup = one_backup(tmp_path, contents)
    with Store.create(disk.path / "store", io=disk.io, background=False) as store:
        for left in LITTLE:
            disk.fill(left)
            with pytest.raises(NoSpaceError):
                restore(target, backup, store, io=disk.io)
            assert store.volumes() == []
        disk.clear()
        restore(target, backup, store, io=disk.io)
        assert store.open_volume("v").pread(SIZE, 0) == contents
        assert store.check().ok
