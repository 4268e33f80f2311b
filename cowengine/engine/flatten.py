"""Flattening: a plain raw image again, in place or as a copy.

In place is the way back from an adoption and goes the same way (`cowengine.engine.intent`): it needs a volume whose
blocks all lie where they do in the raw image, the first ones excepted, and that holds nothing else. A copy leaves the
volume as it is, keeps holes, and lets the file system share the space where it can.
"""

from __future__ import annotations

import errno
import os

from cowengine.core.iotable import IOTable
from cowengine.core.roots import Root
from cowengine.engine.create import LOG_FIRST, explained, write_zeros
from cowengine.engine.engine import Engine
from cowengine.engine.intent import intent_path, put_back, write_intent
from cowengine.engine.reclaim import pending
from cowengine.engine.verifying import require_undamaged
from cowengine.errors import BusyError, CowEngineError, ExistsError, NoSpaceError, NotFoundError
from cowengine.format import SLOT_BYTES
from cowengine.format.intent import Intent

PART_SUFFIX = ".part"
COPY_BYTES = 1 << 20
SHARE_BYTES = 1 << 30  # asked of the file system at a time


# -- in place ----------------------------------------------------------------------------------------------------------
def flatten_in_place(engine: Engine) -> None:
    """Makes the volume file the raw image of the live volume, and closes the engine. Durable when it returns.

    A crash leaves the volume or the raw image, whole. Raises BusyError if the file holds more than that image.
    """
    with engine.lock:
        engine.require_writable()
        with engine.paused(engine.path.live):
            header = _header(engine)
            _require_alone(engine)
            # Two, so that neither superblock needs the log any more.
            engine.checkpoint()
            engine.checkpoint()
            _punch_holes(engine, header)
            with engine.undivided(NoSpaceError):
                _turn(engine, header)
    engine.close()


def _header(engine: Engine) -> int:
    """Bytes before the first home in the file. Raises BusyError unless all blocks behind have the image's place."""
    block_slots = engine.path.block_bytes // SLOT_BYTES
    regions = engine.regions
    header = min(region.slot for region in regions) * SLOT_BYTES
    reached = header // engine.path.block_bytes
    for region in regions:
        if region.first_block <= reached and region.slot == region.first_block * block_slots:
            reached = max(reached, region.first_block + region.block_count)
    if reached * engine.path.block_bytes < engine.path.live.size:
        raise BusyError(
            "the blocks of this volume do not lie as in a raw image, because it was created or has grown; flatten it "
            "into another file", engine.name,
        )  # fmt: skip
    return header


def _require_alone(engine: Engine) -> None:
    held = engine.lineage.count() + pending(engine)
    if len(engine.lineage.heads) > 1:
        raise BusyError("the volume has clones; delete them, or flatten it into another file", engine.name)
    if held:
        raise BusyError(f"the volume has {held} snapshots; delete them, or flatten it into another file", engine.name)
    if engine.superblock.needs_store:
        raise BusyError("the volume belongs to a store; detach it first", engine.name)
    if engine.io.is_file(intent_path(engine.name)):
        raise ExistsError("something is in the way; rename it", intent_path(engine.name))
    if not engine.io.is_sole(engine.fd):
        raise BusyError("the file is open elsewhere, too; close it there first", engine.name)


def _punch_holes(engine: Engine, header: int) -> None:
    """What is a hole reads as zeros in the file as well. Raises BusyError if a block is not at home."""
    path = engine.path
    block_slots = path.block_bytes // SLOT_BYTES
    block, end = header // path.block_bytes, -(-path.live.size // path.block_bytes)
    while block < end:
        slot, count = path.place(block)
        count = min(count, end - block)
        if slot == 0:
            engine.io.punch(engine.fd, block * path.block_bytes, count * path.block_bytes)
        elif slot != block * block_slots:
            raise BusyError(
                "blocks written after a snapshot lie elsewhere in the file; flatten it into another one", engine.name
            )
        block += count


def _turn(engine: Engine, header: int) -> None:
    """The volume is paused and has no use for its log: header out, head of the image in."""
    io, path = engine.io, engine.path
    intent = Intent(path.live.size, engine.uuid, path.pread(min(header, path.live.size), 0))
    write_zeros(io, engine.fd, LOG_FIRST * SLOT_BYTES, header)
    engine.barrier()
    _announce(engine, intent)
    engine.read_only = True  # whatever happens from here on, nothing of the volume is written any more
    put_back(io, engine.fd, engine.name, intent)
    path.shut()  # who waited to write finds it closed: the file is the raw image


def _announce(engine: Engine, intent: Intent) -> None:
    """The last step that can find the file system full; then the volume is as it was."""
    try:
        write_intent(engine.io, engine.name, intent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                "no space for what would undo it after a crash; nothing has changed", engine.name
            ) from error
        raise


# -- a copy ------------------------------------------------------------------------------------------------------------
def flatten_copy(engine: Engine, root: Root | None, size: int, target: str) -> None:
    """Writes what a snapshot's root leads to (or a volume that nobody writes) into a new raw file, mode 0600.

    Durable when it returns. A crash leaves at most `target` with `.part` appended, which the next one takes over.
    Raises ExistsError, NotFoundError, NoSpaceError, BusyError.
    """
    io, part = engine.io, target + PART_SUFFIX
    folder = os.path.dirname(target) or "."
    try:
        if os.path.basename(target) in io.names(folder):
            raise ExistsError("something is in the way; choose another name or remove it", target)
        fd = io.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("there is no such directory", folder) from None
    except OSError as error:
        raise _typed(error, target, size) from error
    try:
        try:
            _own(io, fd, part)
            _copy(engine, root, size, fd)
            io.fdatasync(fd)
            io.rename(part, target)
        except BaseException:
            io.unlink(part)
            raise
        finally:
            io.close(fd)
        io.sync_directory(folder)
    except OSError as error:
        raise _typed(error, target, size) from error


def _own(io: IOTable, fd: int, part: str) -> None:
    """What a crash left of an earlier copy is taken over, what another process writes is not."""
    try:
        io.lock(fd, True)
    except BlockingIOError:
        raise BusyError("another process writes this file", part) from None
    io.truncate(fd, 0)


def _copy(engine: Engine, root: Root | None, size: int, fd: int) -> None:
    path = engine.path
    block_bytes, end = path.block_bytes, -(-size // path.block_bytes)
    engine.io.truncate(fd, size)
    block = 0
    while block < end:
        slot, count = path.place(block, root)
        count = min(count, end - block)
        if slot:
            start = block * block_bytes
            _copy_run(engine, root, slot * SLOT_BYTES, fd, start, min(start + count * block_bytes, size))
        block += count


def _copy_run(engine: Engine, root: Root | None, source: int, fd: int, start: int, end: int) -> None:
    """Bytes [start, end) of the volume, which lie in a row from `source` on."""
    at, block_bytes = start, engine.path.block_bytes
    while at < end:
        stop = min(end, at + SHARE_BYTES)
        require_undamaged(engine, root or engine.path.live, at // block_bytes, -(-stop // block_bytes))  # SE4
        done = engine.io.copy_range(engine.fd, source + at - start, fd, at, stop - at)
        if done == 0:
            data = engine.path.pread(min(end - at, COPY_BYTES), at, root)
            engine.io.pwrite(fd, data, at)
            done = len(data)
        at += done


def _typed(error: OSError, target: str, size: int) -> CowEngineError:
    return error if isinstance(error, CowEngineError) else explained(error, target, size)
