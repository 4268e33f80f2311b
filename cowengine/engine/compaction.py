"""Compaction: the live volume goes back to its home slots, where a sequential read is sequential on the disk.

A snapshot makes the next write of each block go elsewhere; when the snapshot is gone the home is free again and the
block still away. Compaction moves it back. It holds no position of its own: what is home is passed over a run at a
time, so one that was stopped, or cut short by a crash, goes on wherever it is told to begin.

Durability   Moves ride in the next commit, as writes do; nothing is lost if it never comes.
Threads      Moves take the commit lock only where a batch is full; any number may run beside reads, writes, snapshots.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cowengine.core.compact import move_home

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

SETTLE_BYTES = 16 << 20  # moved, then a flush: it brings the old slots back


@dataclass(slots=True)
class Compaction:
    """How far one came. `position` is the byte to go on from; `done` says that it came to the end."""

    position: int
    moved_bytes: int = 0
    done: bool = False


def compact(
    engine: Engine, start: int = 0, bytes_a_second: int | None = None, stop: threading.Event | None = None,
    progress: Callable[[Compaction], None] | None = None,
) -> Compaction:  # fmt: skip
    """Moves what can be moved from byte `start` on, until the end or until `stop` is set. Durable when it returns.

    `bytes_a_second` bounds the speed; `progress` is called about once a second. Raises NoSpaceError.
    """
    path, stop = engine.path, stop or threading.Event()
    result = Compaction(start // path.block_bytes * path.block_bytes)
    begin = told = time.monotonic()
    unsettled = 0
    while not stop.is_set():
        engine.require_writable()
        block, moved, batch_full = move_home(path, result.position // path.block_bytes)
        size = path.live.size
        result.position, result.done = min(block * path.block_bytes, size), block * path.block_bytes >= size
        result.moved_bytes += moved * path.block_bytes
        unsettled += moved * path.block_bytes
        if result.done:
            break
        if batch_full or unsettled >= SETTLE_BYTES:
            engine.flush()
            unsettled = 0
        now = time.monotonic()
        if progress is not None and now - told >= 1.0:
            progress(result)
            told = now
        if bytes_a_second is not None:
            stop.wait(max(0.0, begin + result.moved_bytes / bytes_a_second - now))
    engine.flush()
    return result
