"""Restore is a protocol: writers are told in order, and what fails leaves nothing behind."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from by_hand import put

from cowengine.backup import Backup, restore, verify_backup, write_backup
from cowengine.backup.stream import StreamHeader, VolumeEntry
from cowengine.backup.stream_writer import StreamWriter
from cowengine.backup.target import ChainLock, NewBackup, Target
from cowengine.errors import BusyError, CowEngineError, WriterError
from cowengine.store import Store


class Recorder:
    """A writer that notes what it is told and fails where it should."""

    def __init__(self, name: str, log: list[str], fail_in: str = "") -> None:
        self.name = name
        self.log = log
        self.fail_in = fail_in
        self.job: Any = None

    def _event(self, event: str, job: Any) -> None:
        self.log.append(f"{self.name}.{event}")
        self.job = job
        if event in self.fail_in.split():
            raise RuntimeError(f"{event} went wrong")

    def pre_restore(self, job: Any) -> None:
        self._event("pre_restore", job)
        assert job.restored == {}

    def post_restore(self, job: Any) -> None:
        self._event("post_restore", job)

    def abort(self, job: Any) -> None:
        self._event("abort", job)


@pytest.fixture
def backup(origin: Any, tmp_path: Path) -> Backup:
    origin.scribble()
    documents = {"components": [{"name": "bank"}]}
    return write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full", documents=documents)


def test_writers_are_told_before_and_after(backup: Backup, origin: Any, tmp_path: Path) -> None:
    log: list[str] = []
    seen: list[bytes] = []

    class Checking(Recorder):
        def post_restore(self, job: Any) -> None:
            super().post_restore(job)
            seen.append(Path(job.restored["main"]).read_bytes())

    writers = [Checking("first", log), Recorder("second", log)]
    restore(tmp_path / "t", backup.id, tmp_path / "out", writers=writers)
    assert log == ["first.pre_restore", "second.pre_restore", "first.post_restore", "second.post_restore"]
    assert seen == [origin.expected["a"]]
    job = writers[0].job
    assert (job.kind, job.volumes, job.components, job.backup) == ("restore", ("main",), ({"name": "bank"},), backup)


def test_a_writer_that_refuses_stops_the_restore(backup: Backup, tmp_path: Path) -> None:
    log: list[str] = []
    writers = [Recorder("first", log), Recorder("second", log, "pre_restore abort"), Recorder("third", log)]
    with pytest.raises(WriterError, match="went wrong") as caught:
        restore(tmp_path / "t", backup.id, tmp_path / "out", writers=writers)
    assert (caught.value.writer, caught.value.phase) == ("second", "pre_restore")
    assert "abort went wrong" in str(caught.value.__notes__)
    assert log == ["first.pre_restore", "second.pre_restore", "second.abort", "first.abort"]
    assert not (tmp_path / "out").exists()


def test_a_writer_that_cannot_recover_makes_the_restore_vanish(backup: Backup, tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(WriterError) as caught:
        restore(tmp_path / "t", backup.id, tmp_path / "out", writers=[Recorder("only", log, "post_restore")])
    assert caught.value.phase == "post_restore"
    assert log == ["only.pre_restore", "only.post_restore", "only.abort"]
    assert not (tmp_path / "out").exists()
    with Store.create(str(tmp_path / "store")) as store:
        with pytest.raises(WriterError):
            restore(tmp_path / "t", backup.id, store, writers=[Recorder("only", log, "post_restore")])
        assert store.volumes() == []


def test_writers_are_not_disturbed_when_the_destination_is_taken(backup: Backup, tmp_path: Path) -> None:
    log: list[str] = []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "main.raw").write_bytes(b"")
    with pytest.raises(CowEngineError):
        restore(tmp_path / "t", backup.id, tmp_path / "out", writers=[Recorder("only", log)])
    assert log == []


def test_damage_aborts_the_writers(backup: Backup, tmp_path: Path) -> None:
    stream = tmp_path / "t" / "chains" / "default" / backup.id / "stream"
    raw = bytearray(stream.read_bytes())
    raw[-300] ^= 1
    stream.write_bytes(raw)
    log: list[str] = []
    with pytest.raises(CowEngineError):
        restore(tmp_path / "t", backup.id, tmp_path / "out", writers=[Recorder("only", log)])
    assert log == ["only.pre_restore", "only.abort"]
    assert not (tmp_path / "out").exists()


def test_several_volumes_are_published_together_or_not_at_all(make_origin: Any, tmp_path: Path) -> None:
    """The name of the second is taken while the data is written: the first one's name goes again."""
    one, two = make_origin(seed=1), make_origin(seed=2)
    one.scribble()
    two.scribble()
    backup = write_backup(tmp_path / "t", {"one": one.snapshot("a"), "two": two.snapshot("a")}, kind="full")
    (tmp_path / "out").mkdir()

    class Intruder(Recorder):
        def pre_restore(self, job: Any) -> None:
            (tmp_path / "out" / "two.raw").write_bytes(b"mine")

    with pytest.raises(CowEngineError):
        restore(tmp_path / "t", backup.id, tmp_path / "out", writers=[Intruder("x", [])])
    assert os.listdir(tmp_path / "out") == ["two.raw"]
    assert (tmp_path / "out" / "two.raw").read_bytes() == b"mine"


