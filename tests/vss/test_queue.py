"""Two requestors at once: disjoint volumes in parallel, overlapping ones in turn, too many refused."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from scripted_writers import Journal, ScriptedWriter

from cowengine.errors import BusyError, CancelledError
from cowengine.vss import Requestor
from cowengine.vss.reservation import VolumeQueue


class Gate(ScriptedWriter):
    """Freezes when the test says so."""

    def __init__(self, journal: Journal, name: str) -> None:
        super().__init__(journal, name)
        self.reached = threading.Event()
        self.open = threading.Event()

    def prepare_snapshot(self, job: Any) -> None:
        self.reached.set()
        assert self.open.wait(20)


def test_sets_of_disjoint_volumes_are_made_in_parallel(store: Any, journal: Journal) -> None:
    gate = Gate(journal, "gate")
    first = Requestor(store, [gate]).start_snapshot(["a"])
    assert gate.reached.wait(10)
    Requestor(store).snapshot(["b", "c"])
    assert not first.done
    gate.open.set()
    first.wait(10)


def test_sets_of_overlapping_volumes_are_made_one_after_another(store: Any, journal: Journal) -> None:
    gate = Gate(journal, "gate")
    first = Requestor(store, [gate]).start_snapshot(["a", "b"], "first")
    assert gate.reached.wait(10)
    second = Requestor(store, [ScriptedWriter(journal, "second")]).start_snapshot(["b", "c"], "second")
    time.sleep(0.2)
    assert second.state == "queued"
    assert journal.events("second") == [], "a queued job disturbs nobody"
    gate.open.set()
    first.wait(10)
    second.wait(10)
    assert [taken.name for taken in store.snapshot_sets()] == ["first", "second"]


def test_a_full_queue_is_a_typed_busy_error_and_nothing_else(store: Any, journal: Journal) -> None:
    gate = Gate(journal, "gate")
    requestor = Requestor(store, [gate], queue_limit=1)
    first = requestor.start_snapshot(["a"])
    assert gate.reached.wait(10)
    second = Requestor(store, queue_limit=1).start_snapshot(["a"])
    with pytest.raises(BusyError, match="queue_limit"):
        requestor.snapshot(["a", "b"])
    with pytest.raises(BusyError):
        Requestor(store, queue_limit=0).start_snapshot(["a"])
    Requestor(store, queue_limit=0).snapshot(["b"])
    gate.open.set()
    first.wait(10)
    second.wait(10)
    assert len(store.snapshot_sets()) == 3


def test_a_queued_job_can_be_cancelled_and_the_next_takes_its_place(store: Any, journal: Journal) -> None:
    gate = Gate(journal, "gate")
    first = Requestor(store, [gate]).start_snapshot(["a"])
    assert gate.reached.wait(10)
    queued = Requestor(store).start_snapshot(["a"])
    behind = Requestor(store).start_snapshot(["a"])
    assert queued.cancel()
    with pytest.raises(CancelledError):
        queued.wait(10)
    assert queued.state == "cancelled"
    assert not behind.done
    gate.open.set()
    first.wait(10)
    behind.wait(10)
    assert len(store.snapshot_sets()) == 2


def test_a_large_set_is_not_starved_by_small_ones_that_come_after_it() -> None:
    queue = VolumeQueue()
    turns: list[str] = []

    def enter(name: str, *volumes: str) -> Any:
        return queue.enter(volumes, 10, lambda: turns.append(name))

    small = enter("small", "a")
    large = enter("large", "a", "b")
    later = enter("later", "b")
    other = enter("other", "c")
    assert turns == ["small", "other"]
    queue.leave(small)
    assert turns == ["small", "other", "large"]
    queue.leave(large)
    queue.leave(large)
    assert turns == ["small", "other", "large", "later"]
    queue.leave(later)
    queue.leave(other)


def test_many_requestors_at_once_each_get_their_set(store: Any, journal: Journal) -> None:
    choices = [["a"], ["b"], ["a", "b"], ["c"], ["a", "b", "c"], ["b", "c"]] * 3
    jobs = [Requestor(store, queue_limit=100).start_snapshot(volumes) for volumes in choices]
    assert [sorted(job.wait(60).snapshots) for job in jobs] == choices
