"""A target directory survives failures, crashes, hostile names and damage: what looks like a backup is one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cowengine.backup import copy_backup, delete_backup, list_backups, restore, verify_backup, write_backup
from cowengine.core.iotable import IOTable
from cowengine.errors import (
    BackupError,
    BusyError,
    CowEngineError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
)

from .conftest import complete_looking

HOSTILE = [
    "",
    ".",
    "..",
    "a/b",
    "/etc",
    "nul\0",
    "line\n",
    "x" * 256,
    "ü" * 200,
    "\ud800",
    "x" * 10_240,
    ".hidden",
    None,
    7,
]


class Failing(IOTable):
    """Fails the call with a given number, and with `crash` every later one too, as if the process had ended there."""

    def __init__(self, fail_at: int | None = None, number: int = errno.EIO, crash: bool = False) -> None:
        super().__init__()
        self.calls = 0
        self.fail_at = fail_at
        self.number = number
        self.crash = crash

    def step(self) -> None:
        self.calls += 1
        if self.fail_at is not None and (self.calls == self.fail_at or (self.crash and self.calls > self.fail_at)):
            raise OSError(self.number, os.strerror(self.number))

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self.step()
        return super().open(path, flags, mode)

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self.step()
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self.step()
        super().fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self.step()
        super().truncate(fd, size)

    def sync_directory(self, path: str) -> None:
        self.step()
        super().sync_directory(path)

    def rename(self, source: str, target: str) -> None:
        self.step()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self.step()
        super().unlink(path)

    def rmdir(self, path: str) -> None:
        self.step()
        super().rmdir(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self.step()
        super().mkdir(path, mode)


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def folder_of(target: Path, backup: Any) -> Path:
    return target / "chains" / backup.chain / backup.id


@pytest.fixture
def chain(origin: Any, tmp_path: Path) -> list[Any]:
    """A full and two incrementals in tmp_path / "t"."""
    made = []
    for index, kind in enumerate(["full", "incremental", "incremental"]):
        origin.scribble(4)
        made.append(write_backup(tmp_path / "t", {"main": origin.snapshot(f"s{index}")}, kind=kind))
    return made


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failure_of_any_call_leaves_no_backup(origin: Any, tmp_path: Path, number: int) -> None:
    """Each durable call of a backup fails in turn; once it succeeds all calls have been tried."""
    origin.scribble()
    snapshot = origin.snapshot("a")
    for fail_at in range(1, 200):
        target = tmp_path / f"t{fail_at}"
        try:
            write_backup(target, {"main": snapshot}, kind="full", io=Failing(fail_at, number))
        except CowEngineError as error:
            assert number != errno.ENOSPC or isinstance(error, NoSpaceError)
            assert complete_looking(target) == []
        else:
            assert len(list_backups(target)) == 1
            assert fail_at > 12
            return
    raise AssertionError("the backup never succeeded")


def test_a_crash_at_any_call_leaves_no_backup_and_no_obstacle(origin: Any, tmp_path: Path) -> None:
    """As above, but nothing can be cleaned up either; then the next backup finds a working chain and no litter."""
    origin.scribble()
    snapshot = origin.snapshot("a")
    total = Failing()
    write_backup(tmp_path / "counted", {"main": snapshot}, kind="full", io=total)
    for fail_at in range(1, total.calls + 1):
        target = tmp_path / f"t{fail_at}"
        with pytest.raises(CowEngineError):
            write_backup(target, {"main": snapshot}, kind="full", io=Failing(fail_at, crash=True))
        # The last call makes the name durable: after a crash in it the name may be there, and then it is whole.
        assert fail_at == total.calls or complete_looking(target) == []
        write_backup(target, {"main": snapshot}, kind="full")
        report = verify_backup(target)
        assert report.ok
        assert not [name for name in os.listdir(target / "chains" / "default") if name.startswith(".")]


def test_a_failure_of_any_call_of_a_restore_leaves_no_file(chain: list[Any], origin: Any, tmp_path: Path) -> None:
    for crash in (False, True):
        for fail_at in range(1, 500):
            destination = tmp_path / f"out{crash}{fail_at}"
            table = Failing(fail_at, crash=crash)
            try:
                restored = restore(tmp_path / "t", chain[-1].id, destination, io=table)
            except CowEngineError:
                # Only the sync of the folder comes after the name; the bytes behind the name are whole by then.
                for name in complete_looking(destination):
                    assert crash
                    assert (destination / name).read_bytes() == origin.expected["s2"]
                    (destination / name).unlink()
                restored = restore(tmp_path / "t", chain[-1].id, destination)
                assert os.listdir(destination) == ["main.raw"]
                assert Path(restored["main"]).read_bytes() == origin.expected["s2"]
            else:
                assert fail_at > 8
                break
        else:
            raise AssertionError("the restore never succeeded")


@pytest.mark.parametrize("stop", ["SIGKILL", "SIGINT"])
def test_a_process_stopped_in_the_middle_leaves_no_backup(tmp_path: Path, stop: str) -> None:
    """kill -9 and Ctrl-C while the stream is written, seen from another process."""
    code = f"""
    import os, signal, sys
    from cowengine.volume import Volume
    from cowengine.backup import write_backup
    volume = Volume.create(sys.argv[1] + "/v.cow", 32 << 20)
    volume.pwrite(os.urandom(16 << 20), 0)
    snapshot = volume.snapshot("a")
    def progress(done, total, phase):
        if done > total // 2:
            os.kill(os.getpid(), signal.{stop})
    import cowengine.backup.progress as pace
    pace.INTERVAL_SECONDS = 0
    write_backup(sys.argv[1] + "/t", {{"main": snapshot}}, kind="full", progress=progress)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == (-signal.SIGKILL if stop == "SIGKILL" else -signal.SIGINT), done.stderr
    chain_path = tmp_path / "t" / "chains" / "default"
    assert list_backups(tmp_path / "t") == []
    left = [name for name in os.listdir(chain_path) if name.startswith(".")]
    assert len(left) == (1 if stop == "SIGKILL" else 0)


