"""Readers of a volume that another process owns: what they see, and what they hold."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from other_process import (
    BLOCK,
    LOG,
    SIZE,
    Failed,
    OtherProcess,
    is_exact,
    made,
    snapshot_with_digest,
    whole,
    write_some,
)

from cowengine import Snapshot, Volume
from cowengine.backup import restore, write_backup
from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError, ClosedError, CorruptionError, NotFoundError, ReadOnlyError


def test_a_reader_sees_each_snapshot_as_soon_as_it_was_taken_and_none_that_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "v"
    rng, live = random.Random(1), bytearray(SIZE)
    with Volume.create(path, SIZE, log_size=LOG) as owner, Volume.open(path, read_only=True) as reader:
        names: list[str] = []
        for number in range(60):
            write_some(owner, rng, live)
            snapshot_with_digest(owner, f"s{number}", live)
            names.append(f"s{number}")
            if number % 3 == 2:
                owner.get_snapshot(names.pop(rng.randrange(len(names)))).delete()
            assert [snapshot.name for snapshot in reader.snapshots()] == names
            assert is_exact(reader.get_snapshot(rng.choice(names)))
        assert owner.check().ok


def test_what_a_reader_says_of_a_snapshot_is_what_the_owner_says(tmp_path: Path) -> None:
    states = made(tmp_path / "v")
    with Volume.open(tmp_path / "v") as owner, Volume.open(tmp_path / "v", read_only=True) as reader:
        assert (reader.id, reader.size, reader.block_size) == (owner.id, owner.size, owner.block_size)
        for mine, theirs in zip(reader.snapshots(), owner.snapshots(), strict=True):
            assert mine == theirs and mine.metadata == theirs.metadata and mine.created == theirs.created
            assert whole(mine) == whole(theirs) == states[mine.name]
            assert mine.open().readall() == states[mine.name]
            assert mine.allocated_extents().tolist() == theirs.allocated_extents().tolist()
            for base in owner.snapshots():
                assert mine.changed_extents(base).tolist() == theirs.changed_extents(base.change_id).tolist()
        buffer = bytearray(100)
        assert reader.get_snapshot(2).pread_into(buffer, 50) == 100 and buffer == states["s1"][50:150]
        assert [snapshot.name for snapshot in reader.snapshots(1, 1)] == ["s1"]


LIVE: dict[str, Callable[[Volume], object]] = {
    "pread": lambda volume: volume.pread(1, 0),
    "pread_into": lambda volume: volume.pread_into(bytearray(1), 0),
    "allocated_extents": lambda volume: volume.allocated_extents(),
    "changed_extents": lambda volume: volume.changed_extents("s0"),
    "check": lambda volume: volume.check(),
}
CHANGES: dict[str, Callable[[Volume], object]] = {
    "pwrite": lambda volume: volume.pwrite(b"x", 0),
    "discard": lambda volume: volume.discard(0, BLOCK),
    "flush": lambda volume: volume.flush(),
    "snapshot": lambda volume: volume.snapshot("new"),
    "delete": lambda volume: volume.get_snapshot("s0").delete(),
    "rollback": lambda volume: volume.rollback("s0"),
    "reclaim": lambda volume: volume.reclaim(),
}


def test_the_live_volume_of_an_owner_cannot_be_read_and_nothing_be_changed(tmp_path: Path) -> None:
    made(tmp_path / "v")
    with Volume.open(tmp_path / "v"):
        before = (tmp_path / "v").read_bytes()
        with Volume.open(tmp_path / "v", read_only=True) as reader:
            for name, call in LIVE.items():
                with pytest.raises(BusyError, match="another process"):
                    call(reader)
                    pytest.fail(f"{name} of the live volume worked")
            for name, call in CHANGES.items():
                with pytest.raises(ReadOnlyError):
                    call(reader)
                    pytest.fail(f"{name} worked")
            reader.stats()
        assert (tmp_path / "v").read_bytes() == before
        for call in (*LIVE.values(), Volume.snapshots, lambda volume: volume.get_snapshot("s0")):
            with pytest.raises(ClosedError):
                call(reader)


@pytest.mark.parametrize("end", ["drop", "close", "kill"])
def test_what_a_reader_holds_cannot_be_deleted_until_it_lets_go(tmp_path: Path, end: str) -> None:
    path = tmp_path / "v"
    made(path)
    with Volume.open(path, background=False) as owner, OtherProcess() as other:
        other.call("open", str(path), True)
        assert other.call("names") == ["s0", "s1", "s2"]
        owner.get_snapshot("s0").delete()  # listing holds nothing
        with pytest.raises(Failed, match="NotFoundError"):
            other.call("hold", "s0")
        other.call("hold", "s1")
        for _ in range(2):
            with pytest.raises(BusyError, match="'s1' cannot be given back: another process is reading it"):
                owner.get_snapshot("s1").delete()
        owner.get_snapshot("s2").delete()
        for number in range(60):
            owner.pwrite(bytes([number % 251]) * BLOCK, number * 7 % 256 * BLOCK)
            owner.flush()
        assert other.call("exact", "s1")
        other.call("drop", "s1") if end == "drop" else other.call("close") if end == "close" else other.kill()
        owner.get_snapshot("s1").delete()
        assert owner.snapshots() == [] and owner.stats()["reclaims_pending"] == 0
        assert owner.check().ok


def test_two_holders_of_one_snapshot_let_go_one_after_the_other(tmp_path: Path) -> None:
    made(tmp_path / "v")
    with Volume.open(tmp_path / "v") as owner, Volume.open(tmp_path / "v", read_only=True) as reader:
        one, two = reader.get_snapshot("s1"), reader.snapshots()[1]
        two.pread(1, 0)
        del one
        gc.collect()
        with pytest.raises(BusyError):
            owner.get_snapshot("s1").delete()
        del two
        gc.collect()
        owner.get_snapshot("s1").delete()


def test_a_snapshot_that_was_listed_and_then_deleted_is_not_found(tmp_path: Path) -> None:
    made(tmp_path / "v")
    with Volume.open(tmp_path / "v") as owner, Volume.open(tmp_path / "v", read_only=True) as reader:
        listed = reader.snapshots()[0]
        owner.get_snapshot("s0").delete()
        for call in (lambda: listed.pread(1, 0), lambda: listed.allocated_extents(), lambda: listed.open()):
            with pytest.raises(NotFoundError):
                call()
        assert listed.name == "s0"


class Slow(IOTable):
    """Stops in a barrier, when asked to, until it may go on."""

    def __init__(self) -> None:
        self.stops = False
        self.stopped, self.go_on = threading.Event(), threading.Event()

    def fdatasync(self, fd: int) -> None:
        if self.stops:
            self.stopped.set()
            self.go_on.wait()
        super().fdatasync(fd)


def test_a_snapshot_whose_barrier_has_not_returned_is_not_believed(tmp_path: Path) -> None:
    io = Slow()
    with Volume.create(tmp_path / "v", SIZE, io=io) as owner, Volume.open(tmp_path / "v", read_only=True) as reader:
        io.stops = True
        taking = threading.Thread(target=owner.snapshot, args=("s",))
        taking.start()
        io.stopped.wait()
        assert reader.snapshots() == []
        with Volume.open(tmp_path / "v", read_only=True) as late:
            assert late.snapshots() == []
        io.go_on.set()
        taking.join()
        assert [snapshot.name for snapshot in reader.snapshots()] == ["s"]


def test_a_reader_believes_what_an_owner_that_was_killed_said_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "v"
    made(path)
    with OtherProcess() as owner:
        owner.call("open", str(path), False)
        with Volume.open(path, read_only=True) as reader:
            with pytest.raises(Failed, match="died"):
                owner.call("die_in_barrier_of", "snapshot", "doubtful")
            assert [snapshot.name for snapshot in reader.snapshots()] == ["s0", "s1", "s2"]
            # Nobody owns it: this reader syncs the file and may believe what it then reads.
            with Volume.open(path, read_only=True) as alone:
                assert [snapshot.name for snapshot in alone.snapshots()] == ["s0", "s1", "s2", "doubtful"]
                assert alone.pread(SIZE, 0) == whole(alone.get_snapshot("doubtful"))
            Volume.open(path).close()
            assert [snapshot.name for snapshot in reader.snapshots()] == ["s0", "s1", "s2", "doubtful"]


def test_a_snapshot_that_a_reader_took_up_while_its_delete_was_in_doubt_is_reclaimed_when_it_lets_go(
    tmp_path: Path,
) -> None:
    path = tmp_path / "v"
    states = made(path)
    with OtherProcess() as first:
        first.call("open", str(path), False)
        with Volume.open(path, read_only=True) as reader:
            with pytest.raises(Failed, match="died"):
                first.call("die_in_barrier_of", "delete", "s1")
            held = reader.get_snapshot("s1")
            with Volume.open(path, background=False) as owner:
                assert [snapshot.name for snapshot in owner.snapshots()] == ["s0", "s2"]
                owner.get_snapshot("s2").delete()
                owner.reclaim()
                assert owner.stats()["reclaims_pending"] == 1
                for number in range(60):
                    owner.pwrite(bytes([number % 251]) * BLOCK, number * 7 % 256 * BLOCK)
                    owner.flush()
                assert whole(held) == states["s1"]
                del held
                gc.collect()
                owner.reclaim()
                assert owner.stats()["reclaims_pending"] == 0
                assert owner.check().ok


def test_a_reader_goes_on_under_one_owner_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "v"
    states = made(path)
    owner = Volume.open(path)
    with Volume.open(path, read_only=True) as reader:
        held = reader.get_snapshot("s1")
        for name in ("one", "two", "three"):
            owner.snapshot(name)
            owner.close()
            owner = Volume.open(path)
            with pytest.raises(BusyError):
                owner.get_snapshot("s1").delete()
            assert whole(held) == states["s1"]
        assert [snapshot.name for snapshot in reader.snapshots()][3:] == ["one", "two", "three"]
        assert reader.snapshots()[-1].changed_extents(held).tolist() == held.changed_extents("three").tolist()
    owner.close()


def test_many_readers_read_the_same_and_different_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "v"
    states = made(path, count=8)
    with Volume.open(path) as owner:
        readers = [Volume.open(path, read_only=True) for _ in range(25)]
        held: list[Snapshot] = [reader.get_snapshot(f"s{n % 8}") for n, reader in enumerate(readers)]
        for number in range(50):
            owner.pwrite(bytes([number]) * BLOCK, number * BLOCK)
            owner.snapshot(f"new{number}")
        for snapshot in held:
            assert whole(snapshot) == states[snapshot.name]
        for name in states:
            with pytest.raises(BusyError):
                owner.get_snapshot(name).delete()
        for reader in readers:
            reader.close()
        for snapshot in owner.snapshots():
            snapshot.delete()
        assert owner.check().ok


def test_a_damaged_node_is_an_error_for_a_reader_and_never_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with Volume.create(path, SIZE) as owner:
        for block in range(0, 256, 2):  # no run of blocks: the map needs a leaf
            owner.pwrite(bytes([block]) * BLOCK, block * BLOCK)
        owner.snapshot("s")
        owner.engine.checkpoint()
        record = owner.engine.lineage.get(1)
        assert record is not None and record.root.slot
        with Volume.open(path, read_only=True) as reader:
            with open(path, "r+b") as file:
                file.seek(record.root.slot * BLOCK + 77)
                file.write(b"?")
            with pytest.raises(CorruptionError, match="metadata is damaged"):
                reader.get_snapshot("s").pread(BLOCK, 0)


def test_backups_are_taken_through_a_reader_while_the_owner_works(tmp_path: Path) -> None:
    path, target = tmp_path / "v", tmp_path / "target"
    states = made(path)
    with Volume.open(path) as owner, Volume.open(path, read_only=True) as reader:
        write_backup(target, {"v": reader.get_snapshot("s0")}, kind="full")
        owner.pwrite(b"later" * 1000, 12345)
        last = write_backup(target, {"v": reader.get_snapshot("s2")}, kind="incremental")
        restore(target, last.id, tmp_path / "restored")
    (restored,) = (tmp_path / "restored").iterdir()
    assert restored.read_bytes() == states["s2"]


def command(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run([sys.executable, "-m", "cowengine", *arguments], capture_output=True, env=environment)


def test_the_command_line_reads_the_snapshots_of_a_volume_in_use(tmp_path: Path) -> None:
    path = tmp_path / "v"
    states = made(path)
    with Volume.open(path) as owner:
        listed = command("snapshot", "list", str(path), "--json")
        assert [row["name"] for row in json.loads(listed.stdout)["snapshots"]] == list(states)
        assert json.loads(command("snapshot", "show", f"{path}@s1", "--json").stdout)["id"] == 2
        assert command("snapshot", "cat", f"{path}@s1").stdout == states["s1"]
        rows = json.loads(command("volume", "map", f"{path}@s1", "--json").stdout)["extents"]
        assert [[row["offset"], row["length"]] for row in rows] == owner.get_snapshot("s1").allocated_extents().tolist()
        rows = json.loads(command("volume", "changes", str(path), "--since", "s0", "--until", "s2", "--json").stdout)
        expected = owner.get_snapshot("s2").changed_extents("s0").tolist()
        assert [[row["offset"], row["length"]] for row in rows["extents"]] == expected
        live = command("volume", "map", str(path))
        assert live.returncode == 5 and b"only its snapshots" in live.stderr
