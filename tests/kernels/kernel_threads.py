"""Threads that come just then: within a write of another, or while another waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kernel_path import Path

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

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def until_it_ends(made: Path) -> None:
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
        with open(f"/proc/self/task/{thread.native_id}/stat") as file:
            still = still + 1 if file.read().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.001)


def once(made: Path, action: Callable[[], object]) -> None:
    """Does it within the next write, by the thread that writes."""

    def writing(slot: int) -> None:
        made.disk.writing = lambda slot: None
        action()

    made.disk.writing = writing
