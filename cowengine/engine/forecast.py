"""How fast a volume takes new space, from a bounded ring of samples: bytes a minute, and when the disk will be full.

Threads   The caller serializes.
"""

from __future__ import annotations

from math import inf

SAMPLES_MAX = 64
SPACING_SECONDS_MAX = 64.0


class Forecast:
    """Samples of (time, bytes taken). When the ring is full every second one goes, so it reaches back an hour."""

    def __init__(self) -> None:
        self.spacing = 1.0  # seconds between samples
        self.due = -inf  # a sample from this time on (seconds, monotonic) would be taken
        self._samples: list[tuple[float, int]] = []

    def add(self, now: float, taken_bytes: int) -> None:
        """A sample: what the file takes now."""
        if now < self.due:
            return
        if len(self._samples) >= SAMPLES_MAX:
            if self.spacing < SPACING_SECONDS_MAX:
                self._samples, self.spacing = self._samples[::2], self.spacing * 2
            else:
                del self._samples[0]
        self._samples.append((now, taken_bytes))
        self.due = now + self.spacing

    def bytes_a_minute(self, now: float, taken_bytes: int) -> int | None:
        """New space a minute, negative if space was given back; None before there is a second to go by."""
        if not self._samples or now - self._samples[0][0] < 1:
            return None
        begin, taken_then = self._samples[0]
        return round((taken_bytes - taken_then) * 60 / (now - begin))


def full_in_seconds(free_bytes: int, bytes_a_minute: int | None) -> int | None:
    """When the file system will be full if it goes on like that and nobody else writes; None: not foreseeable."""
    return free_bytes * 60 // bytes_a_minute if bytes_a_minute is not None and bytes_a_minute > 0 else None
