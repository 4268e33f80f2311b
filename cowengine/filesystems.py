"""What file system begins at the start of a disk, by its superblock: its kind, its id, and whether mounting it would
write, to bring in what its journal still holds.

Formats: Documentation/filesystems/ext4; "XFS Algorithms & Data Structures"; the btrfs on-disk format.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

START_BYTES: Final = 128 << 10  # that `probe` wants to see

_EXT: Final = struct.Struct("<56xH 38x I 4x 16s")  # from 1,024 on: magic, features that a reader must know, UUID
_EXT_MAGIC: Final = 0xEF53
_EXT_NEEDS_RECOVERY: Final = 0x4
_XFS_UUID: Final = slice(32, 48)
_BTRFS_START: Final = 64 << 10
_READ_ONLY: Final = ((0, b"hsqs", "squashfs"), (1024, b"\xe2\xe1\xf5\xe0", "erofs"), (32769, b"CD001", "iso9660"))


class FileSystem(NamedTuple):
    """What was found; `kind` is empty for anything else, which may be a file system as well."""

    kind: str
    uuid: bytes
    writes_when_mounted: bool


def probe(start: bytes) -> FileSystem:
    """By the first 128 KiB of a disk. XFS and btrfs do not say in one place whether their logs are empty, and what is
    not known may have one: these are taken to write.
    """
    if len(start) >= 2048:
        magic, features, uuid = _EXT.unpack_from(start, 1024)
        if magic == _EXT_MAGIC:
            return FileSystem("ext", uuid, bool(features & _EXT_NEEDS_RECOVERY))
    if start[:4] == b"XFSB":
        return FileSystem("xfs", start[_XFS_UUID], True)
    btrfs = start[_BTRFS_START:]
    if btrfs[64:72] == b"_BHRfS_M":
        return FileSystem("btrfs", btrfs[32:48], True)
    for offset, magic, kind in _READ_ONLY:
        if start[offset : offset + len(magic)] == magic:
            return FileSystem(kind, b"", False)
    return FileSystem("", b"", True)
