"""What processes tell each other by locks on the volume file: who owns it, which commits are durable, who reads what.

The locks are of the open file description: one process that opens a file twice is two to them. They lie far behind all
data, cost no I/O and end with their process, however that ends.

On disk   docs/format.md section 10.
Threads   Callers take the engine's or the reader's lock.
"""

from __future__ import annotations

from contextlib import suppress

from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError
from cowengine.format import LOCK_COMMITS, LOCK_FIRST
from cowengine.oserrors import typed

LIVE_HEAD = 0


class FileLocks:
    """The locks that one descriptor of a volume file holds. Byte LOCK_FIRST + id stands for a head or snapshot."""

    def __init__(self, io: IOTable, fd: int, name: str) -> None:
        self._io = io
        self._fd = fd
        self._name = name

    # -- the live head ------------------------------------------------------------------------------------------------
    def own(self) -> None:
        """Makes this descriptor the one owner; BusyError if there is one, or somebody reads the live volume."""
        if not self._take(LIVE_HEAD, exclusive=True):
            raise BusyError("the volume is open already, in this or another process", self._name)

    def share(self) -> bool:
        """Keeps owners out, so that the file stands still; False if there is one."""
        return self._take(LIVE_HEAD, exclusive=False)

    # -- commits ------------------------------------------------------------------------------------------------------
    def publish(self, sequence: int) -> None:
        """By the owner: all records up to this one are durable, readers may believe them (I35)."""
        self._io.lock(self._fd, True, LOCK_COMMITS, sequence + 1)

    def published(self) -> int | None:
        """The last record that the owner said is durable; None if there is no owner."""
        found = self._locked(False, LOCK_COMMITS)
        return None if found is None else sum(found) - LOCK_COMMITS - 1

    # -- snapshots ----------------------------------------------------------------------------------------------------
    def pin(self, number: int) -> bool:
        """By a reader: the snapshot's data stays until `release`; False if its owner is giving it back."""
        return self._take(number, exclusive=False)

    def claim(self, number: int) -> bool:
        """By the owner, before it gives back a snapshot's data, until that is done; False if somebody reads it."""
        return self._take(number, exclusive=True)

    def is_read(self, number: int) -> bool:
        """Whether another process (or handle) reads the snapshot."""
        return self._locked(True, LOCK_FIRST + number, 1) is not None

    def release(self, number: int) -> None:
        """Ends `pin` or `claim`."""
        with typed(self._name):
            self._io.unlock(self._fd, LOCK_FIRST + number, 1)

    def release_all(self) -> None:
        """Before the descriptor is closed: a process forked just now may have another one of the same description."""
        with suppress(OSError):  # then they end with the descriptor
            self._io.unlock(self._fd)

    def _locked(self, exclusive: bool, start: int, length: int = 0) -> tuple[int, int] | None:
        with typed(self._name):
            return self._io.locked(self._fd, exclusive, start, length)

    def _take(self, number: int, *, exclusive: bool) -> bool:
        try:
            with typed(self._name):
                self._io.lock(self._fd, exclusive, LOCK_FIRST + number, 1)
        except BlockingIOError:
            return False
        return True
