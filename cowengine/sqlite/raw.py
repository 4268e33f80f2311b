"""A volume's content as a raw file, to read from: what a restore to a folder leaves.

Threads     any.
Durability  only reads.
"""

from __future__ import annotations

import os

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.errors import NotFoundError


class RawVolume:
    """What reading a snapshot needs, over a raw file. Open until `close`."""

    def __init__(self, path: str | os.PathLike[str], io: IOTable | None = None) -> None:
        """Raises NotFoundError if there is no such file."""
        self.name = os.fspath(path)
        self._io = io or KERNEL
        try:
            self._fd = self._io.open(self.name, os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFoundError("no such raw volume file", self.name) from error
        self.size = self._io.size(self._fd)

    def pread(self, length: int, offset: int) -> bytes:
        """At most `length` bytes; fewer where the file ends."""
        return self._io.pread(self._fd, length, offset)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._io.close(fd)
