"""Closing a volume that a dozen threads use took seconds: each time they took the lock before who closed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cowengine import ClosedError, Volume

RLock = type(threading.RLock())


def test_who_closes_comes_before_all_who_wait(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "v", 1 << 20, background=False)
    volume.pwrite(b"kept", 0)
    told: list[str] = []
    lock, has_it, may_go, asked = volume.engine.lock, threading.Event(), threading.Event(), threading.Semaphore(0)

    class Noting(RLock):
        def acquire(self, blocking: bool = True) -> bool:
            asked.release()
            return super().acquire(blocking)

    lock._lock = Noting()

    def hold() -> None:
        with lock:
            has_it.set()
            may_go.wait()
            with lock:  # what has begun comes to its end
                told.append("went on")

    def wait() -> None:
        try:
            with lock:
                told.append("closed" if volume.closed else "got in")
        except ClosedError:
            told.append("closed")

    holder, waiters = threading.Thread(target=hold), [threading.Thread(target=wait) for _ in range(12)]
    closer = threading.Thread(target=volume.close)
    holder.start()
    has_it.wait()
    for thread in waiters:
        thread.start()
    for _ in (holder, *waiters):
        asked.acquire()  # all have begun to wait
    closer.start()
    while not lock.is_closing():
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        volume.flush()  # at once: the lock is still taken
    with pytest.raises(ClosedError):
        volume.snapshot("late")
    may_go.set()
    for thread in (holder, *waiters, closer):
        thread.join()
    assert told[0] == "went on" and set(told[1:]) == {"closed"}
    assert volume.closed and not lock.is_closing()
    volume.close()
    with Volume.open(tmp_path / "v") as again:
        assert again.pread(4, 0) == b"kept" and again.snapshots() == []
