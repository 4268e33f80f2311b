"""A second copy of a backup, byte for byte, with all that it stands on: verified when read and verified when written.

Threads   Any number at once; the chain that is written to is locked.
Durable   Each backup is durable in the other target before the next one is begun, the base first.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor

from cowengine.backup.codec import worker_pool
from cowengine.backup.manifest import Backup
from cowengine.backup.progress import Cancel, Meter, Progress
from cowengine.backup.stream_reader import Source
from cowengine.backup.target import ChainLock, NewBackup, Target
from cowengine.backup.verify import read_through
from cowengine.core.iotable import IOTable
from cowengine.errors import ExistsError, NotFoundError


def copy_backup(
    target: str | os.PathLike[str],
    backup_id: str,
    other_target: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    io: IOTable | None = None,
) -> Backup:
    """Copy a backup and all it stands on into another target, under the same ids and chain; returns it.

    What the other target has already is not copied, but verified. Raises ExistsError if it has something else under
    that id, NotFoundError, BackupError if anything is damaged (nothing damaged is copied), BusyError, NoSpaceError,
    CancelledError.
    """
    source, other = Target(target, io), Target(other_target, io)
    backup = source.find(backup_id)
    links = source.chain_of(backup)
    meter = Meter("copy", 2 * sum(link.bytes_written for link in links), progress, cancel)
    with (
        worker_pool() as pool,
        ChainLock(other, backup.chain) as lock,
    ):
        for link in links:
            if _there(other, link):
                with other.source(link) as present:
                    read_through(present, pool, link, meter)
            else:
                _copy(source, other, lock, link, pool, meter)
    meter.finish()
    return backup


def _there(other: Target, backup: Backup) -> bool:
    try:
        present = other.find(backup.id)
    except NotFoundError:
        return False
    if present != backup:
        raise ExistsError(f"the other target has a different backup {backup.id}", other.path)
    return True


def _copy(source: Target, other: Target, lock: ChainLock, backup: Backup, pool: Executor, meter: Meter) -> None:
    with NewBackup(other, lock, backup.id) as new, source.source(backup) as original:

        def read(length: int) -> bytes:
            data = bytes(original.take(length))
            new.write(data)
            return data

        read_through(Source(read), pool, backup, meter)
        read_through(new.written(), pool, backup, meter)
        new.publish(backup)
