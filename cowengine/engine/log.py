"""The commit log as a ring: where the next record goes, and how much room there is.

Positions count on without end; a record lies at its position modulo the size of the log. A record never overlaps the
end of the ring: if it does not fit there, it begins at the next lap. Writes records; syncs nothing.

On disk   docs/format.md section 6.
Threads   The engine's commit lock guards it.
"""

from __future__ import annotations

from cowengine.core.iotable import IOTable
from cowengine.format import SLOT_BYTES

RECORD_BYTES_MAX = 1 << 20  # what writers may fill while a commit waits for the disk


class CommitLog:
    """The ring, with the chain's end: sequence and checksum of the last record."""

    def __init__(self, io: IOTable, fd: int, first_slot: int, slots: int, shift: int) -> None:
        self._io = io
        self._fd = fd
        self._start = first_slot * SLOT_BYTES
        self.size = slots * SLOT_BYTES
        self.unit = 1 << shift
        self.position = 0  # where the last record ends
        self.tail = 0  # what lies before is no longer needed
        self.sequence = 0
        self.checksum = 0
        # Two checkpoint intervals, a record that wraps and a reserve for deletes must fit
        # (docs/notes/0002-log-room.md).
        self.record_max = min(self.size // 8, RECORD_BYTES_MAX)
        self.interval = (self.size - 2 * self.record_max) // 2 - 2 * self.record_max  # between checkpoints, at most

    def padded(self, length: int) -> int:
        """The room that a record of `length` bytes takes."""
        return (length + self.unit - 1) // self.unit * self.unit

    def place(self, length: int) -> int:
        """The position of a record of `length` bytes."""
        left = self.size - self.position % self.size
        return self.position if length <= left else self.position + left  # which is a multiple of the unit

    def fits(self, length: int) -> bool:
        """Whether a record of `length` bytes can be written without touching what is still needed."""
        room = (length + self.unit - 1) // self.unit * self.unit
        return self.place(room) + room - self.tail <= self.size

    @property
    def used(self) -> int:
        """Bytes of the ring that are still needed."""
        return self.position - self.tail

    def append(self, encoded: bytes, checksum: int) -> None:
        """Writes the next record, and lets the disk begin with it; it counts when a barrier has made it durable.

        `encoded` has zeros up to a multiple of `unit`.
        """
        room = len(encoded)
        assert self.fits(room), "I9: the log has no room; the caller must have asked"
        place = self.place(room)
        offset = self._start + place % self.size
        self._io.pwrite(self._fd, encoded, offset)
        self._io.begin_write(self._fd, offset, room)
        self.position = place + room
        self.sequence += 1
        self.checksum = checksum

    def read_all(self) -> bytes:
        """The whole ring, for recovery."""
        data = self._io.pread(self._fd, self.size, self._start)
        return data + bytes(self.size - len(data))
