"""The files of a database out of a snapshot or a restored raw volume, as plain files any SQLite opens.

Copies bytes, recovers nothing: a hot journal comes out as a journal, and SQLite rolls it back when it opens the
database.

Threads     pure functions over their arguments.
Durability  the files are durable when `extract` returns. The database itself appears last, under its final name at
            once: what has the name of a database is never without the journal it needs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.errors import ExistsError, FormatError, NotFoundError
from cowengine.sqlite import layout
from cowengine.sqlite.raw import RawVolume

if TYPE_CHECKING:
    from cowengine.snapshot import Snapshot

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)


def extract(
    source: Snapshot | str | os.PathLike[str], destination: str | os.PathLike[str], *, io: IOTable | None = None
) -> list[str]:
    """Write the database in `source` to `destination`, and its journal or WAL, if it has one, beside it.

    `source` is a snapshot of a database's volume, or the path of the volume's content as a raw file (what a restore to
    a folder writes). Every file gets its exact length. Returns the paths written. Raises ExistsError if one of them is
    in the way, NotFoundError if there is no database in it, FormatError if it is something else. Leaves nothing on
    failure.
    """
    table = io or KERNEL
    if not isinstance(source, str | os.PathLike):
        return _extract(source, os.fspath(destination), table)
    raw = RawVolume(source, table)
    try:
        return _extract(raw, os.fspath(destination), table)
    finally:
        raw.close()


def _extract(source: Snapshot | RawVolume, destination: str, table: IOTable) -> list[str]:
    if source.size < layout.COPY_COUNT * layout.COPY_BYTES:
        raise FormatError(f"{source.size} bytes are too few for the volume of a database")
    found = layout.decode_newest(source.pread(layout.COPY_COUNT * layout.COPY_BYTES, 0), source.size)
    if found is None or not found[0].exists[layout.MAIN]:
        raise NotFoundError("there is no database in this volume")
    directory = found[0]
    targets = [destination + suffix for suffix in layout.SUFFIXES]
    part = destination + ".part"
    for path in (*targets, part):
        if os.path.lexists(path):
            raise ExistsError("refusing to overwrite", path)
    written: list[str] = []
    try:
        for file in (layout.JOURNAL, layout.WAL, layout.MAIN):
            if directory.exists[file]:
                path = part if file == layout.MAIN else targets[file]
                written.append(path)
                _copy(source, directory.areas[file].offset, directory.lengths[file], path, table)
        table.rename(part, destination)
        written.append(destination)
        table.sync_directory(os.path.dirname(os.path.abspath(destination)))
    except BaseException:
        for path in written:
            if os.path.lexists(path):
                table.unlink(path)
        raise
    return [targets[file] for file in range(layout.FILE_COUNT) if directory.exists[file]]


def _copy(source: Snapshot | RawVolume, first: int, length: int, path: str, table: IOTable) -> None:
    """`length` bytes from `first`, to a new file; pieces of zeros become holes."""
    fd = table.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        for offset in range(0, length, _PIECE):
            piece = source.pread(min(_PIECE, length - offset), first + offset)
            if piece != _ZEROS[: len(piece)]:
                table.pwrite(fd, piece, offset)
        table.truncate(fd, length)
        table.fdatasync(fd)
    finally:
        table.close(fd)
