"""Turns what a kernel returned into an exception.

The names of the file and the snapshot are added by whoever knows them; the kernels know neither.
"""

from libc.stdint cimport uint64_t

import os as _os
import errno as _errno

from cowengine.core.radix cimport (
    STATUS_ABSENT, STATUS_BEYOND, STATUS_CORRUPT, STATUS_DAMAGED, STATUS_GONE, STATUS_HEADLESS, STATUS_MEMORY,
    STATUS_POISONED, Tree,
)

from cowengine import errors
from cowengine.core.iotable cimport STATUS_SHORT

cdef extern from *:
    """
    static _Thread_local uint64_t ce_damaged_slot, ce_damaged_offset;
    """
    uint64_t ce_damaged_slot, ce_damaged_offset


cdef int damaged(uint64_t slot, uint64_t offset) noexcept nogil:
    """Notes, for this thread, which block is not what its seal says; returns the status that means so."""
    global ce_damaged_slot, ce_damaged_offset
    ce_damaged_slot, ce_damaged_offset = slot, offset
    return STATUS_DAMAGED


cdef int check_status(int status, Tree tree) except -1:
    """Raises what `status` says; returns 0 if it says nothing."""
    if status == 0:
        return 0
    if status == STATUS_CORRUPT:
        raise errors.CorruptionError(
            f"metadata is damaged: slot {tree.damaged_slot} of the file does not hold the node that belongs there",
            file_offset=tree.damaged_slot * 4096)
    if status == STATUS_DAMAGED:
        raise errors.CorruptionError(
            f"the block at byte {ce_damaged_offset} in slot {ce_damaged_slot}, byte {ce_damaged_slot * 4096} of the "
            "file, does not hold what was sealed there", offset=ce_damaged_offset, file_offset=ce_damaged_slot * 4096)
    if status == STATUS_SHORT:
        raise errors.CorruptionError("the file ends before a block that it maps: it was cut short")
    if status == STATUS_MEMORY:
        raise MemoryError("no memory for a node of the block map")
    if status == STATUS_GONE:
        raise errors.NotFoundError("the snapshot was deleted")
    if status == STATUS_HEADLESS:
        raise errors.BusyError("the live volume belongs to another process: only its snapshots can be read here")
    if status == STATUS_ABSENT:
        raise errors.ClosedError("the volume is closed")
    if status == STATUS_POISONED:
        raise errors.PoisonedError("an earlier sync or commit failed; close the volume and open it again")
    if status == STATUS_BEYOND:
        raise errors.OutOfRangeError("the volume became smaller, and the range does not lie in it any more")
    if status in (_errno.ENOSPC, _errno.EDQUOT):
        raise errors.NoSpaceError("no space left on the file system; nothing acknowledged was lost")
    if status < 0:
        raise AssertionError(f"unexpected status {status}")
    raise errors.StorageError(f"a read or write of the volume file failed: {_os.strerror(status)}", number=status)
