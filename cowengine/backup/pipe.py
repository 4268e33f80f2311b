"""Streams over a pipe, a tape or any binary file object: as a sink and as a source.

Nothing here can seek, sync or name anything: what comes out is checked by the reader, and only by the reader.
Threads: one caller.
"""

from __future__ import annotations

import sys
from typing import Any

from cowengine.backup.stream_reader import Source
from cowengine.errors import BackupError, OutOfRangeError


class PipeSink:
    """Writes to a binary file object, or to standard output for "-"."""

    def __init__(self, target: Any) -> None:
        self._file = sys.stdout.buffer if target == "-" else target

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                count = self._file.write(view)
                if not isinstance(count, int) or count <= 0:
                    raise BackupError("the pipe takes no bytes: it must be a blocking binary file")
                view = view[count:]
        except (OSError, TypeError, ValueError) as error:
            raise BackupError(f"the pipe takes no more bytes: {error}") from error

    def finish(self) -> None:
        """Hand everything over to the operating system."""
        try:
            flush = getattr(self._file, "flush", None)
            if flush is not None:
                flush()
        except (OSError, ValueError) as error:
            raise BackupError(f"the pipe takes no more bytes: {error}") from error


def is_pipe(target: Any, *, method: str) -> bool:
    """Whether a target is "-" or a binary file object with `method` rather than a path."""
    return target == "-" or (not isinstance(target, str) and hasattr(target, method))


def pipe_source(source: Any) -> Source:
    """The bytes of a binary file object, or of standard input for "-"."""
    file = sys.stdin.buffer if source == "-" else source
    # read1 returns what a pipe has instead of waiting for all that was asked for.
    take = getattr(file, "read1", None) or file.read

    def read(length: int) -> bytes:
        try:
            data = take(length)
        except (OSError, ValueError) as error:
            raise BackupError(f"the stream cannot be read: {error}") from error
        if data is None or isinstance(data, str):
            raise OutOfRangeError("a stream is read from a blocking binary file")
        return bytes(data)

    return Source(read)
