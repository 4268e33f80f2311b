"""Where the files of a database lie in its volume: the file directory and its bytes.

docs/sqlite.md section 2 is normative and has the same table. The directory says of each file whether it exists, its
exact length and the area of the volume that is its own. Two copies of it lie in the first two sectors of the volume;
the valid one with the higher sequence counts. Does no I/O and decides nothing; `database.py` says when a copy is
written.

Threads     pure functions and immutable values.
Durability  none here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cowengine.core.checksum import xxh64
from cowengine.errors import FormatError, OutOfRangeError, UnsupportedVersionError

MAGIC = b"COWSQLDB"
VERSION = 1
COPY_BYTES = 512
COPY_COUNT = 2

# The files of a database, in the order of their entries, and what SQLite appends to the database's name for each.
MAIN, JOURNAL, WAL = range(3)
FILE_COUNT = 3
SUFFIXES = ("", "-journal", "-wal")

# The first area begins here: a multiple of every block size, so that no block holds bytes of two files.
AREA_ALIGNMENT = 1 << 20

_HEAD = struct.Struct("<8sIIQ")
_ENTRY = struct.Struct("<QQQQ")
_CHECKSUM = struct.Struct("<Q")
_CHECKSUM_OFFSET = COPY_BYTES - _CHECKSUM.size
_ENTRIES_END = _HEAD.size + FILE_COUNT * _ENTRY.size
_FLAG_EXISTS = 1


@dataclass(frozen=True, slots=True)
class Area:
    """The run of bytes of the volume that belongs to one file: `capacity` bytes from `offset`."""

    offset: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Directory:
    """What one copy holds: for each file its area, whether it exists, and its length in bytes (0 if it does not)."""

    sequence: int
    areas: tuple[Area, ...]
    exists: tuple[bool, ...]
    lengths: tuple[int, ...]


def volume_bytes(capacity: int) -> int:
    """The size of a volume whose files may each grow to `capacity` bytes (rounded up to whole MiB)."""
    if capacity <= 0:
        raise OutOfRangeError(f"the capacity of a database must be positive, not {capacity}")
    return AREA_ALIGNMENT * (1 + FILE_COUNT * -(-capacity // AREA_ALIGNMENT))


def areas_of(volume_size: int) -> tuple[Area, ...]:
    """Three equal areas behind the directory; raises OutOfRangeError for a volume that has no room for them."""
    capacity = (volume_size // AREA_ALIGNMENT - 1) // FILE_COUNT * AREA_ALIGNMENT
    if capacity <= 0:
        least = volume_bytes(1)
        raise OutOfRangeError(f"a database needs a volume of at least {least} bytes, not {volume_size}")
    return tuple(Area(AREA_ALIGNMENT + index * capacity, capacity) for index in range(FILE_COUNT))


def new_directory(volume_size: int) -> Directory:
    """No file exists yet."""
    return Directory(0, areas_of(volume_size), (False,) * FILE_COUNT, (0,) * FILE_COUNT)


def encode(directory: Directory) -> bytes:
    """One copy, COPY_BYTES long."""
    parts = [_HEAD.pack(MAGIC, VERSION, FILE_COUNT, directory.sequence)]
    for area, exists, length in zip(directory.areas, directory.exists, directory.lengths, strict=True):
        parts.append(_ENTRY.pack(area.offset, area.capacity, length, _FLAG_EXISTS if exists else 0))
    body = b"".join(parts).ljust(_CHECKSUM_OFFSET, b"\0")
    return body + _CHECKSUM.pack(xxh64(body))


def decode_newest(copies: bytes, volume_size: int) -> tuple[Directory, int] | None:
    """The directory that counts and the number of its copy; None if there has never been one (all zeros).

    `copies` are the first COPY_COUNT * COPY_BYTES bytes of the volume. Raises FormatError if they are neither.
    """
    found: tuple[Directory, int] | None = None
    for number in range(COPY_COUNT):
        directory = _decode(copies[number * COPY_BYTES : (number + 1) * COPY_BYTES], volume_size)
        if directory is not None and (found is None or directory.sequence > found[0].sequence):
            found = (directory, number)
    if found is None and any(copies):
        raise FormatError("the volume holds no SQLite database: no valid file directory in its first two sectors")
    return found


def _decode(copy: bytes, volume_size: int) -> Directory | None:
    """A valid copy, or None for an empty or torn one. A valid one of a newer format is refused, not passed over."""
    if len(copy) != COPY_BYTES or copy[: len(MAGIC)] != MAGIC:
        return None
    if _CHECKSUM.unpack_from(copy, _CHECKSUM_OFFSET)[0] != xxh64(copy[:_CHECKSUM_OFFSET]):
        return None
    _, version, file_count, sequence = _HEAD.unpack_from(copy)
    if version != VERSION:
        raise UnsupportedVersionError(f"the file directory has format {version}; this cowengine reads {VERSION}")
    if file_count != FILE_COUNT or any(copy[_ENTRIES_END:_CHECKSUM_OFFSET]):
        raise FormatError("the file directory is broken: wrong number of files, or reserved bytes in use")
    entries = [_ENTRY.unpack_from(copy, _HEAD.size + index * _ENTRY.size) for index in range(FILE_COUNT)]
    _check_entries(entries, volume_size)
    return Directory(
        sequence,
        tuple(Area(offset, capacity) for offset, capacity, _, _ in entries),
        tuple(flags == _FLAG_EXISTS for _, _, _, flags in entries),
        tuple(length for _, _, length, _ in entries),
    )


def _check_entries(entries: list[tuple[int, ...]], volume_size: int) -> None:
    """Areas lie one behind the other inside the volume, and each file inside its area."""
    free_from = AREA_ALIGNMENT
    for suffix, (offset, capacity, length, flags) in zip(SUFFIXES, entries, strict=True):
        name = suffix or "main"
        if offset < free_from or offset % AREA_ALIGNMENT or offset + capacity > volume_size:
            raise FormatError(f"the file directory is broken: the area of file {name} cannot lie at byte {offset}")
        if length > capacity or flags & ~_FLAG_EXISTS or (length and not flags):
            raise FormatError(f"the file directory is broken: file {name} has length {length} and flags {flags}")
        free_from = offset + capacity
