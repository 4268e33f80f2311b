"""What may happen to who seals: snapshots that go meanwhile, disks and threads that fail, memory that is short."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cowengine import CorruptionError, CowEngineError, NoSpaceError, StorageError, Volume
from cowengine.engine import sealing
from cowengine.engine.engine import Engine

BLOCK = 4096
BLOCKS = 400
SIZE = BLOCKS * BLOCK


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v", SIZE, background=False) as made:
        made.pwrite(random.Random(1).randbytes(SIZE), 0)
        made.snapshot("one")
        yield made


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(sealing, "REST", 0)


def sealed_by_the_background(volume: Volume) -> None:
    while volume.stats()["snapshots_unsealed"] or volume.engine.sealer._thread is not None:
        time.sleep(0.01)


def branches(volume: Volume, count: int) -> None:
    """Snapshots on a base that is hidden: they have nearly all in common."""
    base = volume.get_snapshot("one")
    for number in range(count):
        volume.rollback(base)
        volume.pwrite(b"b", number * BLOCK)
        volume.snapshot(f"branch {number}")
    base.delete()


def test_a_walk_that_comes_to_its_limit_of_memory_trims_and_goes_on(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches(volume, 3)
    volume.engine.checkpoint()
    plenty = volume.unsealed_bytes()
    trimmed, trim = list[int](), sealing.memory.trim

    def counted(engine: Engine) -> None:
        trimmed.append(engine.path.map.node_count)
        trim(engine)

    monkeypatch.setattr(sealing.memory, "trim", counted)
    volume.engine.cache_nodes = 2
    volume.engine.path.node_limit = 0
    assert volume.unsealed_bytes() == plenty > SIZE
    assert trimmed


def test_a_branch_that_is_deleted_during_a_walk_beside_it_is_looked_at_no_more(volume: Volume) -> None:
    branches(volume, 2)
    first, second = (volume.get_snapshot(f"branch {number}") for number in range(2))
    walk = sealing.walk_of(volume.engine, second.id, [first.id])
    assert walk.next(volume.engine) == (0, 1) and walk.beside
    walk.passed(1)
    first.delete()
    volume.reclaim()
    assert walk.next(volume.engine) == (1, 2) and not walk.beside
    walk.passed(2)
    assert walk.next(volume.engine) == (2, BLOCKS)  # nobody else has them now


def test_a_snapshot_whose_ancestor_goes_during_the_walk_is_sealed_by_the_next(volume: Volume) -> None:
    """The walk passes over what the ancestor holds, which nobody has sealed."""
    first = volume.get_snapshot("one")
    volume.pwrite(b"two", 0)
    second = volume.snapshot("two")
    walk = sealing.walk_of(volume.engine, second.id)
    first.delete()
    volume.reclaim()
    assert sealing.step(volume.engine, walk) == (BLOCK, True)
    assert volume.stats()["snapshots_unsealed"] == 1 and volume.unsealed_bytes() == SIZE - BLOCK
    assert volume.seal() == sealing.Sealing(SIZE - BLOCK, 1, done=True)
    assert second.verify().counts["unsealed"] == 0


def test_a_snapshot_that_is_deleted_between_two_pieces_is_left_for_the_next_one(volume: Volume) -> None:
    second, work = volume.snapshot("two"), sealing.Work(set())
    assert work.piece(volume.engine) == 1 << 20
    volume.get_snapshot("one").delete()
    volume.reclaim()
    assert work.piece(volume.engine) == 0 and not work.is_done(volume.engine)
    while work.piece(volume.engine) is not None:
        pass
    assert work.snapshots == 1 and work.damage == {} and work.is_done(volume.engine)
    assert second.verify().counts["unsealed"] == 0


def test_what_is_sealed_already_is_passed_over_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several steps, each of so many extents: the lock is not held for as long as the whole takes."""
    monkeypatch.setattr(sealing, "PASSES", 16)
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        for block in range(0, BLOCKS, 2):
            volume.pwrite(b"x", block * BLOCK)
        number = volume.snapshot("one").id
        assert volume.seal() == sealing.Sealing(SIZE // 2, 1, done=True)
        record = volume.engine.lineage.get(number)
        assert record is not None
        volume.engine.lineage.unseal(record)
        walk, at_ends = sealing.walk_of(volume.engine, number), list[bool]()
        while not at_ends or not at_ends[-1]:
            read, at_end = sealing.step(volume.engine, walk)
            at_ends.append(at_end)
            assert read == 0
        assert len(at_ends) == -(-BLOCKS // 2 // 16)
        assert volume.stats()["snapshots_unsealed"] == 0


def failing(monkeypatch: pytest.MonkeyPatch, error: CowEngineError) -> None:
    def step(engine: Engine, walk: sealing.Walk) -> tuple[int, bool]:
        raise error

    monkeypatch.setattr(sealing, "step", step)


def test_an_error_of_a_poisoned_volume_is_not_laid_to_its_snapshots(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = sealing.Work(set())

    def poisoned(engine: Engine, walk: sealing.Walk) -> tuple[int, bool]:
        engine.poison(OSError(errno.EIO, os.strerror(errno.EIO)))
        raise StorageError("a read failed", engine.name, errno.EIO)

    monkeypatch.setattr(sealing, "step", poisoned)
    with pytest.raises(StorageError):
        work.piece(volume.engine)
    assert work.damage == {} and volume.engine.unsealable == set()


def test_where_the_disk_alone_is_at_fault_the_error_says_so(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, StorageError("a read failed", "v", errno.EIO))
    with pytest.raises(StorageError, match=r"snapshots 'one': .*a read failed"):
        volume.seal()
    monkeypatch.undo()
    assert volume.seal().snapshots == 1


def test_a_snapshot_that_could_not_be_read_and_is_gone_is_named_by_its_id(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = sealing.Work.piece

    def then_deleted(work: sealing.Work, engine: Engine) -> int | None:
        found = piece(work, engine)
        if work.damage and volume.snapshots():
            volume.snapshots()[0].delete()
        return found

    failing(monkeypatch, CorruptionError("the map is damaged", "v"))
    monkeypatch.setattr(sealing.Work, "piece", then_deleted)
    with pytest.raises(CorruptionError, match="snapshots id 1: "):
        volume.seal()


@pytest.mark.usefixtures("eager")
def test_without_a_thread_to_be_had_the_next_snapshot_tries_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    volume.engine.sealer.wake()
    assert volume.engine.sealer._thread is None
    monkeypatch.undo()
    volume.engine.sealer.wake()
    sealed_by_the_background(volume)


@pytest.mark.usefixtures("eager")
def test_a_thread_that_died_is_followed_by_another_one(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    died = list[Any]()
    monkeypatch.setattr(threading, "excepthook", died.append)

    def out_of_memory(engine: Engine, work: sealing.Work) -> bool:
        raise MemoryError

    piece = sealing._piece
    monkeypatch.setattr(sealing, "_piece", out_of_memory)
    volume.engine.sealer.wake()
    while not died:
        time.sleep(0.01)
    assert died[0].exc_type is MemoryError and volume.engine.sealer._thread is None
    monkeypatch.setattr(sealing, "_piece", piece)
    volume.engine.sealer.wake()
    sealed_by_the_background(volume)


@pytest.mark.usefixtures("eager")
def test_a_snapshot_taken_while_the_last_piece_is_done_is_sealed_too(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece, later = sealing._piece, list[str]()

    def and_a_snapshot(engine: Engine, work: sealing.Work) -> bool:
        more = piece(engine, work)
        if not more and not later:
            later.append("two")
            volume.pwrite(b"two", 0)
            volume.snapshot("two")
            engine.sealer.wake()
        return more

    monkeypatch.setattr(sealing, "_piece", and_a_snapshot)
    volume.engine.sealer.wake()
    thread = volume.engine.sealer._thread
    sealed_by_the_background(volume)
    assert later and thread is not None and volume.stats()["snapshots_unsealed"] == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [(NoSpaceError("no room", "v"), 0), (CorruptionError("the lineage is damaged", "v"), 1)],
    ids=["no space", "damage"],
)
def test_a_background_that_cannot_go_on_waits_and_says_once_if_something_is_wrong(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: CowEngineError, told: int
) -> None:
    def piece(work: sealing.Work, engine: Engine) -> int | None:
        raise error

    monkeypatch.setattr(sealing.Work, "piece", piece)
    with caplog.at_level("WARNING", "cowengine"):
        for _ in range(3):
            assert not sealing._piece(volume.engine, sealing.Work(set()))
        assert caplog.text.count("what is to be sealed cannot be found") == told
        volume.close()
        assert not sealing._piece(volume.engine, sealing.Work(set()))
        assert len(caplog.records) == told
