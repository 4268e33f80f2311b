"""What backups a target holds, by their manifests. Reads no stream. Threads: any number at once."""

from __future__ import annotations

import os

from cowengine.backup.manifest import Backup
from cowengine.backup.target import Target
from cowengine.core.iotable import IOTable


def list_backups(
    target: str | os.PathLike[str],
    chain: str | None = None,
    *,
    problems: list[str] | None = None,
    io: IOTable | None = None,
) -> list[Backup]:
    """All backups of a target (or of one chain), by chain and in the order they were written.

    A damaged manifest raises BackupError; with a list as `problems` it is named there, and the others are returned.
    Raises NotFoundError if there is no such directory.
    """
    return Target(target, io).backups(chain, problems)


def get_backup(target: str | os.PathLike[str], backup_id: str, *, io: IOTable | None = None) -> Backup:
    """The backup with this id. Raises NotFoundError, or BackupError if its manifest is damaged."""
    return Target(target, io).find(backup_id)
