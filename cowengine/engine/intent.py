"""The file beside an image that is on its way to a volume or back: from it the raw image is made whole again.

docs/format.md section 9. The file is durable before a byte of the image changes. Whoever finds one syncs first, and
then goes by the superblocks: a valid one means that the image is a volume, whole; none, that `restore` makes it the raw
image. So every crash leaves one of the two, and no step needs to know how far the one before it came.

Threads   none of its own; the caller holds the lock of the image.
"""

from __future__ import annotations

import os

from cowengine.core.iotable import IOTable
from cowengine.errors import CorruptionError, ExistsError, FormatError
from cowengine.format import MAGIC, SLOT_BYTES
from cowengine.format.intent import Intent, decode_intent, encode_intent, intent_bytes
from cowengine.format.layout import INTENT_BYTES

SUFFIX = ".adopting"
SUPERBLOCKS_BYTES = 2 * SLOT_BYTES


def intent_path(path: str) -> str:
    """Where the intent file of an image lies."""
    return path + SUFFIX


def write_intent(io: IOTable, path: str, intent: Intent) -> None:
    """Durable when it returns; nothing is left of it if it fails."""
    name = intent_path(path)
    # What has the image's name must have it for good, or a power cut brings the file before it back beside this one.
    io.sync_directory(_folder(path))
    fd = io.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            io.pwrite(fd, encode_intent(intent), 0)
            io.fdatasync(fd)
        finally:
            io.close(fd)
        io.sync_directory(_folder(path))
    except BaseException:
        io.unlink(name)
        raise


def read_intent(io: IOTable, path: str) -> Intent | None:
    """The intent beside an image; None if there is none.

    Raises CorruptionError if it is incomplete, so that nothing was done to the image yet, and ExistsError if the file
    of that name is something else.
    """
    name = intent_path(path)
    if not io.is_file(name):
        return None
    fd = io.open(name, os.O_RDONLY)
    try:
        # The file tells how long it is before it is read, and never more than there is.
        data = io.pread(fd, INTENT_BYTES, 0)
        if io.size(fd) == intent_bytes(data):
            data = io.pread(fd, intent_bytes(data), 0)
    finally:
        io.close(fd)
    try:
        return decode_intent(data)
    except FormatError:
        raise ExistsError("something is in the way of an adoption; rename it", name) from None
    except CorruptionError as error:
        error.filename = name
        raise


def remove_intent(io: IOTable, path: str) -> None:
    """Durable when it returns."""
    io.unlink(intent_path(path))
    io.sync_directory(_folder(path))


def void_intent(io: IOTable, path: str, volume_uuid: bytes) -> None:
    """The file is a volume, whole, and owned by the caller: an intent of its own beside it says nothing any more.

    Nor does an incomplete one, which never did.
    """
    try:
        intent = read_intent(io, path)
    except ExistsError:
        return
    except CorruptionError:
        remove_intent(io, path)
        return
    if intent is not None and intent.volume_uuid == volume_uuid:
        remove_intent(io, path)


def restore(io: IOTable, fd: int, path: str, intent: Intent) -> None:
    """Makes the file the raw image again; durable when it returns, and then the intent file is gone.

    Raises FormatError if the file is not one that this intent was written for; then nothing was changed.
    """
    found = io.pread(fd, len(intent.head), 0)
    if io.size(fd) < intent.size or not intent.explains(found):
        raise FormatError(
            f"{path}: changed since its adoption was interrupted, when it had {intent.size} bytes. If it is as you "
            f"want it, cut it to that size and remove {intent_path(path)}"
        )
    put_back(io, fd, path, intent)


def put_back(io: IOTable, fd: int, path: str, intent: Intent) -> None:
    """`restore` without the question whether the intent belongs to the file."""
    # As long as one superblock may be valid, nothing else of the volume may be gone (I30).
    io.pwrite(fd, intent.head[:SUPERBLOCKS_BYTES], 0)
    io.fdatasync(fd)
    io.pwrite(fd, intent.head[SUPERBLOCKS_BYTES:], SUPERBLOCKS_BYTES)
    io.truncate(fd, intent.size)
    io.fdatasync(fd)
    remove_intent(io, path)


def holds_superblock(io: IOTable, fd: int) -> bool:
    """Whether either slot begins like a superblock, valid or not."""
    return any(io.pread(fd, len(MAGIC), slot * SLOT_BYTES) == MAGIC for slot in (0, 1))


def _folder(path: str) -> str:
    return os.path.dirname(path) or "."
