"""Every way there is to lose a snapshot, tried on one that is retained; and every clock that somebody could set."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from forked_child import told_in_child
from small_disk_table import SmallDisk

from cowengine import CowEngineError, NoSpaceError, RetentionError, Store, Volume
from cowengine.backup import list_backups, restore, write_backup
from cowengine.cli.main import main

SIZE = 1 << 20
BLOCK = 4096
UNTIL = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=400)).replace(microsecond=0)
COMMAND = [sys.executable, "-P", "-m", "cowengine"]


def retained(volume: Volume) -> None:
    volume.pwrite(b"kept", 0)
    volume.snapshot("one").retain_until = UNTIL
    volume.pwrite(b"over", 0)
    volume.snapshot("two")
    volume.pwrite(b"live", 0)
    volume.snapshot("newest")


def is_whole(volume: Volume) -> None:
    snapshot = volume.get_snapshot("one")
    assert snapshot.pread(4, 0) == b"kept" and snapshot.retain_until == UNTIL and not snapshot.is_anchor
    assert volume.check().ok
    with pytest.raises(RetentionError):
        snapshot.delete()


# -- one volume --------------------------------------------------------------------------------------------------------
def give_up_on_a_full_disk(path: Path) -> None:
    disk = SmallDisk()
    with Volume.open(path, io=disk, background=False) as volume:
        volume.policy(when_full="give-up", keep_newest=1)
        disk.free = 64
        with pytest.raises(NoSpaceError):
            for number in range(4 * SIZE // BLOCK):
                volume.pwrite(os.urandom(BLOCK), number * BLOCK % SIZE)
                volume.flush()
        assert [snapshot.name for snapshot in volume.snapshots()] == ["one", "newest"]
        disk.free = 1 << 40


def limit_of_snapshots(path: Path) -> None:
    with Volume.open(path) as volume:
        volume.policy(when_full="give-up", keep_newest=1, snapshot_bytes_max=4 * BLOCK)
        volume.discard(0, SIZE)
        for number in range(64):
            volume.pwrite(os.urandom(BLOCK), number % 4 * BLOCK)
            volume.snapshot(f"more {number}")
        assert len(volume.snapshots()) < 8


def roll_back(path: Path) -> None:
    with Volume.open(path) as volume:
        volume.rollback("two")
        volume.rollback("one")
        volume.rollback("two")


def shrink(path: Path) -> None:
    with Volume.open(path) as volume:
        volume.resize(BLOCK)
        volume.reclaim()
        volume.compact()


def delete_all_around(path: Path) -> None:
    with Volume.open(path) as volume:
        for snapshot in volume.snapshots():
            with suppress(RetentionError):
                snapshot.delete()
        volume.discard(0, SIZE)
        volume.reclaim()


def clone_and_delete(path: Path) -> None:
    with Volume.open(path) as volume:
        with volume.get_snapshot("one").clone("c") as clone:
            clone.pwrite(b"mine", 0)
            clone.snapshot("of the clone").retain_until = UNTIL
        volume.delete_head("c")
        volume.reclaim()
        with pytest.raises(RetentionError):
            volume.get_snapshot("of the clone").delete()
        assert volume.get_snapshot("of the clone").pread(4, 0) == b"mine"


def anchor(path: Path) -> None:
    with Volume.open(path) as volume, pytest.raises(RetentionError):
        volume.get_snapshot("one").to_anchor()


def repair_open(path: Path) -> None:
    with Volume.open(path) as volume:
        volume.check(repair=True)


def repair_superblock(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(BLOCK))
    Volume.repair(path)


def flatten(path: Path) -> None:
    for in_place in (False, True):
        with Volume.open(path) as volume, pytest.raises(CowEngineError, match="snapshots"):
            volume.flatten(in_place=in_place)


def adopt_over_it(path: Path) -> None:
    with pytest.raises(CowEngineError):
        Volume.adopt(path, raw=True)


def create_over_it(path: Path) -> None:
    with pytest.raises(CowEngineError):
        Volume.create(path, SIZE)


def undo(path: Path) -> None:
    with pytest.raises(CowEngineError):
        Volume.undo_adoption(path)


def release(path: Path) -> None:
    with Volume.open(path) as volume:
        snapshot = volume.get_snapshot("one")
        snapshot.hold("audit")
        snapshot.release()


def shorten(path: Path) -> None:
    with Volume.open(path) as volume:
        for date in (UNTIL - datetime.timedelta(days=1), datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)):
            with pytest.raises((RetentionError, CowEngineError)):
                volume.get_snapshot("one").retain_until = date


def kill_after_it(path: Path) -> None:
    def work() -> None:
        volume = Volume.open(path, background=False)
        volume.get_snapshot("two").delete()
        os.kill(os.getpid(), signal.SIGKILL)

    assert told_in_child(work) == "killed"


WAYS: dict[str, Callable[[Path], None]] = {
    "give up on a full disk": give_up_on_a_full_disk,
    "a limit of what snapshots hold": limit_of_snapshots,
    "rollback": roll_back,
    "shrink, reclaim and compact": shrink,
    "delete all around": delete_all_around,
    "delete a clone": clone_and_delete,
    "make it an anchor": anchor,
    "repair while open": repair_open,
    "repair a damaged superblock": repair_superblock,
    "flatten": flatten,
    "adopt the file": adopt_over_it,
    "create over it": create_over_it,
    "undo an adoption": undo,
    "end a hold": release,
    "shorten it": shorten,
    "a kill": kill_after_it,
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_loses_a_retained_snapshot(tmp_path: Path, way: str) -> None:
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        retained(volume)
    WAYS[way](tmp_path / "v")
    with Volume.open(tmp_path / "v") as volume:
        is_whole(volume)


# -- a store -----------------------------------------------------------------------------------------------------------
def delete_set(store: Store) -> None:
    with pytest.raises(RetentionError):
        store.get_snapshot_set("set").delete()


def delete_volume(store: Store) -> None:
    with pytest.raises(RetentionError):
        store.delete_volume("x")


def detach_and_attach(store: Store) -> None:
    store.attach(store.detach("x"), "x").close()


def rename(store: Store) -> None:
    store.rename_volume("x", "y")
    delete_volume_named(store, "y")
    store.rename_volume("y", "x")


def delete_volume_named(store: Store, name: str) -> None:
    with pytest.raises(RetentionError):
        store.delete_volume(name)


def restore_over_it(store: Store) -> None:
    target = Path(store.path).with_name("target")
    with store.open_volume("x") as volume:
        write_backup(target, {"x": volume.get_snapshot("two")}, kind="full")
    with pytest.raises(CowEngineError):
        restore(target, list_backups(target)[0].id, store)


def create_in_its_place(store: Store) -> None:
    with pytest.raises(CowEngineError):
        store.create_volume("x", SIZE)


STORE_WAYS: dict[str, Callable[[Store], None]] = {
    "delete the set": delete_set,
    "delete the volume": delete_volume,
    "detach and attach": detach_and_attach,
    "rename": rename,
    "restore over it": restore_over_it,
    "create in its place": create_in_its_place,
}


@pytest.mark.parametrize("way", STORE_WAYS)
def test_no_way_of_a_store_loses_a_retained_snapshot(tmp_path: Path, way: str) -> None:
    with Store.create(tmp_path / "store") as store:
        with store.create_volume("x", SIZE) as volume:
            retained(volume)
            store.snapshot(["x"], "set").snapshots["x"].retain_until = UNTIL
        STORE_WAYS[way](store)
    with Store.open(tmp_path / "store") as store:
        is_whole(store.open_volume("x"))
        assert store.get_snapshot_set("set").missing == [] and store.problems == []
    Store.rebuild(tmp_path / "store")
    with Store.open(tmp_path / "store", read_only=True) as store:
        assert store.open_volume("x").get_snapshot("set").retain_until == UNTIL


# -- the command line --------------------------------------------------------------------------------------------------
COMMANDS = {
    "snapshot delete": ["snapshot", "delete", "{}@one"],
    "snapshot anchor": ["snapshot", "anchor", "{}@one"],
    "volume delete": ["volume", "delete", "{}", "--with-snapshots"],
    "volume delete, for show": ["volume", "delete", "{}", "--with-snapshots", "--dry-run"],
    "a date that is past": ["snapshot", "retain", "{}@one", "--until", "1999-12-31"],
    "an earlier date": ["snapshot", "retain", "{}@one", "--until", str((UNTIL - datetime.timedelta(days=30)).date())],
    "a date too far": ["snapshot", "retain", "{}@one", "--until", "9999-12-31T23:59:59"],
    "a year too far": ["snapshot", "retain", "{}@one", "--until", "99999-12-31"],
    "a date that overflows its zone": ["snapshot", "retain", "{}@one", "--until", "9999-12-31T23:59:59-12:00"],
    "a date before all": ["snapshot", "retain", "{}@one", "--until", "0001-01-01T00:00:00+12:00"],
}


@pytest.mark.parametrize("where", ["file", "store"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_loses_a_retained_snapshot(tmp_path: Path, command: str, where: str) -> None:
    if where == "file":
        address = str(tmp_path / "v")
        with Volume.create(address, SIZE) as volume:
            retained(volume)
    else:
        address = f"{tmp_path / 'store'}:x"
        with Store.create(tmp_path / "store") as store, store.create_volume("x", SIZE) as volume:
            retained(volume)
    assert main([word.format(address) for word in COMMANDS[command]]) in (1, 2, 5)
    if where == "file":
        with Volume.open(address) as volume:
            is_whole(volume)
    else:
        with Store.open(tmp_path / "store") as store:
            is_whole(store.open_volume("x"))


# -- dates and clocks --------------------------------------------------------------------------------------------------
LARGEST = datetime.datetime(2262, 4, 11, 23, 47, 16, tzinfo=datetime.UTC)


@pytest.mark.parametrize("zone", [-23, 0, 23])
def test_the_ends_of_what_dates_can_say_are_refused_or_kept_exactly(tmp_path: Path, zone: int) -> None:
    there = datetime.timezone(datetime.timedelta(hours=zone))
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("one")
        for date in (datetime.datetime.max, datetime.datetime.min, datetime.datetime(2262, 4, 13)):
            with pytest.raises(CowEngineError):
                snapshot.retain_until = date.replace(tzinfo=there)
        assert snapshot.retain_until is None
        snapshot.retain_until = LARGEST.astimezone(there) - datetime.timedelta(days=2)
    with Volume.open(tmp_path / "v") as volume:
        assert volume.get_snapshot("one").retain_until == LARGEST - datetime.timedelta(days=2)
        with pytest.raises(RetentionError):
            volume.get_snapshot("one").delete()
        assert volume.check().ok


@pytest.mark.needs("faketime")
@pytest.mark.parametrize("shift", ["-400d", "+800d", "+200y"])
def test_a_process_with_another_time_of_day_deletes_nothing(tmp_path: Path, shift: str) -> None:
    """Also not by opening, checking and closing it again and again, which notes the time."""
    with Volume.create(tmp_path / "v", SIZE) as volume:
        retained(volume)
    environment = {**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    for words in (["snapshot", "create", f"{tmp_path / 'v'}@new"], ["snapshot", "delete", f"{tmp_path / 'v'}@one"]):
        run = subprocess.run(["faketime", "-f", shift, *COMMAND, *words], env=environment, capture_output=True)
        assert run.returncode == (0 if "create" in words else 5), run.stderr
    with Volume.open(tmp_path / "v") as volume:
        is_whole(volume)


@pytest.mark.privileged("unshare")
def test_a_time_namespace_ends_no_retention(tmp_path: Path) -> None:
    """There CLOCK_BOOTTIME is whatever its maker says, and no rights are needed to make one."""
    with Volume.create(tmp_path / "v", SIZE) as volume:
        retained(volume)
    ahead = ["unshare", "--time", "--boottime", str(800 * 86400), "--fork"]
    for words in (["snapshot", "create", f"{tmp_path / 'v'}@new"], ["snapshot", "delete", f"{tmp_path / 'v'}@one"]):
        run = subprocess.run([*ahead, *COMMAND, *words], capture_output=True, text=True)
        assert run.returncode == (0 if "create" in words else 5), run.stderr
    with Volume.open(tmp_path / "v") as volume:
        is_whole(volume)


def test_an_older_copy_brings_no_snapshot_of_the_newer_one_back_to_be_deleted(tmp_path: Path) -> None:
    """A copy made before the retention is another file: what is in the one is not ended by the other."""
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"kept", 0)
        volume.snapshot("one")
    shutil.copy(tmp_path / "v", tmp_path / "before")
    with Volume.open(tmp_path / "v") as volume:
        volume.get_snapshot("one").retain_until = UNTIL
    with Volume.open(tmp_path / "before") as volume:
        volume.get_snapshot("one").delete()
    with Volume.open(tmp_path / "v") as volume:
        is_whole(volume)
