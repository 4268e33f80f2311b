"""Free memory that is there. In a virtual machine it may be the host's: Linux reports what is free, the host takes it,
and gives it back page by page when it is touched again.

Here a page cost 7 to 10 µs then, ten times what a write of 4 KiB costs. That falls on whoever writes to new space, and
not on whoever overwrites what the page cache has: it is neither one's work. So for a measurement the reporting is
switched off, where that may be done, and what is free is touched once.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPORTING = Path("/sys/module/page_reporting/parameters/page_reporting_order")
NEVER = "11"  # larger than any run of free pages
PAGE = mmap.PAGESIZE
LEFT = 1 << 30  # bytes that others may want meanwhile
PIECE = 1 << 30


@contextmanager
def present(limit: int) -> Iterator[str]:
    """Touches at most `limit` bytes of free memory, and keeps it from the host until the end. Yields what was done."""
    before = switched(NEVER)
    touched = touch(min(free_bytes() - LEFT, limit))
    reporting = "not there" if not REPORTING.exists() else "on: what is free goes to the host" if not before else "off"
    try:
        yield f"memory: {touched >> 20:,} MiB that were free were touched; free page reporting is {reporting}"
    finally:
        if before:
            switched(before)


def switched(order: str) -> str:
    """Sets the order from which on free pages are reported; the one before, or nothing if that may not be done."""
    try:
        before = REPORTING.read_text().strip()
        REPORTING.write_text(order)
    except OSError:
        return ""
    return before


def free_bytes() -> int:
    """Memory that nobody has, not even a cache."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemFree"].split()[0]) << 10


def touch(length: int) -> int:
    """Has so many bytes at once, each page of them written to; how many those were."""
    pieces = []
    while length >= PIECE:
        pieces.append(mmap.mmap(-1, PIECE))
        pieces[-1][::PAGE] = bytes(PIECE // PAGE)
        length -= PIECE
    for piece in pieces:
        piece.close()
    return PIECE * len(pieces)
