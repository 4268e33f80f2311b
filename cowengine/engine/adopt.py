"""Adopting: a raw image becomes a volume where it lies, its data neither read nor copied.

Every block keeps its place: the home of block b is the slot at the image's own offset. Only the first blocks make room
for superblocks and log; their home lies behind the image. What the file system says is a hole becomes one.

Order (I30): the intent file; then everything else, in any order; the barrier of the checkpoint; the superblocks; then
the intent file goes. `cowengine.engine.intent` says what a crash leaves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice

from cowengine.core.iotable import IOTable
from cowengine.engine.checkpoint import write_map
from cowengine.engine.create import (
    LOG_FIRST,
    check_geometry,
    default_log_size,
    explained,
    fill,
    first_superblock,
    own,
    write_zeros,
)
from cowengine.engine.engine import DIRTY_NODES_MAX, Engine, close_unopened
from cowengine.engine.files import open_regular, require_sole
from cowengine.engine.foreign import looks_like
from cowengine.engine.intent import (
    holds_superblock,
    intent_path,
    put_back,
    read_intent,
    remove_intent,
    restore,
    write_intent,
)
from cowengine.engine.recovery import choose_superblock, open_engine
from cowengine.errors import (
    CorruptionError,
    CowEngineError,
    ExistsError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
    UnsupportedVersionError,
)
from cowengine.format import ENTRY_MAPPED, SLOT_BYTES, Region, encode_delta
from cowengine.format.intent import Intent
from cowengine.oserrors import typed

FIRST_EPOCH, LIVE_HEAD = 1, 0
DELTAS_AT_ONCE = 1024

Extent = tuple[int, int]  # first block, count


def adopt_engine(
    io: IOTable, path: str, *, block_size: int = 4096, log_size: int | None = None, raw: bool = False
) -> Engine:
    """Makes the raw image at `path` a volume and opens it; durable when it returns.

    An adoption that was interrupted is taken up: the file is the raw image again first, or the volume already.
    """
    fd, size = open_regular(io, path, read_only=False), 0
    try:
        size = io.size(fd)
        _take(io, fd, path)
        if not _settle(io, fd, path):
            size = io.size(fd)
            log_size = default_log_size(size) if log_size is None else log_size
            _check_image(io, fd, path, size, raw)
            check_geometry(size, block_size, log_size)
            return _adopt(io, fd, path, size, block_size, log_size)
    except BaseException as error:
        close_unopened(io, fd)
        if isinstance(error, OSError) and not isinstance(error, CowEngineError):
            raise explained(error, path, size) from error
        raise
    io.close(fd)
    return open_engine(io, path)


def adopt_as(
    io: IOTable, path: str, target: str, *, block_size: int = 4096, log_size: int | None = None, raw: bool = False
) -> None:
    """As `adopt_engine`, and the volume gets another name in the same file system, closed; all or, after a crash, none.

    The name is changed last. Raises ExistsError, NotFoundError (no such directory), OutOfRangeError (another file
    system) before anything is done.
    """
    folder, target_folder = os.path.dirname(path) or ".", os.path.dirname(target) or "."
    try:
        with typed(target):
            if os.path.basename(target) in io.names(target_folder):
                raise ExistsError("something is in the way; choose another name or remove it", target)
            if io.is_file(path) and not io.same_file_system(folder, target_folder):
                raise OutOfRangeError("lies in another file system; adopting moves a file and never copies it", target)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("there is no such directory", target_folder) from None
    adopt_engine(io, path, block_size=block_size, log_size=log_size, raw=raw).close()
    try:
        io.rename(path, target)
        io.sync_directory(target_folder)
        io.sync_directory(folder)
    except OSError as error:
        raise explained(error, target, 0) from error


def undo_adoption(io: IOTable, path: str) -> None:
    """Makes a file whose adoption, or way back to a raw image, was interrupted the raw image; durable on return.

    Raises NotFoundError if nothing was interrupted, FormatError if the file is a volume by now, or changed since.
    """
    fd = open_regular(io, path, read_only=False)
    try:
        if not io.is_file(intent_path(path)):
            raise NotFoundError("no adoption of this file was interrupted", path)
        _take(io, fd, path)
        if _settle(io, fd, path):
            raise FormatError(f"{path}: the adoption was finished, the file is a volume; flatten it for a raw image")
    except OSError as error:
        if isinstance(error, CowEngineError):
            raise
        raise explained(error, path, 0) from error
    finally:
        io.close(fd)


# -- may it be? --------------------------------------------------------------------------------------------------------
def _take(io: IOTable, fd: int, path: str) -> None:
    """The file is the caller's alone, and what is read from it now is what the disk holds."""
    own(io, fd, path)
    require_sole(io, fd, path)
    try:
        io.fdatasync(fd)
    except OSError as error:
        raise PoisonedError(f"the file cannot be synced ({error.strerror}); nothing was changed", path) from error
    io.forget(fd)


