"""A new volume file: log, first checkpoint, both superblocks.

The file counts as a volume from the first superblock on, which is written last; what a crash leaves before that is no
volume.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress

from cowengine.core.iotable import IOTable
from cowengine.engine.checkpoint import checkpoint
from cowengine.engine.engine import Engine, close_unopened
from cowengine.engine.locks import FileLocks
from cowengine.engine.resize import check_size
from cowengine.errors import (
    CowEngineError,
    ExistsError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    StorageError,
)
from cowengine.format import (
    LOG_BYTES_MAX,
    LOG_BYTES_MIN,
    SLOT_BYTES,
    TREE_FREE_MAP,
    TREE_MAP,
    Region,
    Superblock,
    hole,
    level_for,
)

logger = logging.getLogger("cowengine.engine")

BLOCK_BYTES_MIN, BLOCK_BYTES_MAX = 4096, 1 << 20
LOG_FIRST = 2
# Homes begin at a multiple of 2 MiB: the page cache then holds them in large folios. The gap is a hole in the file.
ALIGN_SLOTS, ALIGN_FROM = 512, 16 << 20
ZEROS = bytes(1 << 20)


def default_log_size(size: int) -> int:
    """8 MiB; 4 MiB for volumes below 256 MiB, 256 KiB below 16 MiB."""
    if size >= 256 << 20:
        return 8 << 20
    return 4 << 20 if size >= 16 << 20 else 256 << 10


def create_engine(
    io: IOTable, path: str, size: int, *, block_size: int = 4096, log_size: int | None = None,
    store_uuid: bytes | None = None,
) -> Engine:  # fmt: skip
    """Creates the file and opens it. Durable, the directory entry included, when it returns."""
    log_size = default_log_size(size) if log_size is None else log_size
    check_geometry(size, block_size, log_size)
    try:
        fd = io.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ExistsError("something is in the way; choose another name or remove it", path) from None
    except OSError as error:
        raise explained(error, path, size) from error
    try:
        own(io, fd, path)
        regions = (_home(size, block_size, log_size),)
        engine = fill(io, fd, path, first_superblock(block_size, log_size, regions, store_uuid), size)
        io.sync_directory(os.path.dirname(path) or ".")
    except BaseException as error:
        with suppress(OSError):  # a file system that failed may refuse that as well
            close_unopened(io, fd)
            io.unlink(path)
        if isinstance(error, OSError) and not isinstance(error, CowEngineError):
            raise explained(error, path, size) from error
        raise
    return engine


def check_geometry(size: int, block_size: int, log_size: int) -> None:
    """Raises OutOfRangeError that names the limit."""
    check_size(size)
    if block_size & (block_size - 1) or not BLOCK_BYTES_MIN <= block_size <= BLOCK_BYTES_MAX:
        raise OutOfRangeError(f"block_size {block_size}: a power of two from 4096 to 1048576 bytes is needed")
    if log_size % SLOT_BYTES or not LOG_BYTES_MIN <= log_size <= LOG_BYTES_MAX:
        raise OutOfRangeError(
            f"log_size {log_size}: a multiple of 4096 from {LOG_BYTES_MIN} to {LOG_BYTES_MAX} bytes is needed"
        )


def _home(size: int, block_size: int, log_size: int) -> Region:
    home = LOG_FIRST + log_size // SLOT_BYTES
    if size >= ALIGN_FROM:
        home = -(-home // ALIGN_SLOTS) * ALIGN_SLOTS
    return Region(0, home, -(-size // block_size))


def first_superblock(
    block_size: int, log_size: int, regions: tuple[Region, ...], store_uuid: bytes | None = None
) -> Superblock:
    """That of a volume to be: not written yet, and of generation 0."""
    return Superblock(
        block_shift=block_size.bit_length() - 1,
        log_shift=12 if log_size >= 1 << 20 else 9,
        volume_uuid=os.urandom(16),
        store_uuid=store_uuid or bytes(16),
        needs_store=store_uuid is not None,
        log_first=LOG_FIRST,
        log_slots=log_size // SLOT_BYTES,
        regions=regions,
        generation=0,
        salt=int.from_bytes(os.urandom(8), "little"),
        created_ns=time.time_ns(),
    )


def own(io: IOTable, fd: int, path: str) -> None:
    """Takes the lock of an owner. Raises BusyError."""
    FileLocks(io, fd, path).own()


def write_zeros(io: IOTable, fd: int, start: int, end: int) -> None:
    """Writes bytes [start, end) with zeros, so that writing them later needs no space."""
    while start < end:
        io.pwrite(fd, ZEROS[: min(end - start, len(ZEROS))], start)
        start += len(ZEROS)


def fill(
    io: IOTable, fd: int, path: str, superblock: Superblock, size: int, populate: Callable[[Engine], None] | None = None
) -> Engine:
    """Makes a file that nobody else can have a volume; durable when it returns.

    It is one from the first superblock on. `populate` is called before that, and gives the map what the file has.
    """
    sb = superblock
    block_slots = (1 << sb.block_shift) // SLOT_BYTES
    home_end = max(region.slot + region.block_count * block_slots for region in sb.regions)
    io.truncate(fd, home_end * SLOT_BYTES)
    write_zeros(io, fd, LOG_FIRST * SLOT_BYTES, (LOG_FIRST + sb.log_slots) * SLOT_BYTES)
    engine = Engine(io, fd, path, sb, read_only=False, file_slots=home_end)
    engine.path.live.set_size(size)
    block_count = -(-size >> sb.block_shift)
    engine.path.live.load(hole(level_for(TREE_MAP, block_count)).encode())
    engine.free_map.pointer = hole(level_for(TREE_FREE_MAP, 1)).encode()
    engine.path.live.set_epochs(1, 0)
    engine.lineage.add_head(size)
    if populate is not None:
        populate(engine)
    checkpoint(engine)
    # The second superblock slot gets the same, so that both are valid from the beginning.
    engine.write_superblock(engine.superblock)
    engine.allocator.fill_reserve()
    engine.locks.publish(engine.log.sequence)
    return engine


def explained(error: OSError, path: str, size: int) -> CowEngineError:
    """What an error of the system means to who wants a volume."""
    if error.errno in (errno.EFBIG, errno.EOVERFLOW, errno.EINVAL):
        return OutOfRangeError(f"a volume of {size} bytes is too large for this file system ({error.strerror})", path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError("no space for a new volume", path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ReadOnlyError("no file may be made here", path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError("there is no such directory", path)
    return StorageError(f"creating the volume failed: {error.strerror}", path, error.errno or errno.EIO)
