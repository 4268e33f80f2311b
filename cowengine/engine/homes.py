"""Home regions: where each block has a place of its own, so that a sequential read is sequential on the disk.

A volume begins with one or two of them; growing adds one behind everything that the file has, so no slot of it was ever
given out (I44). The table of regions is short, so a new one is longer than the volume needs: it grows into it without
another one. Shrinking leaves the regions alone: what is free there takes no space, and nobody else gets it.

Durability   The file is made longer first, with a barrier; the region is in the record that has the new size.
Threads      The commit lock is held.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from cowengine.errors import CorruptionError, StorageError
from cowengine.format import REGIONS_MAX, Region, with_region

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

logger = logging.getLogger("cowengine.engine")

AHEAD = 1  # a new region has at least so many times the blocks of all that were there
_TOO_LONG = (errno.EFBIG, errno.EINVAL, errno.ENOSPC, errno.EDQUOT)


def region_for(engine: Engine, blocks: int) -> Region | None:
    """A region for a volume of `blocks` blocks, to be added by a commit. The file reaches to its end, durably.

    None if they all have homes, or if there can be no more: the table is full, or the file system has no file so long.
    What has no home is placed wherever there is room. Raises StorageError.
    """
    first = engine.regions[-1].first_block + engine.regions[-1].block_count
    if blocks <= first or len(engine.regions) == REGIONS_MAX:
        return None
    missing = blocks - first
    for count in dict.fromkeys((max(missing, AHEAD * first), missing)):
        slot = _take(engine, count)
        if slot is not None:
            engine.barrier()
            return Region(first, slot, count)
    return None


def _take(engine: Engine, blocks: int) -> int | None:
    """The first of the slots for so many blocks; None if the file system has no file so long."""
    try:
        return engine.allocator.take_homes(blocks)
    except OSError as error:
        if error.errno not in _TOO_LONG:
            number = error.errno or errno.EIO
            raise StorageError(f"the file cannot be made longer: {error.strerror}", engine.name, number) from error
        logger.debug("%s: no homes for %d blocks: %s", engine.name, blocks, error)
        return None


def add_region(engine: Engine, region: Region) -> None:
    """What a region event means in memory: the same for a commit and for replay. Raises CorruptionError."""
    if region.slot + region.block_count * engine.allocator.block_slots > engine.path.slots.end and not engine.read_only:
        raise CorruptionError("the file ends before a region of home slots: it was cut short", engine.name)
    engine.regions = with_region(engine.superblock, engine.regions, region)
    engine.allocator.keep_off(region)
    engine.path.set_regions([tuple(each) for each in engine.regions])
