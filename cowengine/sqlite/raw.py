"""A volume's content as a raw file, to read from: what a restore to a folder leaves.

Threads     any.
Durability  only reads.
"""

from __future__ import annotations

import os

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.files import open_regular
from cowengine.oserrors import typed


class RawVolume:
    """What reading a snapshot needs, over a raw file. Open until `close`."""

    def __init__(self, path: str | os.PathLike[str], io: IOTable | None = None) -> None:
        """Raises NotFoundError if there is no such file, FormatError if it is no regular one, StorageError."""
        self.name = os.fspath(path)
        self._io = io or KERNEL
        self._fd = open_regular(self._io, self.name, read_only=True)
        try:
            with typed(self.name):
                self.size = self._io.size(self._fd)
        except BaseException:
            self.close()
            raise

    def pread(self, length: int, offset: int) -> bytes:
        """At most `length` bytes; fewer where the file ends. Raises StorageError."""
        with typed(self.name):
            return self._io.pread(self._fd, length, offset)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._io.close(fd)
