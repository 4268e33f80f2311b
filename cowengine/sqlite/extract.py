"""The files of a database out of a snapshot or a restored raw volume, as plain files any SQLite opens.

Copies bytes, recovers nothing: a hot journal comes out as a journal, and SQLite rolls it back when it opens the
database.

Threads     pure functions over their arguments.
Durability  the files are durable when `extract` returns. The database itself appears last, under its final name at
            once: what has the name of a database is never without the journal it needs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.errors import ExistsError, FormatError, NotFoundError
from cowengine.oserrors import typed
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
    in the way, NotFoundError if there is no database in it or no such directory, FormatError if it is something else,
    NoSpaceError and StorageError. Leaves nothing on failure.
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
    part, folder = destination + ".part", os.path.dirname(os.path.abspath(destination))
    written: list[str] = []
    try:
        with typed(destination):
            _refuse_existing(table, folder, (*targets, part))
            for file in (layout.JOURNAL, layout.WAL, layout.MAIN):
                if directory.exists[file]:
                    path = part if file == layout.MAIN else targets[file]
                    _copy(source, directory.areas[file].offset, directory.lengths[file], path, table, written)
            table.rename(part, destination)
            written.append(destination)
            table.sync_directory(folder)
    except BaseException:
        for path in written:
            with suppress(OSError):  # it is not there any more, or what failed fails again
                table.unlink(path)
        raise
    return [targets[file] for file in range(layout.FILE_COUNT) if directory.exists[file]]


def _refuse_existing(table: IOTable, folder: str, paths: tuple[str, ...]) -> None:
    try:
        there = table.names(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("there is no such directory", folder) from None
    for path in paths:
        if os.path.basename(path) in there:
            raise ExistsError("refusing to overwrite", path)


def _copy(source: Snapshot | RawVolume, first: int, length: int, path: str, table: IOTable, written: list[str]) -> None:
    """`length` bytes from `first`, to a new file, which is `written` from then on; pieces of zeros become holes."""
    fd = table.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    written.append(path)
    try:
        for offset in range(0, length, _PIECE):
            piece = source.pread(min(_PIECE, length - offset), first + offset)
            if piece != _ZEROS[: len(piece)]:
                table.pwrite(fd, piece, offset)
        table.truncate(fd, length)
        table.fdatasync(fd)
    finally:
        table.close(fd)
