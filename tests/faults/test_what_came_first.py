"""Calls of the engine before which something else came: another thread, Ctrl-C, a delete, a collected handle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import ClosedError, PoisonedError, Volume
from cowengine.engine.commitlock import CommitLock
from cowengine.engine.setcommit import prepare
from cowengine.engine.setflush import flush_events

BLOCK = 4096


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v", 256 * BLOCK, log_size=16384, background=False) as made:
        yield made


def test_a_full_batch_that_another_writer_has_committed_is_not_committed_again(volume: Volume) -> None:
    for block in range(0, 200, 2):
        volume.pwrite(b"x", block * BLOCK)
    engine = volume.engine
    while engine.path.batch_fill()[0] <= engine.path.batch_fill()[1] // 4:
        volume.snapshot(f"s{engine.lineage.next_id}")
        for block in range(0, 200, 2):
            volume.pwrite(b"x", block * BLOCK)
    before = volume.stats()["commits"]
    engine._commit_full_batch()
    assert volume.stats()["commits"] == before + 1
    engine._commit_full_batch()
    assert volume.stats()["commits"] == before + 1


def test_a_flush_that_another_one_has_done_commits_nothing(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began later and came first; so it has all that was written before either."""
    volume.pwrite(b"kept", 0)
    before, acquire, other = volume.stats()["commits"], CommitLock.acquire, threading.Thread(target=volume.engine.flush)

    def overtaken(lock: CommitLock, *, blocking: bool = True) -> bool:
        if other.ident is None:
            other.start()
            other.join()
        return acquire(lock, blocking=blocking)

    with monkeypatch.context() as patch:
        patch.setattr(CommitLock, "acquire", overtaken)
        volume.engine.flush()
    assert other.ident is not None and not volume.engine.is_dirty()
    assert volume.stats()["commits"] == before + 1


def test_a_call_for_a_clone_that_went_meanwhile_is_told_so(volume: Volume) -> None:
    clone = volume.snapshot("origin").clone("lab")
    head = volume.engine.path.heads[1]
    volume.engine.require_head(head)
    clone.close()
    volume.delete_head("lab")
    with pytest.raises(ClosedError):
        volume.engine.require_head(head)


def test_steps_that_a_second_ctrl_c_cut_short_are_seen_by_who_comes_next(volume: Volume) -> None:
    """The first one was raised between the steps, the second before anybody could note it."""
    volume.pwrite(b"x", 0)
    volume.engine._undone = 1
    with pytest.raises(PoisonedError):
        volume.flush()
    assert isinstance(volume.engine.failure, KeyboardInterrupt)


def test_an_anchor_that_is_made_an_anchor_stays_one_and_costs_nothing(volume: Volume) -> None:
    snapshot = volume.snapshot("s")
    snapshot.to_anchor()
    before = volume.stats()["commits"]
    volume.engine.to_anchor(snapshot.id)
    assert volume.stats()["commits"] == before and volume.snapshots()[0].is_anchor


def test_a_volume_dropped_by_the_thread_that_is_at_work_in_it_is_closed_behind_the_work(volume: Volume) -> None:
    volume.pwrite(b"kept", 0)
    engine = volume.engine
    with engine.lock:
        engine.close_dropped()
        assert not engine.closed
        (closing,) = (thread for thread in threading.enumerate() if thread.name == "cowengine-close")
    closing.join()
    assert engine.closed
    with Volume.open(volume.path, background=False) as again:
        assert again.pread(4, 0) == b"kept" and again.engine.recovered["was_clean"]


def test_a_volume_dropped_by_a_thread_with_nothing_to_do_in_it_is_closed_at_once(volume: Volume) -> None:
    engine = volume.engine
    engine.close_dropped()
    assert engine.closed


def test_events_of_sets_that_fill_a_record_go_first(volume: Volume) -> None:
    """Each member keeps them until its next record, which has room for so many."""
    engine = volume.engine

    def take(number: int) -> None:
        with prepare([engine], f"s{number}") as prepared:
            prepared.commit_point()
            prepared.finish(bytes(16), f"s{number}", 7, number + 1, bytes(3000))

    number = 0
    while engine.has_room_for_event():
        take(number)
        number += 1
    assert number >= 1 and len(engine.pending_events) == 2 * number
    take(number)
    assert len(engine.pending_events) == 2
    flush_events(engine)
    assert [snapshot.name for snapshot in volume.snapshots()] == [f"s{each}" for each in range(number + 1)]
    assert volume.check().problems == []
