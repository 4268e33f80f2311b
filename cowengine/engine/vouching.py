"""Which commits take one barrier: those whose record vouches for the data that it places.

Such a record has a check of each of its blocks, and one barrier is for all of it: an open that finds the record last in
the log finds out by the checks whether the data came along, and else drops it. So until the next record is durable, the
blocks are not written in place (I48), and what the record freed is not given out (I49). A commit of two barriers has
neither: its data is durable before its record is written.

Two are taken where one would save nothing, where there is data that no check is of, and where a block would never come
to rest.

Threads   The engine's commit lock is held.
"""

from __future__ import annotations

from collections.abc import Sequence

from cowengine.core.datapath import DataPath
from cowengine.engine.allocator import Allocator, runs_of
from cowengine.format import PAIR_BYTES, SLOT_BYTES, Event, SnapshotEvent

# A record vouches for no more data, and frees no more: to sum up more would cost what the second barrier does, even
# while the disk writes, and an open reads no more than this and the log (I51).
VOUCHED_BYTES = 1 << 20
RECORD_SHARE = 8  # of a record's room, at most, for checks


def vouched_blocks(record_max: int, block_shift: int) -> int:
    """For how many blocks a record of at most so many bytes may vouch; 16 bytes of it are kept for each."""
    return min(record_max // RECORD_SHARE // PAIR_BYTES, VOUCHED_BYTES >> block_shift)


class Vouching:
    """Of one open volume: what its next commit may do with one barrier, and what its last one left to be confirmed."""

    def __init__(self, path: DataPath, allocator: Allocator, blocks_max: int) -> None:
        self.barriers = 1  # that a commit takes at least, if it places data
        self._path = path
        self._allocator = allocator
        self._blocks_max = blocks_max
        self._synced_in_place = 0  # writes in place, counted before the last barrier began
        self._placed_again = 0
        self._held_back = b""  # what the last record freed, if it vouches: runs as in the record

    def blocks_for(self, events: Sequence[Event]) -> int:
        """How many blocks the next record may place and vouch for; 0: its commit takes two barriers."""
        if self.barriers > 1 or self._allocator.is_tight:
            return 0
        for event in events:
            if not isinstance(event, SnapshotEvent):
                return 0
        return self._blocks_max

    def checks(self, freed: bytes, events: Sequence[Event], in_place: int) -> list[tuple[int, int]]:
        """The checks of what the batch taken last places (I47), or none: then its commit takes two barriers. `freed`
        is packed as in the record.

        So it does where a snapshot would freeze what was written in place since the last barrier began (I50), and where
        a block was placed again because the last record vouches for its place (I48): else one that is written and
        flushed over and over would move each time.
        """
        before, self._placed_again = self._placed_again, self._path.placed_again
        if before != self._placed_again or (events and in_place != self._synced_in_place):
            return []
        if freed and sum(count for _, count in runs_of(freed)) * SLOT_BYTES > VOUCHED_BYTES:
            return []
        return self._path.unconfirmed.checks()

    def synced(self, in_place: int) -> None:
        """A barrier has returned that began when so many writes in place had ended, at least."""
        self._synced_in_place = in_place

    def acknowledged(self, freed: bytes, *, vouches: bool) -> bytes:
        """A record is durable. Returns what is free now: what the one before held back, and its own if it does not.

        Runs are as in a record.
        """
        self._path.unconfirmed.acknowledge(vouches)
        confirmed, self._held_back = self._held_back, freed if vouches else b""
        return confirmed if vouches else confirmed + freed

    @property
    def must_confirm(self) -> bool:
        """Whether a record is due for what it confirms: on a full file system each slot counts."""
        return self._allocator.is_tight and self._path.unconfirmed.block_count > 0