def test_what_a_crash_left_is_removed_by_the_next_run(origin: Any, tmp_path: Path) -> None:
    chain_path = tmp_path / "t" / "chains" / "default"
    for name in (".new-x", ".old-y"):
        (chain_path / name).mkdir(parents=True)
        (chain_path / name / "stream").write_bytes(b"half")
    write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    assert not [name for name in os.listdir(chain_path) if name.startswith(".")]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_hostile_names_are_refused(origin: Any, tmp_path: Path, name: Any) -> None:
    snapshot = origin.snapshot("a")
    (tmp_path / "t").mkdir()
    with pytest.raises(OutOfRangeError):
        write_backup(tmp_path / "t", {"main": snapshot}, kind="full", chain=name)
    with pytest.raises(OutOfRangeError):
        restore(tmp_path / "t", name, tmp_path / "out")
    if name != ".hidden":
        with pytest.raises(OutOfRangeError):
            write_backup(tmp_path / "t", {name: snapshot}, kind="full")
    assert complete_looking(tmp_path) == []


def test_arguments_that_cannot_be_are_refused(origin: Any, tmp_path: Path) -> None:
    snapshot = origin.snapshot("a")
    for wrong in (
        {"kind": "log"},
        {"kind": "full", "compression": "zip"},
        {"kind": "full", "compression": "zstd:0"},
        {"kind": "full", "compression": "zstd:99"},
        {"kind": "full", "compression": None},
    ):
        with pytest.raises(OutOfRangeError):
            write_backup(tmp_path / "t", {"main": snapshot}, **wrong)
    with pytest.raises(OutOfRangeError):
        write_backup(tmp_path / "t", {}, kind="full")
    for target in ("", "nul\0", 7, None):
        with pytest.raises((OutOfRangeError, TypeError)):
            write_backup(target, {"main": snapshot}, kind="full")
    assert not (tmp_path / "t").exists()


