"""What the transmission kernel asks of Python: everything but plain reads and writes. One call a request.

Nothing here raises: what the engine raises becomes an error of the protocol, and a line in the log.

Threads   Any, several at a time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from cowengine.engine import memory
from cowengine.errors import ClosedError, CowEngineError, NoSpaceError, OutOfRangeError, ReadOnlyError
from cowengine.nbd import protocol
from cowengine.nbd.contexts import Context
from cowengine.nbd.exports import Export
from cowengine.nbd.protocol import Command, CommandFlag, Errno, Replies
from cowengine.volume import ZEROS

logger = logging.getLogger("cowengine.nbd")

# The first class that fits decides.
_ERRNOS: tuple[tuple[type[BaseException], Errno], ...] = (
    (ReadOnlyError, Errno.EPERM),
    (OutOfRangeError, Errno.EINVAL),
    (NoSpaceError, Errno.ENOSPC),
    (ClosedError, Errno.ESHUTDOWN),
    (MemoryError, Errno.ENOMEM),
)


def errno_of(error: BaseException) -> Errno:
    """The error of the protocol that says best what was raised."""
    for kind, number in _ERRNOS:
        if isinstance(error, kind):
            return number
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Errno.ENOSPC
    return Errno.ENOMEM if isinstance(error, OSError) and error.errno == errno.ENOMEM else Errno.EIO


class ExportCommands:
    """The commands of one connection."""

    def __init__(self, export: Export, contexts: list[Context], replies: Replies) -> None:
        self._export = export
        self._volume = export.volume
        self._contexts = contexts
        self._replies = replies

    def carry_out(self, kind: int, flags: int, offset: int, length: int) -> int:
        """A request without data: 0, or an Errno."""
        if kind == Command.FLUSH:
            return 0 if self._export.read_only else self._answer("flush", 0, 0, self._volume.flush)
        if kind == Command.CACHE:
            return 0  # a hint: what was read once is in the page cache anyway
        if kind == Command.TRIM:
            return self._answer("trim", offset, length, lambda: self._volume.discard(offset, length))
        if kind == Command.WRITE_ZEROES and flags & CommandFlag.NO_HOLE:
            if flags & CommandFlag.FAST_ZERO:
                return Errno.ENOTSUP
            return self._answer("write of zeros", offset, length, lambda: self._fill(offset, length))
        if kind == Command.WRITE_ZEROES:
            return self._answer("write of zeros", offset, length, lambda: self._volume.write_zeroes(offset, length))
        return Errno.EINVAL

    def _fill(self, offset: int, length: int) -> None:
        """Zeros that have their space."""
        stop = offset + length
        while offset < stop:
            offset += self._volume.pwrite(memoryview(ZEROS)[: min(stop - offset, len(ZEROS))], offset)

    def block_status(self, flags: int, offset: int, length: int) -> list[bytes] | int:
        """The payload of each selected context, or an Errno."""
        states_max = min(protocol.DESCRIPTORS_MAX, protocol.REPLY_DESCRIPTORS_MAX // max(1, len(self._contexts)))
        if flags & CommandFlag.REQ_ONE:
            states_max = 1
        payloads: list[bytes] = []

        def ask() -> None:
            for context in self._contexts:
                payloads.append(context.payload(self._replies, offset, length, states_max))

        return self._answer("block status", offset, length, ask) or payloads

    def failed_read(self, status: int) -> int:
        """What to answer to a read that ended with a kernel's status."""

        def look() -> None:
            self._export.path.check_status(status)
            raise OSError(errno.EIO, f"status {status}")

        return self._answer("read", 0, 0, look)

    def failed_write(self, data: memoryview, offset: int, status: int) -> int:
        """Goes on with a write that ended with a kernel's status as `Volume.pwrite` does: policies may make space."""
        return self._answer("write", offset, len(data), lambda: self._volume._pwrite(data, offset, 0, status))

    def trim_memory(self) -> None:
        """There is more of the map in memory than there should be."""
        if self._export.snapshot is not None:
            self._export.snapshot._crowded()
        memory.trim(self._export.engine)

    def _answer(self, what: str, offset: int, length: int, work: Callable[[], object]) -> int:
        try:
            work()
        except (CowEngineError, OSError, MemoryError) as error:
            where = f" of {length} bytes at {offset}" if length else ""
            logger.warning("export %s: %s%s failed: %s", self._export.name, what, where, error)
            return errno_of(error)
        except Exception:
            logger.exception("export %s: %s failed", self._export.name, what)
            return Errno.EIO
        return 0
