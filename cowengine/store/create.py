"""A new store's directory: folders first, the store log last, which makes it a store."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress

from cowengine.core.iotable import IOTable
from cowengine.errors import ExistsError, NotFoundError
from cowengine.oserrors import typed
from cowengine.store.log import create_log
from cowengine.store.names import DOCUMENTS_NAME, LOG_NAME, UNFINISHED_SUFFIX, VOLUMES_NAME


def create_folder(io: IOTable, folder: str, log_size: int) -> None:
    """Make the directory and all that a new store has in it; durable on return, undone if it fails.

    Raises ExistsError, NotFoundError (no parent), OutOfRangeError (`log_size`), NoSpaceError, ReadOnlyError,
    StorageError.
    """
    with typed(folder):
        _make_folder(io, folder)
        _fill_folder(io, folder, log_size)


def _make_folder(io: IOTable, folder: str) -> None:
    try:
        io.mkdir(folder, 0o700)
    except FileExistsError:
        raise ExistsError("something is there already: a store is made in a new directory", folder) from None
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("the directory for the new store does not exist", os.path.dirname(folder)) from None


def _fill_folder(io: IOTable, folder: str, log_size: int) -> None:
    """Everything a new store has, durably; undone if it fails."""
    path = os.path.join(folder, LOG_NAME)
    created = []
    try:
        for name in (VOLUMES_NAME, DOCUMENTS_NAME):
            io.mkdir(os.path.join(folder, name), 0o700)
            created.append(name)
        create_log(io, path + UNFINISHED_SUFFIX, uuid.uuid4().bytes, log_size)
        io.sync_directory(folder)  # the log appears last: with it the store is whole
        io.rename(path + UNFINISHED_SUFFIX, path)
        io.sync_directory(folder)
        io.sync_directory(os.path.dirname(folder))
    except BaseException:
        with suppress(OSError):  # a file system that failed may refuse that as well
            for log in (path, path + UNFINISHED_SUFFIX):
                if io.is_file(log):
                    io.unlink(log)
            for name in created:
                io.rmdir(os.path.join(folder, name))
            io.rmdir(folder)
        raise