def _settle(io: IOTable, fd: int, path: str) -> bool:
    """What was interrupted is brought to its end: whether the file is a volume. Without an intent file nothing is."""
    try:
        intent = read_intent(io, path)
    except CorruptionError:
        if holds_superblock(io, fd):
            raise
        remove_intent(io, path)  # it never became durable, so nothing was done to the image
        return False
    if intent is None:
        return False
    try:
        superblock, _, _ = choose_superblock(io, fd, path)
    except UnsupportedVersionError:
        raise
    except (FormatError, CorruptionError):
        restore(io, fd, path, intent)
        return False
    if superblock.volume_uuid != intent.volume_uuid:
        raise FormatError(f"{path}: a volume, but not the one that {intent_path(path)} is about; remove that file")
    remove_intent(io, path)
    return True


def _check_image(io: IOTable, fd: int, path: str, size: int, raw: bool) -> None:
    if holds_superblock(io, fd):
        raise FormatError(f"{path}: is a cowengine volume already, or a damaged one")
    if size == 0:
        raise OutOfRangeError("the file is empty; create a volume instead", path)
    if size % 512:
        raise OutOfRangeError(f"the file has {size} bytes; a raw image has a multiple of 512", path)
    name = None if raw else looks_like(io, fd, size)
    if name is not None:
        raise FormatError(
            f"{path}: looks like {name}, not like a raw image. Import it (cowengine volume import), or say that it is "
            "raw (raw=True, --yes-it-is-raw)"
        )


# -- the work ----------------------------------------------------------------------------------------------------------
def _adopt(io: IOTable, fd: int, path: str, size: int, block_size: int, log_size: int) -> Engine:
    regions, header = _places(size, block_size, log_size)
    superblock = first_superblock(block_size, log_size, regions)
    head = io.pread(fd, min(size, header), 0)
    intent = Intent(size, superblock.volume_uuid, head)

    def populate(engine: Engine) -> None:
        blocks = _data_blocks(io, fd, header, size, block_size)
        _map(engine, chain(_blocks_with_data(head, block_size), blocks))

    write_intent(io, path, intent)
    try:
        io.pwrite(fd, head, regions[0].slot * SLOT_BYTES)
        write_zeros(io, fd, LOG_FIRST * SLOT_BYTES + log_size, header)
        engine = fill(io, fd, path, superblock, size, populate)
    except BaseException:
        put_back(io, fd, path, intent)
        raise
    remove_intent(io, path)
    return engine


def _places(size: int, block_size: int, log_size: int) -> tuple[tuple[Region, ...], int]:
    """The home regions, and the bytes of the header: whole blocks."""
    block_slots = block_size // SLOT_BYTES
    header_blocks = -(-(LOG_FIRST * SLOT_BYTES + log_size) // block_size)
    block_count = -(-size // block_size)
    displaced = Region(0, max(block_count, header_blocks) * block_slots, min(block_count, header_blocks))
    kept = block_count - displaced.block_count
    regions = (displaced,) if kept == 0 else (displaced, Region(header_blocks, header_blocks * block_slots, kept))
    return regions, header_blocks * block_size


def _blocks_with_data(head: bytes, block_size: int) -> Iterator[Extent]:
    """The blocks of the head that are not all zeros."""
    for block, start in enumerate(range(0, len(head), block_size)):
        if any(head[start : start + block_size]):
            yield block, 1


def _data_blocks(io: IOTable, fd: int, start: int, size: int, block_size: int) -> Iterator[Extent]:
    """The blocks in which the file system knows of data, ascending and disjoint."""
    done = start // block_size
    while done * block_size < size:
        found = io.next_data(fd, done * block_size)
        if found is None or found[0] >= size:
            return
        first, end = found[0] // block_size, -(-min(found[1], size) // block_size)
        yield first, end - first
        done = end


def _map(engine: Engine, extents: Iterator[Extent]) -> None:
    """The extents are mapped where they lie. Nodes are written as they get many, so memory stays bounded."""
    path = engine.path
    block_slots = path.block_bytes // SLOT_BYTES
    displaced = engine.superblock.regions[0]
    while part := list(islice(extents, DELTAS_AT_ONCE)):
        deltas = []
        for block, count in part:
            slot = block * block_slots + (displaced.slot if block < displaced.block_count else 0)
            deltas.append(encode_delta(block, count, ENTRY_MAPPED, slot, FIRST_EPOCH, LIVE_HEAD))
        path.replay(b"".join(deltas))
        if path.dirty_nodes() > DIRTY_NODES_MAX:
            _, _, _, _, superseded, roots = path.take_batch([path.live])
            engine.superseded += superseded
            write_map(engine, roots)
            del roots
            path.live.unload(0)
