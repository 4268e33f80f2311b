"""What a block device holds, and where it begins on its disk: tells whether a mount is the one on a volume.

Threads: stateless.
"""

from __future__ import annotations

import os
from contextlib import suppress

from cowengine.filesystems import START_BYTES, probe


def uuid_of_device(path: str) -> bytes | None:
    """The id of the file system on a device file; None if it is of no known kind, or cannot be read."""
    with suppress(OSError), open(path, "rb", buffering=0) as device:
        return probe(device.read(START_BYTES)).uuid or None
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
