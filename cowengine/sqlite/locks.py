"""The lock of a database: SQLite's five states, between the connections of one process, and a gate in front of them.

A store has one owner process, so no other process can hold a lock; there is nothing on disk. States and transitions are
those of SQLite's "File Locking And Concurrency": any number of SHARED, one RESERVED beside them, PENDING lets no new
SHARED in, EXCLUSIVE is alone. A connection never waits here: a lock that cannot be had is refused, and SQLite's busy
handler decides how long to try. Only `close_gate` waits; it is what freezes a database without a line of SQL.

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
        self._gate_owner: str | None = None
        self._gate_until = 0.0

    def acquire(self, holder: LockHolder, level: int) -> bool:
        """Raise the holder to `level`; False if others stand in the way. A refused EXCLUSIVE may leave it PENDING."""
        with self._changed:
            if level <= holder.level:
                return True
            if level == SHARED:
                return self._share(holder)
            if self._committer is None and self._gate_is_closed():
                return False
            if self._committer not in (None, holder):
                return False
            self._committer = holder
            if level == EXCLUSIVE and len(self._holders) > 1:
                # Stay PENDING: no new reader gets in, so that a busy database cannot starve its committer.
                holder.level = PENDING
                return False
            holder.level = level
            return True

    def _share(self, holder: LockHolder) -> bool:
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
                self._changed.notify_all()
            if level == NONE:
                self._holders.discard(holder)
            holder.level = level

    def is_reserved(self) -> bool:
        """True if any holder stands above SHARED."""
        return self._committer is not None

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
        self._changed.notify_all()


def _wait(until: float) -> float:
    """Seconds to wait, in what a condition variable can count."""
    return max(0.0, min(until - time.monotonic(), threading.TIMEOUT_MAX))
