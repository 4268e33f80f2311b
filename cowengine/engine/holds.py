"""Why a snapshot may not be given back: the one place that is asked before it is deleted, made an anchor or given up.

Threads   The commit lock is held, or taken here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowengine.engine.retention import why_retained
from cowengine.errors import BusyError, RetentionError
from cowengine.format import LINEAGE_HEAD, HoldEvent, LineageRecord

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

BEING_READ = "another process is reading it"


class ExportCounts:
    """To how many clients each head and snapshot is exported now, by id. In memory only; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()

    def add(self, number: int, change: int) -> None:
        """So many more, or fewer."""
        with self._lock:
            self._counts[number] += change
            if not self._counts[number]:
                del self._counts[number]

    def why(self, number: int | None = None) -> str | None:
        """What stands against giving one of them up, or all of them; None if nothing does."""
        with self._lock:
            count = self._counts.total() if number is None else self._counts[number]
        return f"it is exported to {count} client{'s' if count > 1 else ''}" if count else None


@contextmanager
def exported(engine: Engine, number: int) -> Iterator[None]:
    """While it lasts a snapshot is exported: it cannot be deleted, made an anchor or given up. Also of a head.

    Ends with the process. Raises NotFoundError.
    """
    with engine.lock:
        engine.path.check_state()
        record = engine.lineage.get(number)
        if record is None or record.kind != LINEAGE_HEAD:
            engine.live_snapshot(number)
        engine.exports.add(number, 1)
    try:
        yield
    finally:
        engine.exports.add(number, -1)


def why_kept(engine: Engine, record: LineageRecord) -> str | None:
    """What stands against giving this snapshot's data back now, for a message; None if nothing does."""
    return why_retained(engine, record) or _why_busy(engine, record)


def _why_busy(engine: Engine, record: LineageRecord) -> str | None:
    if record.hold_reason:
        return f"it is held: {record.hold_reason}"
    clone = engine.lineage.clone_on(record.id)
    if clone is not None:
        return f"clone {clone.name!r} stands on it"  # I38
    if engine.locks.is_read(record.id):
        return BEING_READ
    return engine.exports.why(record.id)


def require_deletable(engine: Engine, record: LineageRecord) -> None:
    """Raises RetentionError or BusyError that says why, if a snapshot's data may not be given back now."""
    for why, error in ((why_retained, RetentionError), (_why_busy, BusyError)):
        reason = why(engine, record)
        if reason is not None:
            raise error(f"snapshot {record.name!r} cannot be given back: {reason}", engine.name)


def claim(engine: Engine, record: LineageRecord) -> None:
    """The last question, behind which there is no way back: keeps readers off until the reclaim ends (I36)."""
    if not engine.locks.claim(record.id):
        raise BusyError(f"snapshot {record.name!r} cannot be given back: {BEING_READ}", engine.name)


def hold(engine: Engine, number: int, reason: str) -> None:
    """Holds a snapshot, or releases it with an empty reason; durable on return. It works on a full file system."""
    with engine.lock:
        engine.require_writable()
        record = engine.live_snapshot(number)
        if record.hold_reason == reason:
            return
        if reason and record.hold_reason:
            raise BusyError(f"snapshot {record.name!r} is held already: {record.hold_reason}", engine.name)
        engine.make_room(for_delete=True)
        with engine.undivided():
            engine.commit([HoldEvent(number, reason)], room_made=True)
            engine.lineage.hold(number, reason)
