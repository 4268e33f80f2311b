"""Snapshots that are gone or of another volume, and handles that are dropped, pickled or used by a child."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import shutil
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.errors import (
    BusyError,
    CowEngineError,
    FullBackupRequired,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
)
from cowengine.snapshot import Snapshot

SIZE = 1 << 20


# -- bases ------------------------------------------------------------------------------------------------------------
def test_a_snapshot_of_another_volume_is_no_base(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "a", SIZE) as one, Volume.create(tmp_path / "b", SIZE) as two:
        foreign, own = one.snapshot("same name"), two.snapshot("same name")
        assert foreign.id == own.id
        for base in (foreign, foreign.change_id):
            for call in (two.changed_extents, own.changed_extents, two.rollback):
                with pytest.raises(FullBackupRequired, match=r"another volume|not of this volume"):
                    call(base)
        assert [snapshot.name for snapshot in two.snapshots()] == ["same name"]
        assert foreign != own


def test_a_change_id_of_a_copy_that_went_its_own_way_is_no_base(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "a", SIZE) as volume:
        common = volume.snapshot("common")
    shutil.copy(tmp_path / "a", tmp_path / "copy")
    with Volume.open(tmp_path / "a") as one, Volume.open(tmp_path / "copy") as two:
        assert one.id == two.id
        for volume in (one, two):
            volume.pwrite(volume.path.encode(), 0)
        mine, theirs = one.snapshot("next"), two.snapshot("next")
        assert (mine.id, mine.epoch) == (theirs.id, theirs.epoch)
        for base in (theirs, theirs.change_id):
            with pytest.raises(FullBackupRequired):
                one.changed_extents(base)
        assert one.changed_extents(common.change_id).tolist() == [[0, 4096]] == two.changed_extents(common).tolist()


def test_a_deleted_snapshot_is_no_base(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        gone = volume.snapshot("gone")
        kept = volume.snapshot("kept")
        gone.delete()
        for call in (volume.changed_extents, kept.changed_extents, volume.rollback):
            with pytest.raises(FullBackupRequired):
                call(gone.change_id)
            with pytest.raises(NotFoundError):
                call("gone")
            with pytest.raises(NotFoundError):
                call(gone.id)
        # its name is free again, its change id never
        again = volume.snapshot("gone")
        assert again.change_id != gone.change_id
        with pytest.raises(FullBackupRequired):
            volume.changed_extents(gone.change_id)


def malformed(volume: Volume, snapshot: Snapshot) -> list[str]:
    """Change ids that are none."""
    uuid, epoch, tag = snapshot.change_id.split("/")
    ends = ["", "zz", f"{tag}/", tag[:-1], f"{tag}X", tag + "0" * 10_000]
    epochs = ["x", "-1", "9" * 5000, "\u0663", 2**64, 2**48, 0, f"{epoch} "]
    return [
        "/", "//", "a/b/c", "\0/\0/\0", "\ud800/1/2", "x/" * 10_000,
        f"{uuid}/{epoch}", f" {uuid}/{epoch}/{tag}", f"{uuid}x/{epoch}/{tag}", f"../{uuid}/{epoch}",
        *[f"{uuid}/{epoch}/{end}" for end in ends], *[f"{uuid}/{other}/{tag}" for other in epochs],
    ]  # fmt: skip


def test_a_malformed_change_id_is_a_usage_error(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("s")
        for text in malformed(volume, snapshot):
            for call in (volume.changed_extents, snapshot.changed_extents, volume.rollback):
                with pytest.raises(OutOfRangeError, match="change id") as caught:
                    call(text)
                    pytest.fail(f"{text[:80]!r} was accepted")
                assert len(str(caught.value)) < 400
                str(caught.value).encode()
        assert len(volume.changed_extents(snapshot.change_id)) == 0
        assert len(volume.snapshots()) == 1


@pytest.mark.parametrize("base", [None, 1.5, b"s", [], object(), True, ("s",)], ids=repr)
def test_what_names_no_snapshot_is_refused_as_base(tmp_path: Path, base: Any) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("s")
        for call in (volume.changed_extents, snapshot.changed_extents, volume.rollback):
            with pytest.raises(OutOfRangeError):
                call(base)


# -- deleted while read -----------------------------------------------------------------------------------------------
def test_a_snapshot_deleted_while_it_is_read_gives_its_bytes_or_not_found(tmp_path: Path) -> None:
    rng = random.Random(5)
    wrong: list[object] = []
    ended: list[type[BaseException]] = []
    with Volume.create(tmp_path / "v", SIZE) as volume:

        def read(snapshot: Snapshot, contents: bytes, seed: int) -> None:
            random_ = random.Random(seed)
            try:
                while True:
                    offset = random_.randrange(SIZE - 70_000)
                    length = random_.randrange(70_000)
                    if snapshot.pread(length, offset) != contents[offset : offset + length]:
                        wrong.append((snapshot.name, offset, length))
            except CowEngineError as error:
                ended.append(type(error))

        for number in range(12):
            contents = rng.randbytes(SIZE)
            volume.pwrite(contents, 0)
            snapshot = volume.snapshot(f"s{number}")
            readers = [threading.Thread(target=read, args=(snapshot, contents, seed)) for seed in range(3)]
            for reader in readers:
                reader.start()
            volume.pwrite(rng.randbytes(SIZE), 0)
            time.sleep(0.01)
            snapshot.delete()
            volume.pwrite(rng.randbytes(SIZE // 2), 0)  # wants the space that is given back
            for reader in readers:
                reader.join(30)
                assert not reader.is_alive()
        assert not wrong
        assert set(ended) == {NotFoundError}
        assert len(ended) == 36
        assert volume.check().ok


def test_a_deleted_snapshot_keeps_its_attributes_and_loses_its_bytes(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"bytes", 0)
        snapshot = volume.snapshot("s", metadata={"a": 1})
        assert snapshot.metadata == {"a": 1}
        file = snapshot.open()
        before = (snapshot.id, snapshot.name, snapshot.epoch, snapshot.size, snapshot.created, snapshot.change_id)
        snapshot.delete()
        assert (
            snapshot.id,
            snapshot.name,
            snapshot.epoch,
            snapshot.size,
            snapshot.created,
            snapshot.change_id,
        ) == before
        assert snapshot.metadata == {"a": 1}
        repr(snapshot)
        calls = {
            "pread": lambda: snapshot.pread(5, 0),
            "pread_into": lambda: snapshot.pread_into(bytearray(5), 0),
            "read of its file": lambda: file.read(5),
            "open": snapshot.open,
            "allocated_extents": snapshot.allocated_extents,
            "changed_extents": lambda: snapshot.changed_extents(snapshot),
            "delete": snapshot.delete,
            "get": lambda: volume.get_snapshot("s"),
            "rollback": lambda: volume.rollback("s"),
        }
        for name, call in calls.items():
            with pytest.raises(NotFoundError):
                call()
                pytest.fail(f"{name} worked on a deleted snapshot")
        assert volume.pread(5, 0) == b"bytes"
        assert volume.check().ok


def test_a_snapshot_is_deleted_once_however_many_try(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        outcomes: list[str] = []

        def delete(snapshot: Snapshot) -> None:
            try:
                snapshot.delete()
                outcomes.append("deleted")
            except NotFoundError:
                outcomes.append("not found")

        for number in range(10):
            volume.pwrite(os.urandom(100_000), 0)
            snapshot = volume.snapshot(f"s{number}")
            threads = [threading.Thread(target=delete, args=(snapshot,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert outcomes.count("deleted") == 10
        assert outcomes.count("not found") == 30
        assert volume.check().ok


# -- files over a snapshot --------------------------------------------------------------------------------------------
def test_the_file_of_a_snapshot_is_read_only_and_refuses_bad_positions(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"start", 0)
        file = volume.snapshot("s").open()
        for position in [(-1,), (-SIZE - 1, 2), (0, 9), (0.5,), ("0",), (None,)]:
            with pytest.raises(OutOfRangeError):
                file.seek(*position)
        with pytest.raises(ReadOnlyError):
            file.write(b"x")
        with pytest.raises(OSError, match="truncate"):
            file.truncate(5)
        assert not file.writable()
        assert file.seek(2**70) == 2**70
        assert file.read() == b""
        assert file.seek(0) == 0
        assert file.read(5) == b"start"
        file.close()
        for closed in (lambda: file.read(1), lambda: file.seek(0)):
            with pytest.raises(ValueError, match="closed"):
                closed()


# -- handles ----------------------------------------------------------------------------------------------------------
def test_volumes_and_snapshots_are_not_pickled_nor_copied(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        for thing in (volume, volume.snapshot("s")):
            for call in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="pickle"):
                    call(thing)


def test_a_volume_dropped_open_warns_and_loses_nothing(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "v", SIZE)
    volume.pwrite(b"kept", 0)
    volume.snapshot("s")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del volume
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "unclosed" in str(caught[0].message)
    with Volume.open(tmp_path / "v") as again:
        assert again.pread(4, 0) == again.get_snapshot("s").pread(4, 0) == b"kept"
        assert again.check().ok


def test_a_volume_that_could_not_be_opened_warns_of_nothing(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(BusyError):
            Volume.open(tmp_path / "v")
        gc.collect()
    assert caught == []


def test_an_exception_inside_with_closes_the_volume_and_keeps_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="from outside"), Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"kept", 0)
        raise RuntimeError("from outside")
    assert volume.closed
    with Volume.open(tmp_path / "v") as again:
        assert again.pread(4, 0) == b"kept"
