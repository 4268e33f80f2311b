"""The I/O table without barriers: to make in seconds what nobody times, as 100,000 snapshots."""

from __future__ import annotations

import os

from cowengine.core.iotable import IOTable


class Unsynced(IOTable):
    """The kernel's calls without barriers; `synced` follows before anything durable is timed."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""


def synced(path: str | os.PathLike[str]) -> None:
    """Make durable what was written without barriers."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)
