"""What no durable operation can undercut, as a lane: what most rows on durable operations have beside them."""

from __future__ import annotations

import os

from race import Lane
from workload import BLOCK, MiB


def overwritten(raw, workload, size=MiB):
    """4 KiB and fdatasync, after the same."""
    workload.fill(raw.pwrite, size, BLOCK)
    offsets = workload.each_once(size)

    def write() -> None:
        os.pwrite(raw.fd, workload.block, next(offsets))
        os.fdatasync(raw.fd)

    return Lane(write, write)
