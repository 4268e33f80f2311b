"""The identity that a file system carries in its superblock: tells whether a mount is the one on a volume.

Knows ext2 to ext4, XFS and btrfs; of others it says nothing. docs of the formats: Documentation/filesystems/ext4,
"XFS Algorithms & Data Structures" (sb_uuid), the btrfs on-disk format (fsid).

Threads: stateless.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

Read = Callable[[int, int], bytes]  # length, offset

_EXT, _EXT_MAGIC = 1024, b"\x53\xef"
_BTRFS, _BTRFS_MAGIC = 65536, b"_BHRfS_M"


def uuid_of(read: Read) -> str | None:
    """The UUID of the file system that begins at offset 0, in hexadecimal; None if it is of no known type."""
    start = read(2048, 0)
    if start[:4] == b"XFSB":
        return start[32:48].hex()
    if start[_EXT + 56 : _EXT + 58] == _EXT_MAGIC:
        return start[_EXT + 104 : _EXT + 120].hex()
    start = read(4096, _BTRFS)
    return start[32:48].hex() if start[64:72] == _BTRFS_MAGIC else None


def uuid_of_device(path: str) -> str | None:
    """The same of a device file; None also if it cannot be read."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            return uuid_of(lambda length, offset: os.pread(fd, length, offset))
        finally:
            os.close(fd)
    return None


def offset_of_device(path: str) -> int | None:
    """Where a device file begins on its disk, in bytes: other than 0 if it is a partition. None if nobody can say, as
    of what the device mapper makes (LVM, dm-crypt).
    """
    with suppress(OSError, ValueError):
        number = os.stat(path).st_rdev
        folder = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        if os.path.isdir(folder) and not os.path.exists(f"{folder}/dm"):
            if not os.path.exists(f"{folder}/partition"):
                return 0
            with open(f"{folder}/start", encoding="ascii") as start:
                return int(start.read()) * 512
    return None
