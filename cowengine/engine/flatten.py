"""Flattening: a plain raw image again, in the volume's place or as a copy beside it.

In place is the way back from an adoption and goes the same way (`cowengine.engine.intent`): it needs a volume whose
blocks all lie where they do in the raw image, the first ones excepted. The homes that a growth added lie behind all
others, so a volume that was created, or has grown, has none of that; its image is a copy that takes the file's name at
the end. Either way the file may hold nothing else than that image. A copy under another name leaves the volume as it
is. Copies keep holes, and let the file system share the space where it can.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from cowengine.core.iotable import IOTable
from cowengine.core.roots import Root
from cowengine.engine.create import LOG_FIRST, explained, write_zeros
from cowengine.engine.engine import Engine
from cowengine.engine.files import give_name, open_unfinished, require_sole
from cowengine.engine.intent import intent_path, put_back, write_intent
from cowengine.engine.reclaim import pending
from cowengine.engine.verifying import require_undamaged
from cowengine.errors import BusyError, CowEngineError, ExistsError, NoSpaceError, NotFoundError, ReadOnlyError
from cowengine.format import SLOT_BYTES
from cowengine.format.intent import Intent
from cowengine.oserrors import typed

PART_SUFFIX = ".part"
COPY_BYTES = 1 << 20
SHARE_BYTES = 1 << 30  # asked of the file system at a time


# -- in the volume's place ---------------------------------------------------------------------------------------------
def flatten_file(engine: Engine, *, in_place: bool) -> None:
    """Makes the volume file the raw image of the live volume, and closes the engine. Durable when it returns.

    A crash leaves the volume or the raw image, whole. Raises BusyError if the file holds more than that image; with
    `in_place` also if it takes a copy.
    """
    with engine.lock, typed(engine.name):
        engine.require_writable()
        with engine.paused(engine.path.live):
            _require_alone(engine)
            header = min(region.slot for region in engine.regions) * SLOT_BYTES
            obstacle = _obstacle(engine, header)
            if not obstacle:
                _flatten_in_place(engine, header)
            elif in_place:
                raise BusyError(f"{obstacle}; flatten it into another file, or without in_place", engine.name)
            else:
                _replace(engine)
    engine.close()


def _obstacle(engine: Engine, header: int) -> str:
    """Why the blocks behind the header, in bytes, do not lie as in the raw image; empty if they do."""
    path, block_slots = engine.path, engine.path.block_bytes // SLOT_BYTES
    reached = header // path.block_bytes
    for region in engine.regions:
        if region.first_block <= reached and region.slot == region.first_block * block_slots:
            reached = max(reached, region.first_block + region.block_count)
    if reached * path.block_bytes < path.live.size:
        return "the blocks of this volume do not lie as in a raw image, because it was created or has grown"
    for block, slot, _ in _runs(engine, header):
        if slot not in (0, block * block_slots):
            return "blocks written after a snapshot lie elsewhere in the file"
    return ""


def _runs(engine: Engine, header: int) -> Iterator[tuple[int, int, int]]:
    """Behind the header: first block, its slot (0 in a hole), and how many blocks lie in a row."""
    path = engine.path
    block, end = header // path.block_bytes, -(-path.live.size // path.block_bytes)
    while block < end:
        slot, count = path.place(block)
        count = min(count, end - block)
        yield block, slot, count
        block += count


def _require_alone(engine: Engine) -> None:
    held = engine.lineage.count() + pending(engine)
    if len(engine.lineage.heads) > 1:
        raise BusyError("the volume has clones; delete them, or flatten it into another file", engine.name)
    if held:
        raise BusyError(f"the volume has {held} snapshots; delete them, or flatten it into another file", engine.name)
    if engine.superblock.needs_store:
        raise BusyError("the volume belongs to a store; detach it first", engine.name)
    intent = intent_path(engine.name)
    if os.path.basename(intent) in engine.io.names(os.path.dirname(intent) or "."):
        raise ExistsError("something is in the way; rename it", intent)
    require_sole(engine.io, engine.fd, engine.name)


def _flatten_in_place(engine: Engine, header: int) -> None:
    # Two, so that neither superblock needs the log any more.
    engine.checkpoint()
    engine.checkpoint()
    block_bytes = engine.path.block_bytes
    for block, slot, count in _runs(engine, header):
        if slot == 0:
            _clear(engine.io, engine.fd, block * block_bytes, (block + count) * block_bytes)
    with engine.undivided(NoSpaceError, ReadOnlyError):
        _turn(engine, header)


def _clear(io: IOTable, fd: int, start: int, end: int) -> None:
    """Bytes [start, end) read as zeros in the file as well, whether it can have holes or not."""
    try:
        io.punch(fd, start, end - start)
    except OSError:
        write_zeros(io, fd, start, end)


def _turn(engine: Engine, header: int) -> None:
    """The volume is paused and has no use for its log: header out, head of the image in."""
    io, path = engine.io, engine.path
    intent = Intent(path.live.size, engine.uuid, path.pread(min(header, path.live.size), 0))
    write_zeros(io, engine.fd, LOG_FIRST * SLOT_BYTES, header)
    engine.barrier()
    _announce(engine, intent)
    engine.path.read_only = True  # whatever happens from here on, nothing of the volume is written any more
    put_back(io, engine.fd, engine.name, intent)
    path.shut()  # who waited to write finds it closed: the file is the raw image


def _announce(engine: Engine, intent: Intent) -> None:
    """The last step that the file system can refuse; then the volume is as it was."""
    try:
        write_intent(engine.io, engine.name, intent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                "no space for what would undo it after a crash; nothing has changed", engine.name
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ReadOnlyError(
                "its directory may not be written, where what undoes it after a crash must lie; nothing has changed",
                engine.name,
            ) from error
        raise


def _replace(engine: Engine) -> None:
    """The volume is paused: a copy gets its name, and the file goes when it is closed."""
    path = engine.path

    def take_name(part: str) -> None:
        with engine.undivided(OSError):  # of the first step
            engine.io.rename(part, engine.name)
            engine.path.read_only = True  # nobody finds this file any more
            path.shut()
        engine.io.sync_directory(os.path.dirname(engine.name) or ".")

    write_image(engine.io, path.live.size, engine.name, partial(_copy, engine, None, path.live.size), take_name)


# -- a copy ------------------------------------------------------------------------------------------------------------
def flatten_copy(engine: Engine, root: Root | None, size: int, target: str) -> None:
    """Writes what a snapshot's root leads to (or a volume that nobody writes) into a new raw file, mode 0600.

    Durable when it returns. A crash leaves at most `target` with `.part` appended, which the next one replaces.
    Raises ExistsError, NotFoundError, NoSpaceError, BusyError.
    """
    write_new_image(engine.io, size, target, partial(_copy, engine, root, size))


def write_new_image(io: IOTable, size: int, target: str, fill: Callable[[int], None]) -> None:
    """Writes a new raw image, as `flatten_copy` does; `fill` is given its descriptor, and writes what is not zeros."""
    try:
        if os.path.basename(target) in io.names(os.path.dirname(target) or "."):
            raise ExistsError("something is in the way; choose another name or remove it", target)
    except OSError as error:
        raise _typed(error, target, size) from error

    write_image(io, size, target, fill, lambda part: give_name(io, part, target))


def write_image(
    io: IOTable, size: int, target: str, fill: Callable[[int], None], name: Callable[[str], None]
) -> None:  # fmt: skip
    """Writes the image durably under another name, which `name` is called with, to make it `target`, durably."""
    part = target + PART_SUFFIX
    try:
        fd = open_unfinished(io, part)
        try:
            io.truncate(fd, size)
            fill(fd)
            io.fdatasync(fd)
            name(part)
        except BaseException:
            with suppress(OSError):  # it has its name; or the disk is broken, and the first error says more
                io.unlink(part)
            raise
        finally:
            io.close(fd)
    except OSError as error:
        raise _typed(error, target, size) from error


def _copy(engine: Engine, root: Root | None, size: int, fd: int) -> None:
    path = engine.path
    block_bytes, end = path.block_bytes, -(-size // path.block_bytes)
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
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not isinstance(error, CowEngineError):
        return NotFoundError("there is no such directory", os.path.dirname(target) or ".")
    return error if isinstance(error, CowEngineError) else explained(error, target, size)
