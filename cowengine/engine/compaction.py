"""Compaction: the live volume goes back to its home slots, where a sequential read is sequential on the disk.

A snapshot makes the next write of each block go elsewhere; when the snapshot is gone the home is free again and the
block still away. Compaction moves it back. It holds no position of its own: what is home is passed over a run at a
time, so one that was stopped, or cut short by a crash, goes on wherever it is told to begin.

Blocks come home a few at a time, and the page cache keeps them in pieces as small: a read of 1 MiB then took three
times as long, also from a raw file that was written so. Behind each flush the cache drops the mebibytes that something
came home to; the next read fetches them at one go.

A block that was sealed is verified on its way and stays sealed: behind the flush its seal is entered for the new slot.
A crash in between costs the seal, not the block; the next snapshot's walk finds it.

Durability   Moves ride in the next commit, as writes do; nothing is lost if it never comes.
Threads      Moves take the commit lock only where a batch is full; any number may run beside reads, writes, snapshots.
             A `CompactionJob` has a thread of its own, a daemon, which close and the end of the interpreter wait for.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cowengine.core.compact import move_home
from cowengine.core.sealing import enter_seals
from cowengine.engine.pace import Pace
from cowengine.engine.sealing import bound_dirty
from cowengine.errors import BusyError
from cowengine.format import SLOT_BYTES

if TYPE_CHECKING:
    from cowengine.core.roots import Head
    from cowengine.engine.engine import Engine

SETTLE_BYTES = 16 << 20  # moved, then a flush: it brings the old slots back
READ_AGAIN_BYTES = 1 << 20  # of the file, dropped from the page cache at one go

_jobs: weakref.WeakSet[CompactionJob] = weakref.WeakSet()


@dataclass(slots=True)
class Compaction:
    """How far one came. `position` is the byte to go on from; `done` says that it came to the end."""

    position: int
    moved_bytes: int = 0
    done: bool = False


@dataclass(slots=True)
class _Unsettled:
    """What came home since the last flush: the parts of the file that it came to, and the seals that come along."""

    moved_bytes: int = 0
    homes: set[int] = field(default_factory=set)
    seals: list[tuple[int, int, int, int]] = field(default_factory=list)


def compact(
    engine: Engine, start: int = 0, bytes_a_second: int | None = None, stop: threading.Event | None = None,
    progress: Callable[[Compaction], None] | None = None, head: Head | None = None,
) -> Compaction:  # fmt: skip
    """Moves what can be moved of a head from byte `start` on, until the end or until `stop` is set. Durable on return.

    `bytes_a_second` bounds the speed; `progress` is called about once a second. Raises NoSpaceError.
    """
    path, head, pace = engine.path, head or engine.path.live, Pace(bytes_a_second, stop, progress)
    result = Compaction(start // path.block_bytes * path.block_bytes)
    unsettled = _Unsettled()
    while not pace.stop.is_set():
        engine.require_writable()
        block, moved, batch_full, seals = move_home(path, result.position // path.block_bytes, head)
        size = head.size
        result.position, result.done = min(block * path.block_bytes, size), block * path.block_bytes >= size
        result.moved_bytes += moved * path.block_bytes
        unsettled.moved_bytes += moved * path.block_bytes
        unsettled.seals += seals
        if moved:
            unsettled.homes.update(_parts(engine, head, block - moved, moved))
        if result.done:
            break
        if batch_full or unsettled.moved_bytes >= SETTLE_BYTES:
            _settle(engine, head, unsettled)
            unsettled = _Unsettled()
        pace.keep(result.moved_bytes, result)
    _settle(engine, head, unsettled)
    return result


def _parts(engine: Engine, head: Head, first: int, count: int) -> range:
    """The parts of the file, by number, in which these blocks lie: they have just come home."""
    start = engine.path.place(first, head)[0] * SLOT_BYTES
    return range(start // READ_AGAIN_BYTES, -(-(start + count * engine.path.block_bytes) // READ_AGAIN_BYTES))


def _settle(engine: Engine, head: Head, unsettled: _Unsettled) -> None:
    with engine.lock:
        engine.flush()
        if unsettled.seals:  # their slots lost what was sealed there with the record that brought the blocks home (I40)
            enter_seals(engine.path, head, unsettled.seals)
            bound_dirty(engine)
    with suppress(OSError):  # all is durable, and only the next read is slower
        for part in unsettled.homes:
            engine.io.forget(engine.fd, part * READ_AGAIN_BYTES, READ_AGAIN_BYTES)


class CompactionJob:
    """A compaction in the background: made by `Volume.start_compaction`. Closing the volume ends it."""

    def __init__(self, engine: Engine, start: int, bytes_a_second: int | None, head: Head) -> None:
        """Begins at once. Raises BusyError if one is running."""
        with engine.lock:
            if engine.compaction is not None and engine.compaction.running:
                raise BusyError("a compaction is running; stop it, or wait for it", engine.name)
            self._progress = Compaction(start)
            self._error: Exception | None = None
            self._stop = threading.Event()
            arguments = (engine, start, bytes_a_second, self._stop, self._note, head)
            self._thread = threading.Thread(target=self._run, args=arguments, name="cowengine-compaction", daemon=True)
            self._thread.start()
            engine.compaction = self
            _jobs.add(self)

    def _run(self, *arguments: Any) -> None:
        try:
            self._note(compact(*arguments))
        except Exception as error:  # told to who waits
            self._error = error

    def _note(self, progress: Compaction) -> None:
        self._progress = replace(progress)

    @property
    def running(self) -> bool:
        """Whether it has not come to an end."""
        return self._thread.is_alive()

    @property
    def progress(self) -> Compaction:
        """How far it came, as of about a second ago; in the end, exactly."""
        return self._progress

    def wait(self, timeout: float | None = None) -> Compaction:
        """Waits until it ends, or so many seconds, and returns how far it came: all of that is durable once it ended.

        Raises what ended it: NoSpaceError, PoisonedError, ClosedError.
        """
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return self._progress

    def stop(self) -> Compaction:
        """Ends it and waits for that. `progress.position` is where to begin again. Raises as `wait`."""
        self.end()
        return self.wait()

    def end(self) -> None:
        """As `stop`, and raises nothing. The commit lock must not be held."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _end_all() -> None:
    """At the end of the interpreter: a daemon must not be in the middle of anything."""
    for job in list(_jobs):
        job.end()


atexit.register(_end_all)