def test_a_target_that_is_not_there_or_no_folder_is_said_so(origin: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list_backups(tmp_path / "absent")
    with pytest.raises(NotFoundError):
        verify_backup(tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CowEngineError):
        write_backup(tmp_path / "file", {"main": origin.snapshot("a")}, kind="full")
    (tmp_path / "empty").mkdir()
    assert list_backups(tmp_path / "empty") == []
    with pytest.raises(NotFoundError):
        restore(tmp_path / "empty", "00000000-0000-4000-8000-000000000000", tmp_path / "out")


def test_every_flipped_byte_of_a_manifest_is_found(chain: list[Any], tmp_path: Path) -> None:
    path = folder_of(tmp_path / "t", chain[1]) / "manifest.json"
    raw = path.read_bytes()
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        problems: list[str] = []
        others = list_backups(tmp_path / "t", problems=problems)
        assert [backup.id for backup in others] == [chain[0].id, chain[2].id], f"byte {position}"
        assert chain[1].id in problems[0]
    with pytest.raises(CowEngineError):
        list_backups(tmp_path / "t")


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"type": "cowengine backup"}']
)
def test_a_manifest_that_is_none_is_found(chain: list[Any], tmp_path: Path, raw: bytes) -> None:
    (folder_of(tmp_path / "t", chain[1]) / "manifest.json").write_bytes(raw)
    with pytest.raises(CowEngineError):
        list_backups(tmp_path / "t")
    assert not verify_backup(tmp_path / "t").ok
    with pytest.raises(CowEngineError):
        restore(tmp_path / "t", chain[2].id, tmp_path / "out")


def test_a_manifest_with_impossible_values_and_a_right_hash_is_refused(chain: list[Any], tmp_path: Path) -> None:
    from cowengine.backup.manifest import _canonical, _with_hash

    path = folder_of(tmp_path / "t", chain[1]) / "manifest.json"
    values = json.loads(path.read_bytes())
    del values["hash"]
    for change in (
        {"number": "1"},
        {"number": -1},
        {"number": 1 << 70},
        {"created_ns": None},
        {"kind": "log"},
        {"volumes": {}},
        {"volumes": [{}]},
        {"volumes": [values["volumes"][0] | {"name": "../../x"}]},
        {"volumes": [values["volumes"][0] | {"size": 0}]},
        {"chain": "../x"},
        {"id": "../x"},
        {"base": "../x"},
        {"root": "zz"},
        {"data_records": -1},
        {"stream_bytes": 1 << 65},
    ):
        path.write_bytes(_canonical(_with_hash(values | change)))
        with pytest.raises(CowEngineError):
            list_backups(tmp_path / "t")


