"""How a long job tells how far it is, and learns that nobody wants it any more.

Threads: one caller. Rates and estimates are the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from cowengine.errors import CancelledError

#: Called with the bytes done, the bytes in all (None if unknown) and the phase: "backup", "verify", "restore", "copy".
Progress = Callable[[int, int | None, str], None]

INTERVAL_SECONDS = 0.1


class Cancel(Protocol):
    """Such as a threading.Event."""

    def is_set(self) -> bool: ...


class Meter:
    """Counts the bytes of one phase; reports at the start, about ten times a second, and at the end."""

    def __init__(self, phase: str, total: int | None, progress: Progress | None, cancel: Cancel | None) -> None:
        self._phase = phase
        self._total = total
        self._progress = progress
        self._cancel = cancel
        self._done = 0
        self._report()

    def advance(self, count: int) -> None:
        """Add `count` bytes. Raises CancelledError if the job was cancelled."""
        self._done += count
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError(f"the {self._phase} was cancelled; nothing is left of it")
        if self._progress is not None and time.monotonic() >= self._next_report:
            self._report()

    def finish(self) -> None:
        """Report the end: a backup may have found less than it looked for."""
        if self._total is not None:
            self._done = self._total
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, self._phase)
        self._next_report = time.monotonic() + INTERVAL_SECONDS
