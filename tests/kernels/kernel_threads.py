"""Threads that come just then: within a write of another, or while another waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from kernel_path import Path as DataPath

from cowengine.errors import ClosedError, PoisonedError

FLIGHTS = 64  # writes that may be in flight
ENDED = (ClosedError, PoisonedError)


def in_thread(action: Callable[[], object]) -> threading.Thread:
    """Does it beside others; what it raises because the volume ended is what it should."""

    def act() -> None:
        try:
            action()
        except ENDED:
            pass

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def until_it_ends(made: DataPath) -> None:
    """Waits until calls fail."""
    while True:
        try:
            made.path.check_state()
        except ENDED:
            return
        time.sleep(0.001)


def asleep(thread: threading.Thread) -> None:
    """Waits until a thread waits for something that this one does not do now."""
    still = 0
    while still < 10 and thread.is_alive():
        still = still + 1 if _state(thread) == "S" else 0
        time.sleep(0.001)


def _state(thread: threading.Thread) -> str:
    """How the kernel calls what a thread does; nothing if it has ended."""
    try:
        stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def once(made: DataPath, action: Callable[[], object]) -> None:
    """Does it within the next write, by the thread that writes."""

    def writing(slot: int) -> None:
        made.disk.writing = lambda slot: None
        action()

    made.disk.writing = writing
