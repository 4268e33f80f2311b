"""Events of sets on their way into the members' own logs: one thread for all volumes, there while it has work."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.engine import setflush
from cowengine.engine.setcommit import prepare
from cowengine.engine.setflush import Flusher

BLOCK = 4096
SET = bytes(range(16, 32))


@pytest.fixture
def flusher(monkeypatch: pytest.MonkeyPatch) -> Flusher:
    made = Flusher()
    monkeypatch.setattr("cowengine.engine.setcommit.flusher", made)
    monkeypatch.setattr(setflush, "FLUSH_EVENTS_AFTER", 0)
    return made


MakeVolumes = Callable[[int], list[Volume]]


@pytest.fixture
def make_volumes(tmp_path: Path) -> Iterator[MakeVolumes]:
    made: list[Volume] = []

    def make(count: int) -> list[Volume]:
        made.extend(Volume.create(tmp_path / f"v{number}", 64 * BLOCK) for number in range(count))
        return made

    yield make
    while made:
        made.pop().close()


def take(volumes: list[Volume], name: str) -> None:
    with prepare([volume.engine for volume in volumes], name) as prepared:
        prepared.commit_point()
        prepared.finish(SET, name, 7, 1)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cowengine-set-events"]


def until_done(flusher: Flusher) -> None:
    while flusher._thread is not None:
        time.sleep(0.001)


def require_flushed(flusher: Flusher, volume: Volume) -> None:
    """Nothing is left to be done, and the volume's own log has the events."""
    until_done(flusher)
    with volume.engine.lock:
        assert not volume.engine.pending_events


def test_one_thread_brings_the_events_of_all_members_and_ends(flusher: Flusher, make_volumes: MakeVolumes) -> None:
    volumes = make_volumes(5)
    for number in range(3):
        with volumes[-1].engine.lock:  # the last one is not flushed yet: the thread is there, and one is enough
            take(volumes, f"set{number}")
            assert len(threads()) == 1
        until_done(flusher)
        for volume in volumes:
            with volume.engine.lock:
                assert not volume.engine.pending_events and not volume.engine.flush_scheduled
    assert not threads()


def test_who_was_closed_or_dropped_meanwhile_is_passed_over(flusher: Flusher, make_volumes: MakeVolumes) -> None:
    volumes = make_volumes(3)
    volumes[0].engine.background = False  # it is not for the set to say in which order they are flushed
    take(volumes[:1], "set")
    volumes[0].engine.background = True
    with volumes[0].engine.lock:
        flusher.schedule(volume.engine for volume in volumes)
        volumes[1].close()
        dropped = volumes.pop()
        dropped.close()
        del dropped
        gc.collect()
    require_flushed(flusher, volumes[0])


def test_without_a_thread_to_be_had_the_next_set_tries_again(
    flusher: Flusher, make_volumes: MakeVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    volumes = make_volumes(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        take(volumes, "first")
    assert not threads() and len(volumes[0].engine.pending_events) == 2
    take(volumes, "second")
    require_flushed(flusher, volumes[0])


def test_a_failure_that_nobody_expects_ends_the_thread_and_the_next_set_has_a_new_one(
    flusher: Flusher, make_volumes: MakeVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(engine: object) -> None:
        raise LookupError("unexpected")

    volumes = make_volumes(2)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(setflush, "flush_events", fails)
        take(volumes[:1], "first")
        until_done(flusher)
    take(volumes[1:], "second")
    require_flushed(flusher, volumes[1])


def test_at_the_end_of_the_interpreter_nothing_is_begun_any_more(
    flusher: Flusher, make_volumes: MakeVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setflush, "FLUSH_EVENTS_AFTER", 1000)
    volumes = make_volumes(2)
    take(volumes[:1], "first")
    while flusher._due:
        time.sleep(0.001)
    flusher.stop()
    assert not threads() and volumes[0].engine.pending_events
    take(volumes[1:], "second")
    assert not threads()
    flusher.stop()


def test_the_child_of_a_fork_has_nothing_to_flush(flusher: Flusher, make_volumes: MakeVolumes) -> None:
    volumes = make_volumes(1)
    with volumes[0].engine.lock:
        take(volumes, "set")
        child = os.fork()
        if child == 0:
            setflush.flusher.renew()
            flusher.renew()
            os._exit(bool(flusher._due or flusher._thread))
        assert os.waitpid(child, 0)[1] == 0
    until_done(flusher)
