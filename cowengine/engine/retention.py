"""Retention: a snapshot that nobody may give back before a date, and the clock that says whether it has come.

Who may set the system's clock could let a retention end early, and time servers are wrong at times. So a volume has a
clock of its own: it begins with the system's time when the first snapshot is retained, is written with every
checkpoint, and goes on by CLOCK_BOOTTIME, which nobody sets, also while the volume is closed. Only when the machine was
started again, or the file was moved to another one, does the system's clock count: it never puts the volume's back, and
it is believed if it is at most `JUMP_MAX_NS` ahead. Beyond that the volume's clock stays behind, retentions last
longer, and `accept` is for a person who has looked.

The same idea is known from the compliance clocks of storage systems.

Threads   The commit lock is held, or taken here.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from cowengine.errors import OutOfRangeError, RetentionError
from cowengine.format import COUNTER_MAX, RetainEvent

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine
    from cowengine.format import LineageRecord, Superblock

JUMP_MAX_NS = 31 * 86400 * 10**9  # what the system's clock may be ahead of a volume that was closed, and be believed
BOOT_ID = "/proc/sys/kernel/random/boot_id"
TIME_NAMESPACE, MACHINES_OWN = "/proc/self/ns/time", 0xEFFFFFFA  # the kernel's number for the one that has no offsets


class RetentionClock:
    """The clock of one volume; it stands still at 0 until a snapshot is retained."""

    def __init__(self, superblock: Superblock) -> None:
        self._time_ns = 0
        self._boot_ns = 0
        self.resume(superblock.clock_ns, superblock.clock_boot_ns, superblock.clock_boot_id)

    def resume(self, clock_ns: int, boot_ns: int, boot_id: bytes) -> None:
        """Goes on from what a superblock or a record says; never back."""
        if clock_ns == 0:
            return
        boot_now, system = _boot_ns(), _system_ns()
        if boot_id == _boot_id() and boot_now >= boot_ns:
            now = clock_ns + boot_now - boot_ns
        else:
            now = system if clock_ns < system <= clock_ns + JUMP_MAX_NS else clock_ns
        self._time_ns, self._boot_ns = max(now, self.now_ns()), boot_now

    def now_ns(self) -> int:
        """The volume's time, Unix time in nanoseconds; 0 if no snapshot was ever retained."""
        return min(self._time_ns + _boot_ns() - self._boot_ns, COUNTER_MAX - 1) if self._time_ns else 0

    def begin(self) -> None:
        """Takes the system's time, unless the clock goes already."""
        if not self._time_ns:
            self.accept()

    def accept(self) -> None:
        """Takes the system's time, if that is ahead, however far."""
        self._time_ns, self._boot_ns = max(self.now_ns(), _system_ns()), _boot_ns()

    def superblock_fields(self) -> dict[str, Any]:
        """What the next superblock, or the next record of a retention, says of the clock."""
        if not self._time_ns:
            return {"clock_ns": 0, "clock_boot_ns": 0, "clock_boot_id": bytes(16)}
        return {"clock_ns": self.now_ns(), "clock_boot_ns": _boot_ns(), "clock_boot_id": _boot_id()}


def why_retained(engine: Engine, record: LineageRecord) -> str | None:
    """Until when a snapshot is retained, for a message; None if it is not, or no longer."""
    now = engine.retention.now_ns()
    if record.retain_until_ns <= now:
        return None
    why = f"it is retained until {_shown(record.retain_until_ns)}"
    if record.retain_until_ns <= _system_ns():
        why += f", and by the volume's clock it is {_shown(now)}; accept_clock() says that the system's is right"
    return why


def retain(engine: Engine, number: int, until_ns: int) -> None:
    """Retains a snapshot until that time (Unix, nanoseconds), or longer than before; durable on return.

    It works on a full file system.
    """
    with engine.lock:
        engine.require_writable()
        record = engine.live_snapshot(number)
        if until_ns == record.retain_until_ns:
            return
        if until_ns < record.retain_until_ns:
            raise RetentionError(
                f"snapshot {record.name!r} is retained until {_shown(record.retain_until_ns)}: it is never shortened",
                engine.name,
            )
        if not max(_system_ns(), engine.retention.now_ns()) < until_ns < COUNTER_MAX:
            raise OutOfRangeError("a retention ends in the future, and before the year 2262")
        engine.make_room(for_delete=True)
        with engine.undivided():
            engine.retention.begin()
            engine.commit([RetainEvent(number, until_ns, **engine.retention.superblock_fields())], room_made=True)
            engine.lineage.retain(number, until_ns)


def accept_clock(engine: Engine) -> None:
    """The volume's clock takes the system's time, however far that is ahead; durable on return."""
    with engine.lock:
        engine.require_writable()
        engine.retention.accept()
        engine.checkpoint()


def _shown(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ns // 10**9))


def _system_ns() -> int:
    return time.time_ns()


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@functools.cache
def _boot_id() -> bytes:
    """Which run of which machine CLOCK_BOOTTIME belongs to, the same for a process's whole life.

    One that no other process has where that cannot be told, and in a time namespace, where its maker set that clock.
    """
    try:
        if os.path.exists(TIME_NAMESPACE) and os.stat(TIME_NAMESPACE).st_ino != MACHINES_OWN:
            return os.urandom(16)
        with open(BOOT_ID, encoding="ascii") as file:
            return uuid.UUID(file.read().strip()).bytes
    except (OSError, ValueError):
        return os.urandom(16)
