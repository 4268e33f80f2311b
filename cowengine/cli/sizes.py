"""Byte counts as people write and read them: 4K, 1M, 10G, 1T in, 10.0 GiB out. Powers of 1024 only."""

from __future__ import annotations

import argparse
import re

_SUFFIXES = "KMGTPE"
_SIZE = re.compile(r"(\d+)\s*(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_DIGITS_MAX = 20  # 2**64 has 20; more would only make a slow big integer


def size(text: str) -> int:
    """Bytes of `text`: an integer with an optional suffix K M G T P E (also KB, KiB), powers of 1024.

    Raises argparse.ArgumentTypeError for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(match[1]) > _DIGITS_MAX:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size; write an integer such as 4096, 4K, 1M, 10G or 1T")
    shift = 10 * (_SUFFIXES.index(match[2].upper()) + 1) if match[2] else 0
    return int(match[1]) << shift


def shown_size(count: float) -> str:
    """A byte count for a person: "512 B", "4.0 KiB", "10.0 GiB"."""
    if abs(count) < 1024:
        return f"{int(count)} B"
    for suffix in _SUFFIXES:
        count /= 1024
        if abs(count) < 1024 or suffix == _SUFFIXES[-1]:
            break
    return f"{count:.1f} {suffix}iB"


def shown_duration(seconds: float) -> str:
    """A duration for a person: "0.31 ms", "4.2 s", "3:07", "2:03:07"."""
    if seconds < 1:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
