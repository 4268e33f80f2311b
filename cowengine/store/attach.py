"""Which files may become a store's volume by being moved into it, and which may not.

Looks only; `VolumeTable.attach` moves.
"""

from __future__ import annotations

import errno
import os

from cowengine.engine.files import open_regular
from cowengine.engine.recovery import choose_superblock
from cowengine.errors import BusyError, ExistsError, StorageError
from cowengine.format import Superblock
from cowengine.store.names import LOG_NAME, VOLUMES_NAME
from cowengine.store.place import StorePlace
from cowengine.volume import Volume


def refuse_member(place: StorePlace, path: str) -> None:
    """Raises ExistsError or BusyError for a file that is a volume of a store: this one, or another, open or not."""
    folder = os.path.dirname(path)
    store = os.path.dirname(folder)
    if os.path.basename(folder) != VOLUMES_NAME or not place.io.is_file(os.path.join(store, LOG_NAME)):
        return
    if store == place.path:
        raise ExistsError("the file is a volume of this store already: rename the volume instead", path)
    raise BusyError(f"the file is a volume of the store {store!r}: detach it there first", path)


def read_superblock(place: StorePlace, path: str) -> Superblock:
    """The superblock of a volume file. Raises NotFoundError, FormatError, CorruptionError."""
    fd = open_regular(place.io, path, read_only=True)
    try:
        return choose_superblock(place.io, fd, path)[0]
    finally:
        place.io.close(fd)


def open_alone(place: StorePlace, path: str, *, without_store: bool) -> Volume:
    """The volume, owned and whole, as it stands outside the store.

    One that comes back without having been opened meanwhile keeps what it knows of the store's log; the mark of another
    store that did not close cleanly is a BusyError, unless `without_store`.
    """
    mine = read_superblock(place, path).store_uuid == place.uuid
    return Volume.open(
        path, io=place.io, background=False, without_store=without_store, store_uuid=place.uuid if mine else None
    )


def move(place: StorePlace, source: str, target: str) -> None:
    """Rename, durably: the file is in one place or in the other, whatever happens."""
    try:
        place.io.rename(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise StorageError(
                "the file lies on another file system than the store: copy it over first", source, errno.EXDEV
            ) from None
        raise
    place.io.sync_directory(os.path.dirname(target))
    place.io.sync_directory(os.path.dirname(source))