def test_damage_anywhere_in_a_stream_is_named_and_not_restored(chain: list[Any], tmp_path: Path) -> None:
    path = folder_of(tmp_path / "t", chain[1]) / "stream"
    raw = path.read_bytes()
    for position in range(0, len(raw), max(1, len(raw) // 40)):
        flip(path, position)
        report = verify_backup(tmp_path / "t", chain[2].id)
        assert any(chain[1].id in problem for problem in report.problems), f"byte {position}"
        with pytest.raises(CowEngineError):
            restore(tmp_path / "t", chain[2].id, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        path.write_bytes(raw)
    for damaged in (raw[:-1], raw + b"x", b""):
        path.write_bytes(damaged)
        assert not verify_backup(tmp_path / "t").ok
        with pytest.raises(CowEngineError):
            restore(tmp_path / "t", chain[2].id, tmp_path / "out")
    assert verify_backup(tmp_path / "t", chain[0].id).ok


def test_a_missing_link_is_found(chain: list[Any], tmp_path: Path) -> None:
    shutil.rmtree(folder_of(tmp_path / "t", chain[1]))
    for report in (verify_backup(tmp_path / "t"), verify_backup(tmp_path / "t", chain[2].id)):
        assert [problem for problem in report.problems if chain[1].id in problem and "missing" in problem]
    with pytest.raises(BackupError, match="missing"):
        restore(tmp_path / "t", chain[2].id, tmp_path / "out")
    assert verify_backup(tmp_path / "t", chain[0].id).ok


def test_a_foreign_link_is_found(chain: list[Any], make_origin: Any, tmp_path: Path) -> None:
    """The files of a whole, intact backup of something else are put in the place of a link."""
    other = make_origin(seed=9)
    other.scribble()
    foreign = write_backup(tmp_path / "x", {"main": other.snapshot("a")}, kind="full")
    place = folder_of(tmp_path / "t", chain[1])
    shutil.rmtree(place)
    shutil.copytree(folder_of(tmp_path / "x", foreign), place)
    assert not verify_backup(tmp_path / "t").ok
    with pytest.raises(BackupError):
        restore(tmp_path / "t", chain[2].id, tmp_path / "out")


def test_a_stream_exchanged_for_another_is_found(chain: list[Any], tmp_path: Path) -> None:
    first, second = (folder_of(tmp_path / "t", backup) / "stream" for backup in chain[1:])
    raw = first.read_bytes(), second.read_bytes()
    first.write_bytes(raw[1])
    second.write_bytes(raw[0])
    report = verify_backup(tmp_path / "t")
    assert len(report.problems) == 2


def test_a_base_written_anew_under_the_same_id_is_found(chain: list[Any], origin: Any, tmp_path: Path) -> None:
    """Only the root that the child remembers can see this: every file is intact and every id fits."""
    from cowengine.backup.target import ChainLock, NewBackup, Target
    from cowengine.backup.write import _Job

    shutil.rmtree(folder_of(tmp_path / "t", chain[0]))
    target = Target(tmp_path / "t")
    job = _Job({"main": origin.snapshots["s0"]}, "full", "default", {"changed": 1}, None, None, "zstd")
    job.backup_id = chain[0].id
    with ChainLock(target, "default") as lock, NewBackup(target, lock, job.backup_id) as new:
        new.publish(job.run(new, None, 1))
    assert verify_backup(tmp_path / "t", chain[0].id).ok
    assert not verify_backup(tmp_path / "t", chain[1].id).ok
    with pytest.raises(BackupError, match="does not fit"):
        restore(tmp_path / "t", chain[1].id, tmp_path / "out")


def test_a_backup_that_others_need_is_not_deleted(chain: list[Any], tmp_path: Path) -> None:
    with pytest.raises(BusyError, match=chain[1].id):
        delete_backup(tmp_path / "t", chain[0].id)
    for backup in reversed(chain):
        assert delete_backup(tmp_path / "t", backup.id, dry_run=True) == [str(folder_of(tmp_path / "t", backup))]
        assert delete_backup(tmp_path / "t", backup.id) == [str(folder_of(tmp_path / "t", backup))]
    assert list_backups(tmp_path / "t") == []
    with pytest.raises(NotFoundError):
        delete_backup(tmp_path / "t", chain[0].id)


def test_a_damaged_backup_can_be_deleted_and_keeps_others_from_it(chain: list[Any], tmp_path: Path) -> None:
    flip(folder_of(tmp_path / "t", chain[2]) / "manifest.json", 40)
    with pytest.raises(BackupError, match="unknown what stands on"):
        delete_backup(tmp_path / "t", chain[1].id)
    delete_backup(tmp_path / "t", chain[2].id)
    delete_backup(tmp_path / "t", chain[1].id)
    assert verify_backup(tmp_path / "t").counts["backups"] == 1


def test_a_crash_at_any_call_of_a_delete_leaves_a_whole_backup_or_none(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    snapshot = origin.snapshot("a")
    backup = write_backup(tmp_path / "first", {"main": snapshot}, kind="full")
    for fail_at in range(1, 100):
        target = tmp_path / f"t{fail_at}"
        shutil.copytree(tmp_path / "first", target)
        try:
            delete_backup(target, backup.id, io=Failing(fail_at, crash=True))
        except CowEngineError:
            report = verify_backup(target)
            assert report.ok
            assert report.counts["backups"] in (0, 1)
            write_backup(target, {"main": snapshot}, kind="full")
            assert verify_backup(target).ok
        else:
            assert list_backups(target) == []
            assert fail_at > 5
            return
    raise AssertionError("the delete never succeeded")


def test_a_copy_that_fails_leaves_nothing(chain: list[Any], tmp_path: Path) -> None:
    for fail_at in range(1, 200):
        other = tmp_path / f"other{fail_at}"
        try:
            copy_backup(tmp_path / "t", chain[1].id, other, io=Failing(fail_at))
        except CowEngineError:
            if (other / "chains" / "default").exists():
                assert verify_backup(other).ok
                assert chain[1].id not in [backup.id for backup in list_backups(other)]
        else:
            assert fail_at > 20
            return
    raise AssertionError("the copy never succeeded")


def test_a_link_to_a_file_elsewhere_is_not_followed(chain: list[Any], tmp_path: Path) -> None:
    stream = folder_of(tmp_path / "t", chain[0]) / "stream"
    moved = tmp_path / "elsewhere"
    stream.rename(moved)
    stream.symlink_to(moved)
    assert not verify_backup(tmp_path / "t", chain[0].id).ok
