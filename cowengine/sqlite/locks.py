"""The lock of a database: SQLite's five states, between the connections of one process, and a gate in front of them.

A store has one owner process, so no other process can hold a lock; there is nothing on disk. States and transitions are
those of SQLite's "File Locking And Concurrency": any number of SHARED, one RESERVED beside them, PENDING lets no new
SHARED in, EXCLUSIVE is alone. A lock that cannot be had is refused at once; how long to try is for the busy handler of
the connection to say, and `BusyHandler` waits for a release where SQLite's own would sleep and ask again. `close_gate`
waits too; it is what freezes a database without a line of SQL.

Fair enough: who has just committed and asks again lets those who were refused go first. Without that one thread in a
loop starves all the others, for seconds, because it never has to sleep.

Invariants
    L1  at most one holder stands above SHARED: the committer.
    L2  if a holder is EXCLUSIVE, it is the only one.
    L3  while the gate is closed there is no committer, until the gate's time is up.
Threads     every method may be called from any thread; one holder is used by one thread at a time (SQLite sees to it).
Durability  none: the locks of a process die with it.
"""

from __future__ import annotations

import threading
import time

NONE, SHARED, RESERVED, PENDING, EXCLUSIVE = range(5)


# How long a committer stands back for those who wait: as long as a thread takes to wake up and ask.
_COURTESY_SECONDS = 0.001


class _Refusal(threading.local):
    """The lock that refused this thread last, and how many releases it had seen then."""

    lock: DatabaseLock | None = None
    releases = 0


_refusal = _Refusal()


class LockHolder:
    """One open file: the level it has. Changed only by `DatabaseLock`."""

    __slots__ = ("level",)

    def __init__(self) -> None:
        self.level = NONE


class DatabaseLock:
    """The lock state of one database."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._holders: set[LockHolder] = set()
        self._committer: LockHolder | None = None
        self._last_committer: LockHolder | None = None
        self._waiting = 0
        self._releases = 0
        self._gate_owner: str | None = None
        self._gate_until = 0.0

    def acquire(self, holder: LockHolder, level: int) -> bool:
        """Raise the holder to `level`; False if others stand in the way. A refused EXCLUSIVE may leave it PENDING."""
        with self._changed:
            if level <= holder.level:
                return True
            granted = self._share(holder) if level == SHARED else self._raise(holder, level)
            if not granted:
                _refusal.lock, _refusal.releases = self, self._releases
            return granted

    def _raise(self, holder: LockHolder, level: int) -> bool:
        if self._committer is None and self._gate_is_closed():
            return False
        if self._committer not in (None, holder):
            return False
        self._committer = self._last_committer = holder
        self._changed.notify_all()
        if level == EXCLUSIVE and len(self._holders) > 1:
            # Stay PENDING: no new reader gets in, so that a busy database cannot starve its committer.
            holder.level = PENDING
            return False
        holder.level = level
        return True

    def _share(self, holder: LockHolder) -> bool:
        if holder is self._last_committer and self._waiting:
            self._changed.wait_for(lambda: self._committer is not None, _COURTESY_SECONDS)
        if self._committer is not None and self._committer.level >= PENDING:
            return False
        self._holders.add(holder)
        holder.level = SHARED
        return True

    def release(self, holder: LockHolder, level: int) -> None:
        """Lower the holder to `level`, SHARED or NONE."""
        with self._changed:
            if holder.level <= level:
                return
            if self._committer is holder:
                self._committer = None
            if level == NONE:
                self._holders.discard(holder)
            holder.level = level
            self._wake()

    def is_reserved(self) -> bool:
        """True if any holder stands above SHARED."""
        return self._committer is not None

    def wait_for_release(self, seen: int, seconds: float) -> None:
        """Until a lock is released that was not when `seen` releases had been counted, or for so many seconds."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._releases != seen, seconds)
            finally:
                self._waiting -= 1

    def _wake(self) -> None:
        self._releases += 1
        self._changed.notify_all()

    # The gate.

    def close_gate(self, owner: str, until: float) -> bool:
        """Let no new committer in, and wait for the one there is; False if it is still there at `until` (monotonic).

        Closed, the gate opens by itself at `until`: whoever forgot it cannot stop the database for ever.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._gate_is_closed(), _wait(until))
            if self._gate_is_closed():
                return False
            self._gate_owner, self._gate_until = owner, until
            self._changed.wait_for(lambda: self._committer is None or self._gate_owner != owner, _wait(until))
            if self._committer is None and self._gate_owner == owner:
                return True
            if self._gate_owner == owner:
                self._open()
            return False

    def open_gate(self, owner: str) -> bool:
        """Open it, also under a `close_gate` that waits. False if `owner` had not closed it, or its time was up."""
        with self._changed:
            if self._gate_owner != owner:
                return False
            in_time = self._gate_is_closed()
            self._open()
            return in_time

    def _gate_is_closed(self) -> bool:
        return self._gate_owner is not None and time.monotonic() < self._gate_until

    def _open(self) -> None:
        self._gate_owner = None
        self._wake()


class BusyHandler:
    """Waits for other connections, up to `timeout` seconds for each statement: a busy handler for one connection."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._until = 0.0

    def __call__(self, attempt: int) -> bool:
        """True: try again."""
        now = time.monotonic()
        if attempt == 0:
            self._until = now + self.timeout
        if now >= self._until:
            return False
        lock, _refusal.lock = _refusal.lock, None
        if lock is not None:
            lock.wait_for_release(_refusal.releases, min(self._until - now, 0.1))
        else:
            time.sleep(min(self._until - now, 0.001))
        return True


def _wait(until: float) -> float:
    """Seconds to wait, in what a condition variable can count."""
    return max(0.0, min(until - time.monotonic(), threading.TIMEOUT_MAX))
