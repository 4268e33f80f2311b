"""Data and holes for a stream, without a snapshot that they are of."""

from __future__ import annotations

from typing import Any

import numpy

from cowengine.backup.pieces import Pieces
from cowengine.backup.stream_writer import StreamWriter


def put(writer: StreamWriter, volume: int, offset: int, plain: bytes) -> None:
    """Bytes of a volume, not long zeros."""

    def read_many(buffer: Any, extents: Any) -> int:
        buffer[: len(plain)] = plain
        return len(plain)

    writer.batch(volume, read_many, pieces_of(offset, len(plain), True), holes=True)


def leave(writer: StreamWriter, volume: int, offset: int, length: int) -> None:
    """A hole."""
    writer.batch(volume, lambda buffer, extents: 0, pieces_of(offset, length, False), holes=True)


def pieces_of(offset: int, length: int, filled: bool) -> Pieces:
    """One piece."""
    extents = numpy.array([[offset, length]], dtype=numpy.uint64)
    return Pieces(extents, numpy.array([filled]), length if filled else 0)
