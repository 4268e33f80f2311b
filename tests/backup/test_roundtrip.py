"""What is restored is, byte for byte, what was snapshotted: at any point of a chain, into files and into a store."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cowengine.backup import (
    copy_backup,
    get_backup,
    last_backup,
    list_backups,
    load_documents,
    restore,
    verify_backup,
    write_backup,
)
from cowengine.core.iotable import IOTable
from cowengine.errors import (
    BackupError,
    BusyError,
    CancelledError,
    ExistsError,
    FullBackupRequired,
    NotFoundError,
    OutOfRangeError,
)
from cowengine.store import Store

SIZES = [
    (512, 4096),
    (1024, 4096),
    (4096, 4096),
    (4608, 4096),
    (1 << 20, 4096),
    ((3 << 20) + 1536, 65536),
    (5 << 20, 1 << 20),
]


def bytes_of(restored: dict[str, str], name: str = "main") -> bytes:
    return Path(restored[name]).read_bytes()


@pytest.mark.parametrize(("size", "block_size"), SIZES)
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_point_of_a_chain_comes_back(
    make_origin: Any, tmp_path: Path, size: int, block_size: int, compression: str
) -> None:
    origin = make_origin(size, block_size, seed=size)
    target = tmp_path / "target"
    points = {}
    for index, kind in enumerate(
        ["full", "incremental", "incremental", "differential", "incremental", "copy", "incremental"]
    ):
        origin.scribble()
        snapshot = origin.snapshot(f"s{index}")
        backup = write_backup(target, {"main": snapshot}, kind=kind, compression=compression)
        points[backup.id] = f"s{index}"
        assert backup.kind == kind
        assert backup.number == index + 1
    assert verify_backup(target).ok
    for backup_id, name in points.items():
        restored = restore(target, backup_id, tmp_path / f"raw-{name}")
        assert bytes_of(restored) == origin.expected[name]


@pytest.mark.parametrize(("size", "block_size"), SIZES)
def test_a_chain_comes_back_into_new_volumes_of_a_store(
    make_origin: Any, tmp_path: Path, size: int, block_size: int
) -> None:
    origin = make_origin(size, block_size, seed=size + 1)
    target = tmp_path / "target"
    for index, kind in enumerate(["full", "incremental", "incremental"]):
        origin.scribble()
        last = write_backup(target, {"main": origin.snapshot(f"s{index}")}, kind=kind)
    with Store.create(str(tmp_path / "store")) as store:
        assert restore(target, last.id, store) == {"main": "main"}
        assert store.volumes() == ["main"]
        with store.open_volume("main") as volume:
            assert volume.size == size
            assert volume.block_size == block_size
            assert volume.pread(size, 0) == origin.expected["s2"]


def test_each_kind_stands_on_what_it_should(origin: Any, tmp_path: Path) -> None:
    kinds = ["full", "incremental", "copy", "differential", "incremental", "full", "differential"]
    made = []
    for index, kind in enumerate(kinds):
        origin.scribble(2)
        made.append(write_backup(tmp_path / "t", {"main": origin.snapshot(f"s{index}")}, kind=kind))
    bases = [made.index(next(b for b in made if b.id == backup.base)) if backup.base else None for backup in made]
    assert bases == [None, 0, None, 0, 3, None, 5]
    assert last_backup(tmp_path / "t") == made[-1]
    assert list_backups(tmp_path / "t") == made


def test_an_incremental_costs_what_changed(make_origin: Any, tmp_path: Path) -> None:
    origin = make_origin(8 << 20)
    origin.write(0, origin.random.randbytes(8 << 20))
    full = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    for block in (3, 700, 1500):
        origin.write(block * 4096 + 17, b"changed")
    incremental = write_backup(tmp_path / "t", {"main": origin.snapshot("b")}, kind="incremental")
    assert full.totals.data_bytes == 8 << 20
    assert incremental.totals.data_bytes == 3 * 4096
    assert incremental.bytes_written < 3 * 4096 + 2048


def test_zeros_and_holes_take_no_space_and_come_back_as_holes(make_origin: Any, tmp_path: Path) -> None:
    origin = make_origin(64 << 20)
    origin.write(0, bytes(16 << 20))
    origin.write(32 << 20, b"x" * 4096)
    full = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    assert full.totals.data_bytes <= 64 << 10
    path = restore(tmp_path / "t", full.id, tmp_path / "out")["main"]
    assert os.stat(path).st_size == 64 << 20
    assert os.stat(path).st_blocks * 512 <= 256 << 10
    assert Path(path).read_bytes() == origin.expected["a"]


def test_discards_are_changes(make_origin: Any, tmp_path: Path) -> None:
    origin = make_origin(1 << 20)
    origin.write(0, origin.random.randbytes(1 << 20))
    write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    origin.discard(128 << 10, 512 << 10)
    last = write_backup(tmp_path / "t", {"main": origin.snapshot("b")}, kind="incremental")
    assert last.totals.data_bytes == 0
    assert last.totals.hole_bytes == 512 << 10
    path = restore(tmp_path / "t", last.id, tmp_path / "out")["main"]
    assert Path(path).read_bytes() == origin.expected["b"]
    assert os.stat(path).st_blocks * 512 <= 520 << 10


def test_a_backup_reads_the_snapshot_and_not_the_live_volume(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    snapshot = origin.snapshot("a")
    origin.write(0, b"later" * 1000)
    backup = write_backup(tmp_path / "t", {"main": snapshot}, kind="full")
    assert bytes_of(restore(tmp_path / "t", backup.id, tmp_path / "out")) == origin.expected["a"]


def test_a_volume_new_to_the_set_is_backed_up_whole_within_an_incremental(make_origin: Any, tmp_path: Path) -> None:
    one, two = make_origin(seed=1), make_origin(300 * 512, seed=2)
    one.scribble()
    write_backup(tmp_path / "t", {"one": one.snapshot("a")}, kind="full")
    for each in (one, two):
        each.scribble()
    both = write_backup(tmp_path / "t", {"one": one.snapshot("b"), "two": two.snapshot("b")}, kind="incremental")
    assert [entry.mode for entry in both.header.volumes] == ["changes", "whole"]
    for each in (one, two):
        each.scribble()
    last = write_backup(tmp_path / "t", {"two": two.snapshot("c")}, kind="incremental")
    restored = restore(tmp_path / "t", both.id, tmp_path / "both")
    assert bytes_of(restored, "one") == one.expected["b"]
    assert bytes_of(restored, "two") == two.expected["b"]
    restored = restore(tmp_path / "t", last.id, tmp_path / "last")
    assert list(restored) == ["two"]
    assert bytes_of(restored, "two") == two.expected["c"]
    # "one" was not in the last backup, so its next one is whole again.
    again = write_backup(tmp_path / "t", {"one": one.snapshot("d"), "two": two.snapshot("d")}, kind="incremental")
    assert [entry.mode for entry in again.header.volumes] == ["whole", "changes"]
    restored = restore(tmp_path / "t", again.id, tmp_path / "again")
    assert bytes_of(restored, "one") == one.expected["d"]
    assert verify_backup(tmp_path / "t").ok


def test_one_volume_is_restored_alone(make_origin: Any, tmp_path: Path) -> None:
    one, two = make_origin(seed=1), make_origin(seed=2)
    for index, kind in enumerate(["full", "incremental"]):
        one.scribble()
        two.scribble()
        last = write_backup(
            tmp_path / "t", {"one": one.snapshot(f"s{index}"), "two": two.snapshot(f"s{index}")}, kind=kind
        )
    restored = restore(tmp_path / "t", last.id, tmp_path / "out", volumes=["two"])
    assert os.listdir(tmp_path / "out") == ["two.raw"]
    assert bytes_of(restored, "two") == two.expected["s1"]
    with pytest.raises(NotFoundError, match="three"):
        restore(tmp_path / "t", last.id, tmp_path / "out", volumes=["three"])
    for wrong in ([], "two", ["two", "two"]):
        with pytest.raises(OutOfRangeError):
            restore(tmp_path / "t", last.id, tmp_path / "out", volumes=wrong)


def test_chains_do_not_disturb_one_another(origin: Any, tmp_path: Path) -> None:
    """Three requestors, each with its own chain, at the same time on one target."""
    snapshots = []
    for index in range(4):
        origin.scribble()
        snapshots.append(origin.snapshot(f"s{index}"))
    failures: list[BaseException] = []

    def run(chain: str) -> None:
        try:
            for index, snapshot in enumerate(snapshots):
                write_backup(tmp_path / "t", {"main": snapshot}, kind="incremental" if index else "full", chain=chain)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(chain,)) for chain in ("a", "b", "münchen nightly")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for chain in ("a", "b", "münchen nightly"):
        backups = list_backups(tmp_path / "t", chain)
        assert [backup.number for backup in backups] == [1, 2, 3, 4]
        assert [backup.base for backup in backups[1:]] == [backup.id for backup in backups[:-1]]
        restored = restore(tmp_path / "t", backups[-1].id, tmp_path / chain)
        assert bytes_of(restored) == origin.expected["s3"]
    assert verify_backup(tmp_path / "t").ok


def test_a_second_backup_into_a_busy_chain_is_refused(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    snapshot = origin.snapshot("a")
    refused: list[bool] = []

    def progress(done: int, total: int | None, phase: str) -> None:
        if not refused:
            with pytest.raises(BusyError, match="chain"):
                write_backup(tmp_path / "t", {"main": snapshot}, kind="full")
            refused.append(True)
            write_backup(tmp_path / "t", {"main": snapshot}, kind="full", chain="other")

    write_backup(tmp_path / "t", {"main": snapshot}, kind="full", progress=progress)
    assert refused
    assert [(backup.chain, backup.number) for backup in list_backups(tmp_path / "t")] == [("default", 1), ("other", 1)]


def test_without_a_full_backup_one_is_asked_for(origin: Any, tmp_path: Path) -> None:
    snapshot = origin.snapshot("a")
    for kind in ("incremental", "differential"):
        with pytest.raises(FullBackupRequired):
            write_backup(tmp_path / "t", {"main": snapshot}, kind=kind)
    write_backup(tmp_path / "t", {"main": snapshot}, kind="copy")
    with pytest.raises(FullBackupRequired):
        write_backup(tmp_path / "t", {"main": snapshot}, kind="incremental")
    assert len(list_backups(tmp_path / "t")) == 1


def test_without_the_snapshot_of_the_base_a_full_backup_is_asked_for(origin: Any, tmp_path: Path) -> None:
    snapshot = origin.snapshot("a")
    write_backup(tmp_path / "t", {"main": snapshot}, kind="full")
    snapshot.delete()
    origin.scribble()
    later = origin.snapshot("b")
    with pytest.raises(FullBackupRequired):
        write_backup(tmp_path / "t", {"main": later}, kind="incremental")
    assert len(list_backups(tmp_path / "t")) == 1


def test_a_volume_of_the_same_name_but_another_origin_is_refused_as_base(make_origin: Any, tmp_path: Path) -> None:
    one, two = make_origin(seed=1), make_origin(seed=2)
    write_backup(tmp_path / "t", {"main": one.snapshot("a")}, kind="full")
    with pytest.raises(FullBackupRequired, match="is not the one"):
        write_backup(tmp_path / "t", {"main": two.snapshot("a")}, kind="incremental")


def test_a_base_can_be_named(origin: Any, tmp_path: Path) -> None:
    made = []
    for index, kind in enumerate(["full", "incremental", "copy"]):
        origin.scribble(3)
        made.append(write_backup(tmp_path / "t", {"main": origin.snapshot(f"s{index}")}, kind=kind))
    origin.scribble(3)
    last = origin.snapshot("last")
    named = write_backup(tmp_path / "t", {"main": last}, kind="incremental", base=made[0].id)
    assert named.base == made[0].id
    assert bytes_of(restore(tmp_path / "t", named.id, tmp_path / "out")) == origin.expected["last"]
    for kind, base in (("incremental", made[2]), ("differential", made[1]), ("full", made[0]), ("copy", made[0].id)):
        with pytest.raises(OutOfRangeError):
            write_backup(tmp_path / "t", {"main": last}, kind=kind, base=base)
    with pytest.raises(OutOfRangeError, match="chain"):
        write_backup(tmp_path / "t", {"main": last}, kind="incremental", base=made[0], chain="other")
    with pytest.raises(NotFoundError):
        write_backup(tmp_path / "t", {"main": last}, kind="incremental", base="00000000-0000-4000-8000-000000000000")


def test_documents_are_kept_and_their_components_listed(origin: Any, tmp_path: Path) -> None:
    documents = {"components": [{"name": "bank"}], "ledger": {"freeze_ms": 3}, "text": "größer"}
    backup = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full", documents=documents)
    assert load_documents(tmp_path / "t", backup.id) == documents
    assert get_backup(tmp_path / "t", backup.id).manifest["components"] == [{"name": "bank"}]
    assert json.loads(json.dumps(backup.to_dict()))["bytes_written"] == backup.bytes_written
    assert verify_backup(tmp_path / "t", backup.id).ok


def test_progress_ends_where_it_said_it_would(origin: Any, tmp_path: Path) -> None:
    origin.scribble(30)
    calls: list[tuple[int, int | None, str]] = []

    def progress(done: int, total: int | None, phase: str) -> None:
        calls.append((done, total, phase))

    backup = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full", progress=progress)
    verify_backup(tmp_path / "t", progress=progress)
    restore(tmp_path / "t", backup.id, tmp_path / "out", progress=progress)
    copy_backup(tmp_path / "t", backup.id, tmp_path / "other", progress=progress)
    for phase in ("backup", "verify", "restore", "copy"):
        mine = [call for call in calls if call[2] == phase]
        assert mine[0][0] == 0
        assert mine[-1][0] == mine[-1][1]
        assert all(total is not None and done <= total for done, total, _ in mine)


def test_a_cancelled_job_leaves_nothing(origin: Any, tmp_path: Path) -> None:
    origin.scribble(30)
    cancelled = threading.Event()
    cancelled.set()
    snapshot = origin.snapshot("a")
    with pytest.raises(CancelledError):
        write_backup(tmp_path / "t", {"main": snapshot}, kind="full", cancel=cancelled)
    assert list_backups(tmp_path / "t") == []
    assert os.listdir(tmp_path / "t" / "chains" / "default") == ["lock"]
    backup = write_backup(tmp_path / "t", {"main": snapshot}, kind="full")
    with pytest.raises(CancelledError):
        restore(tmp_path / "t", backup.id, tmp_path / "out", cancel=cancelled)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CancelledError):
        verify_backup(tmp_path / "t", cancel=cancelled)
    with pytest.raises(CancelledError):
        copy_backup(tmp_path / "t", backup.id, tmp_path / "other", cancel=cancelled)
    assert list_backups(tmp_path / "other") == []


def test_a_copy_holds_all_that_a_restore_needs(origin: Any, tmp_path: Path) -> None:
    for index, kind in enumerate(["full", "incremental", "incremental", "full"]):
        origin.scribble()
        write_backup(tmp_path / "t", {"main": origin.snapshot(f"s{index}")}, kind=kind)
    middle = list_backups(tmp_path / "t")[2]
    assert copy_backup(tmp_path / "t", middle.id, tmp_path / "other") == middle
    assert [backup.number for backup in list_backups(tmp_path / "other")] == [1, 2, 3]
    assert verify_backup(tmp_path / "other").counts["backups"] == 3
    assert bytes_of(restore(tmp_path / "other", middle.id, tmp_path / "out")) == origin.expected["s2"]
    assert copy_backup(tmp_path / "t", middle.id, tmp_path / "other") == middle


def test_a_damaged_backup_is_not_copied(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    backup = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    stream = tmp_path / "t" / "chains" / "default" / backup.id / "stream"
    raw = bytearray(stream.read_bytes())
    raw[len(raw) // 2] ^= 4
    stream.write_bytes(raw)
    with pytest.raises(BackupError):
        copy_backup(tmp_path / "t", backup.id, tmp_path / "other")
    assert list_backups(tmp_path / "other") == []


def test_a_copy_does_not_replace_another_backup_of_that_id(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    backup = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    copy_backup(tmp_path / "t", backup.id, tmp_path / "other")
    folder = tmp_path / "other" / "chains" / "default" / backup.id
    other = write_backup(tmp_path / "x", {"main": origin.snapshot("b")}, kind="full")
    raw = (tmp_path / "x" / "chains" / "default" / other.id / "manifest.json").read_text()
    (folder / "manifest.json").write_text(raw)
    with pytest.raises(BackupError):
        copy_backup(tmp_path / "t", backup.id, tmp_path / "other")


def test_a_restore_onto_what_exists_is_refused(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    backup = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "main.raw").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ExistsError):
        restore(tmp_path / "t", backup.id, tmp_path / "out")
    with pytest.raises(ExistsError):
        restore(tmp_path / "t", backup.id, tmp_path / "file")
    assert (tmp_path / "out" / "main.raw").read_bytes() == b"mine"
    with Store.create(str(tmp_path / "store")) as store:
        store.create_volume("main", 4096).close()
        with pytest.raises(ExistsError):
            restore(tmp_path / "t", backup.id, store)
        assert store.volumes() == ["main"]


def test_a_backup_can_be_verified_before_it_gets_its_name(origin: Any, tmp_path: Path) -> None:
    """A disk that returns other bytes than were written: the backup never appears."""

    class Rotten(IOTable):
        rotten = False

        def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
            count = super().pread_into(fd, buffer, offset)
            if self.rotten and count > 4000:
                memoryview(buffer).cast("B")[3000] ^= 1
            return count

    origin.scribble(20)
    snapshot = origin.snapshot("a")
    table = Rotten()
    backup = write_backup(tmp_path / "t", {"main": snapshot}, kind="full", verify=True, io=table)
    assert backup.bytes_written > 4000
    table.rotten = True
    with pytest.raises(BackupError):
        write_backup(tmp_path / "t", {"main": snapshot}, kind="copy", verify=True, io=table)
    table.rotten = False
    assert list_backups(tmp_path / "t") == [backup]
