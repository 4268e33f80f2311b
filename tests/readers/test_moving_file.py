"""A reader whose file moves under it: it looks again for as long as that is why it sees nonsense, and not longer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cowengine import BusyError, ClosedError, CorruptionError, NotFoundError, Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import reader as readers
from cowengine.engine.reader import Look, Reader, require_same

LOG = 64 << 10


class Meddled(IOTable):
    """Something happens while the whole log is read."""

    meddle: Callable[[], object] | None = None

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if length == LOG and self.meddle is not None:
            self.meddle()
        return super().pread(fd, length, offset)


@pytest.fixture
def table() -> Meddled:
    return Meddled()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v", 1 << 20, log_size=LOG, background=False) as volume:
        volume.pwrite(b"one", 0)
        volume.snapshot("s1")
        yield volume


@pytest.fixture
def reader(tmp_path: Path, owner: Volume, table: Meddled) -> Iterator[Reader]:
    with Volume.open(tmp_path / "v", read_only=True, background=False, io=table) as volume:
        look = volume.engine
        assert isinstance(look, Look)
        yield look.reader


def names(look: Look) -> list[str]:
    return [record.name for record in look.lineage.snapshots()]


def test_a_superblock_that_is_written_during_a_look_makes_it_look_again(
    owner: Volume, reader: Reader, table: Meddled
) -> None:
    """Parts of the log that it read may have been written over by then."""
    owner.snapshot("s2")
    times = []

    def checkpoint_once() -> None:
        times.append(1)
        if len(times) == 1:
            owner.engine.checkpoint()

    table.meddle = checkpoint_once
    assert names(reader.newest()) == ["s1", "s2"]
    assert len(times) == 2


def failing(monkeypatch: pytest.MonkeyPatch, times: int, before: Callable[[], object]) -> list[int]:
    """The first looks find nonsense; `before` each of them something happens."""
    new_look, looks = Reader._new_look, list[int]()

    def look(self: Reader, durable: int | None) -> Look | None:
        looks.append(1)
        if len(looks) > times:
            return new_look(self, durable)
        before()
        raise CorruptionError("a node is not what its parent says")

    monkeypatch.setattr(Reader, "_new_look", look)
    return looks


def test_nonsense_in_a_file_that_moved_is_looked_at_again(
    owner: Volume, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = failing(monkeypatch, 3, owner.engine.checkpoint)
    owner.snapshot("s2")
    assert names(reader.newest()) == ["s1", "s2"]
    assert len(looks) == 4


def test_nonsense_in_a_file_that_stands_still_is_damage(
    owner: Volume, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.snapshot("s2")
    looks = failing(monkeypatch, 3, lambda: None)
    with pytest.raises(CorruptionError, match="not what its parent says"):
        reader.newest()
    assert len(looks) == 1


def test_a_file_that_never_stands_still_is_given_up_in_the_end(
    owner: Volume, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "TRIES_MAX", 5)
    owner.snapshot("s2")
    looks = failing(monkeypatch, 1000, owner.engine.checkpoint)
    with pytest.raises(CorruptionError):
        reader.newest()
    assert len(looks) == 5


def test_work_that_meets_recycled_metadata_is_done_again_with_a_newer_look(owner: Volume, reader: Reader) -> None:
    seen = []

    def work(look: Look) -> list[str]:
        seen.append(look)
        if len(seen) < 3:
            owner.snapshot(f"more {len(seen)}")
            owner.engine.checkpoint()
            raise CorruptionError("recycled")
        return names(look)

    assert reader.restarting(work) == ["s1", "more 1", "more 2"]
    assert len(set(map(id, seen))) == 3


def test_work_that_always_meets_recycled_metadata_ends(
    owner: Volume, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "TRIES_MAX", 4)
    done = []

    def work(look: Look) -> None:
        done.append(look)
        owner.engine.checkpoint()
        raise CorruptionError("recycled")

    with pytest.raises(CorruptionError, match="recycled"):
        reader.restarting(work)
    assert len(done) == 4


def test_a_file_that_becomes_another_volume_is_told_of(tmp_path: Path, owner: Volume, reader: Reader) -> None:
    with Volume.create(tmp_path / "other", 1 << 20, log_size=LOG, background=False) as other:
        other.snapshot("foreign")
    with open(tmp_path / "other", "rb") as source, open(tmp_path / "v", "r+b") as target:
        shutil.copyfileobj(source, target)
    with pytest.raises(CorruptionError, match="another volume now"):
        reader.newest()


def test_a_snapshot_that_is_being_given_back_cannot_be_pinned(owner: Volume, reader: Reader) -> None:
    record = reader.newest().lineage.find_name("s1")
    assert record is not None and owner.engine.locks.claim(record.id)
    with pytest.raises(BusyError, match="being given back"):
        reader.pin(record)
    owner.engine.locks.release(record.id)
    reader.pin(record)
    with pytest.raises(BusyError):
        owner.get_snapshot("s1").delete()
    reader.unpin(record.id)
    owner.get_snapshot("s1").delete()


def test_the_last_question_before_a_delete_is_asked_of_the_lock(
    owner: Volume, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that comes behind the first look still keeps its data."""
    record = reader.newest().lineage.find_name("s1")
    assert record is not None
    monkeypatch.setattr(owner.engine.locks, "is_read", lambda number: reader.pin(record) and False)
    with pytest.raises(BusyError, match="cannot be given back"):
        owner.get_snapshot("s1").delete()
    assert [snapshot.name for snapshot in owner.snapshots()] == ["s1"]
    reader.unpin(record.id)


def test_another_snapshot_of_the_same_number_is_not_the_same(owner: Volume, reader: Reader) -> None:
    """The owner died with a snapshot that nobody had acknowledged, and its successor took another one."""
    look = reader.newest()
    record = look.lineage.find_name("s1")
    assert record is not None and require_same(look, record) == record
    with pytest.raises(NotFoundError, match="'s1' was deleted"):
        require_same(look, replace(record, tag=record.tag ^ 1))


def test_a_reader_that_is_closed_pins_nothing_and_closes_nothing_more(
    tmp_path: Path, owner: Volume, reader: Reader
) -> None:
    record = reader.newest().lineage.find_name("s1")
    assert record is not None
    reader.close()
    with pytest.raises(ClosedError):
        reader.pin(record)
    with pytest.raises(ClosedError):
        reader.newest()
    with open(tmp_path / "other", "wb") as other:
        reader.close()
        reader.abandon()
        os.fstat(other.fileno())
    owner.get_snapshot("s1").delete()