def test_two_restores_of_one_volume_into_one_place_do_not_mix(backup: Backup, origin: Any, tmp_path: Path) -> None:
    refused: list[bool] = []
    (tmp_path / "out").mkdir()

    def progress(done: int, total: int | None, phase: str) -> None:
        if done and not refused:
            refused.append(True)
            with pytest.raises(CowEngineError) as caught:
                restore(tmp_path / "t", backup.id, tmp_path / "out")
            assert isinstance(caught.value, BusyError)

    import cowengine.backup.progress as pace

    before, pace.INTERVAL_SECONDS = pace.INTERVAL_SECONDS, 0.0
    try:
        restored = restore(tmp_path / "t", backup.id, tmp_path / "out", progress=progress)
    finally:
        pace.INTERVAL_SECONDS = before
    assert refused
    assert Path(restored["main"]).read_bytes() == origin.expected["a"]


def test_what_a_killed_restore_left_is_taken_over(backup: Backup, origin: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".main.raw.restoring").write_bytes(b"junk" * (1 << 20))
    restored = restore(tmp_path / "t", backup.id, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["main.raw"]
    assert Path(restored["main"]).read_bytes() == origin.expected["a"]


def test_what_a_killed_restore_left_in_a_store_is_taken_over(backup: Backup, origin: Any, tmp_path: Path) -> None:
    with Store.create(str(tmp_path / "store")) as store:
        names: list[str] = []

        class Killed(BaseException):
            pass

        class Watching(Recorder):
            def abort(self, job: Any) -> None:
                names.extend(store.volumes())

        class Stop:
            def is_set(self) -> bool:
                raise Killed

        with pytest.raises(Killed):
            restore(tmp_path / "t", backup.id, store, writers=[Watching("x", [])], cancel=Stop())
        (temporary,) = names
        assert store.volumes() == []
        # As a kill would leave it: the volume under its temporary name, half full.
        with store.create_volume(temporary, 1 << 20) as left:
            left.pwrite(b"junk" * 1000, 0)
        restore(tmp_path / "t", backup.id, store)
        assert store.volumes() == ["main"]
        with store.open_volume("main") as volume:
            assert volume.pread(volume.size, 0) == origin.expected["a"]


def resized_chain(target: Path, sizes: list[int]) -> tuple[list[Backup], list[bytes]]:
    """A chain over a volume whose size changes, record by record; each link fills what it grew by."""
    volume_uuid = str(uuid.UUID(int=1))
    backups: list[Backup] = []
    states: list[bytes] = []
    live = bytearray()
    for index, size in enumerate(sizes):
        before = len(live)
        live = (live + bytes(max(0, size - before)))[:size]
        base = backups[-1] if backups else None
        entry = VolumeEntry(
            "main", volume_uuid, size, 4096, "changes" if base else "whole", base and f"{volume_uuid}/{index}/0",
            f"{volume_uuid}/{index + 1}/0",
        )  # fmt: skip
        header = StreamHeader(
            str(uuid.uuid4()), "default", "incremental" if base else "full", index + 1, base and base.id,
            base and base.root, 0, (entry,),
        )  # fmt: skip
        folder = Target(target)
        with ChainLock(folder, "default") as lock, NewBackup(folder, lock, header.backup_id) as new, \
                ThreadPoolExecutor(1) as pool:  # fmt: skip
            writer = StreamWriter(new, header, pool)
            for offset in sorted({0, size - 4096, *range(before, size, 1 << 16)}):
                plain = bytes([index + 1]) * 4096
                live[offset : offset + 4096] = plain
                put(writer, 0, offset, plain)
            backups.append(Backup(header, writer.finish()))
            new.publish(backups[-1])
        states.append(bytes(live))
    return backups, states


@pytest.mark.parametrize("sizes", [[1 << 20, 1 << 19, 1 << 20], [1 << 18, 1 << 20, 1 << 17], [1 << 20, 4096, 8192]])
def test_what_a_shrunk_volume_lost_does_not_come_back_when_it_grows(tmp_path: Path, sizes: list[int]) -> None:
    backups, states = resized_chain(tmp_path / "t", sizes)
    assert verify_backup(tmp_path / "t").ok
    with Store.create(str(tmp_path / "store")) as store:
        for backup, expected in zip(backups, states, strict=True):
            restored = restore(tmp_path / "t", backup.id, tmp_path / f"out{backup.number}")
            assert Path(restored["main"]).read_bytes() == expected
            restore(tmp_path / "t", backup.id, store)
            with store.open_volume("main") as volume:
                assert volume.size == len(expected)
                assert volume.pread(volume.size, 0) == expected
            store.delete_volume("main")
