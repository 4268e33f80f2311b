"""The lock of a database and its gate."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from cowengine.sqlite.locks import EXCLUSIVE, NONE, PENDING, RESERVED, SHARED, DatabaseLock, LockHolder


def holders(count: int, lock: DatabaseLock, level: int = SHARED) -> list[LockHolder]:
    made = [LockHolder() for _ in range(count)]
    assert all(lock.acquire(holder, level) for holder in made)
    return made


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def test_readers_share_with_each_other_and_with_a_reserved() -> None:
    lock = DatabaseLock()
    committer, _ = holders(2, lock)
    assert lock.acquire(committer, RESERVED)
    assert lock.is_reserved()
    holders(3, lock)


def test_a_second_reserved_is_refused() -> None:
    lock = DatabaseLock()
    first, second = holders(2, lock)
    assert lock.acquire(first, RESERVED)
    assert not lock.acquire(second, RESERVED)
    assert not lock.acquire(second, EXCLUSIVE)
    assert second.level == SHARED


def test_exclusive_waits_for_readers_and_lets_no_new_one_in() -> None:
    lock = DatabaseLock()
    committer, reader = holders(2, lock)
    assert lock.acquire(committer, RESERVED)
    assert not lock.acquire(committer, EXCLUSIVE)
    assert committer.level == PENDING
    assert not lock.acquire(LockHolder(), SHARED)
    lock.release(reader, NONE)
    assert lock.acquire(committer, EXCLUSIVE)


def test_going_down_to_shared_lets_others_in_again() -> None:
    lock = DatabaseLock()
    (committer,) = holders(1, lock)
    assert lock.acquire(committer, EXCLUSIVE)
    assert not lock.acquire(LockHolder(), SHARED)
    lock.release(committer, SHARED)
    assert not lock.is_reserved()
    (other,) = holders(1, lock)
    assert lock.acquire(other, RESERVED)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([NONE, SHARED, RESERVED, EXCLUSIVE])), max_size=60))
def test_there_is_one_committer_and_an_exclusive_is_alone(steps: list[tuple[int, int]]) -> None:
    lock = DatabaseLock()
    four = [LockHolder() for _ in range(4)]
    for number, level in steps:
        holder = four[number]
        if level > holder.level and (holder.level >= SHARED or level == SHARED):
            if lock.acquire(holder, level):
                assert holder.level == level
        elif level <= SHARED:
            lock.release(holder, level)
            assert holder.level <= max(level, NONE)
        levels = sorted(each.level for each in four)
        assert levels[2] <= SHARED
        assert levels[3] < EXCLUSIVE or levels[2] == NONE
        assert lock.is_reserved() == (levels[3] > SHARED)


def test_a_closed_gate_refuses_committers_and_no_readers() -> None:
    lock = DatabaseLock()
    assert lock.close_gate("job", soon())
    (reader,) = holders(1, lock)
    assert not lock.acquire(reader, RESERVED)
    assert not lock.acquire(reader, EXCLUSIVE)
    assert lock.open_gate("job")
    assert lock.acquire(reader, RESERVED)


def gate_behind_a_committer(lock: DatabaseLock) -> tuple[LockHolder, threading.Thread, list[bool]]:
    """A committer, and a thread that waits for it to close the gate; the list gets the outcome."""
    (committer,) = holders(1, lock)
    assert lock.acquire(committer, RESERVED)
    closed: list[bool] = []
    thread = threading.Thread(target=lambda: closed.append(lock.close_gate("job", soon())))
    thread.start()
    time.sleep(0.05)
    return committer, thread, closed


def test_the_gate_waits_for_the_committer_and_lets_it_finish() -> None:
    lock = DatabaseLock()
    committer, thread, closed = gate_behind_a_committer(lock)
    assert not closed
    assert lock.acquire(committer, EXCLUSIVE)
    lock.release(committer, NONE)
    thread.join()
    assert closed == [True]
    assert not lock.acquire(holders(1, lock)[0], RESERVED)


def test_a_gate_that_cannot_close_in_time_is_open() -> None:
    lock = DatabaseLock()
    committer, other = holders(2, lock)
    assert lock.acquire(committer, RESERVED)
    assert not lock.close_gate("job", soon(0.05))
    lock.release(committer, NONE)
    assert lock.acquire(other, RESERVED)


def test_a_forgotten_gate_opens_by_itself_and_says_so() -> None:
    lock = DatabaseLock()
    assert lock.close_gate("job", soon(0.05))
    (holder,) = holders(1, lock)
    assert not lock.acquire(holder, RESERVED)
    time.sleep(0.06)
    assert lock.acquire(holder, RESERVED)
    assert not lock.open_gate("job")


def test_opening_ends_a_close_that_still_waits() -> None:
    lock = DatabaseLock()
    _, thread, closed = gate_behind_a_committer(lock)
    lock.open_gate("job")
    thread.join(5)
    assert closed == [False]


def test_a_gate_is_opened_by_its_owner_only_and_passes_to_the_next() -> None:
    lock = DatabaseLock()
    assert lock.close_gate("one", soon())
    assert not lock.open_gate("two")
    assert not lock.close_gate("two", soon(0.02))
    assert lock.open_gate("one")
    assert lock.close_gate("two", soon())
