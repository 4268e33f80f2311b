"""The pace of long work over a volume: how fast it may go, when it tells how far it came, and whether it is to stop.

Threads   one works; any may set `stop`, which also ends a wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

TELL_SECONDS = 1.0


class Pace(Generic[T]):
    """At most `bytes_a_second` (None: no limit); `progress` is called about once a second."""

    def __init__(
        self, bytes_a_second: int | None, stop: threading.Event | None, progress: Callable[[T], None] | None
    ) -> None:  # fmt: skip
        self._rate = bytes_a_second
        self._progress = progress
        self.stop = stop or threading.Event()
        self._began = self._told = time.monotonic()

    def keep(self, done_bytes: int, result: T) -> None:
        """Behind a piece of the work: tells, if it is time, and waits until so many bytes may be done."""
        now = time.monotonic()
        if self._progress is not None and now - self._told >= TELL_SECONDS:
            self._progress(result)
            self._told = now
        if self._rate is not None:
            self.stop.wait(max(0.0, self._began + done_bytes / self._rate - now))
