"""Progress on stderr: a bar on a terminal, JSON lines for a program, or nothing.

Stdout is never touched, and nothing is printed more often than a person can read.
Threads: `update` may be called from any one thread at a time.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from cowengine.cli.sizes import shown_duration, shown_size

INTERVAL = 0.2  # seconds between two reports
BAR_WIDTH = 14  # characters


class Progress:
    """One long operation: call `update(done, total)` in bytes; `total` may be unknown (None or 0)."""

    def __init__(self, stream: TextIO, mode: str, label: str) -> None:
        self._stream = stream
        self._label = label
        self._mode = mode if mode != "auto" else ("bar" if stream.isatty() else "json")
        self._started = time.monotonic()
        self._reported = float("-inf")
        self._done: int = 0
        self._total: int | None = None

    def update(self, done: int, total: int | None = None, phase: str = "") -> None:
        """Say how far the operation is, and in which phase; prints at most five times a second."""
        self._label = phase or self._label
        self._done, self._total = int(done), int(total) if total else None
        now = time.monotonic()
        if self._mode != "none" and now - self._reported >= INTERVAL:
            self._reported = now
            self._report(now - self._started)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mode != "none" and self._reported > float("-inf"):
            self._report(time.monotonic() - self._started, last=True)

    def _report(self, elapsed: float, last: bool = False) -> None:
        rate = self._done / elapsed if elapsed > 0 else 0.0
        left = (self._total - self._done) / rate if self._total and rate > 0 else None
        if self._mode == "json":
            import json

            line = {
                "event": "progress",
                "label": self._label,
                "done_bytes": self._done,
                "total_bytes": self._total,
                "bytes_per_second": int(rate),
                "seconds_left": None if left is None else round(left, 1),
            }
            self._stream.write(json.dumps(line) + "\n")
        else:
            import shutil

            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + self._line(rate, left)[:width].ljust(width) + ("\n" if last else ""))
        self._stream.flush()

    def _line(self, rate: float, left: float | None) -> str:
        speed = f"{shown_size(rate)}/s"
        if not self._total:
            return f"{self._label}  {shown_size(self._done)}  {speed}"
        part = min(self._done / self._total, 1.0)
        filled = int(part * BAR_WIDTH)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        eta = f"  {shown_duration(left)} left" if left else ""
        return f"{self._label} [{bar}] {part:4.0%}  {shown_size(self._done)} of {shown_size(self._total)}  {speed}{eta}"
