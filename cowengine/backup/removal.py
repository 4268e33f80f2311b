"""Deleting a backup, and refusing to when another one needs it.

Threads   The chain is locked. Durable on return; a crash in between leaves nothing that looks like a backup.
"""

from __future__ import annotations

import os

from cowengine.backup.names import checked_backup_id
from cowengine.backup.target import ChainLock, Target
from cowengine.core.iotable import IOTable
from cowengine.errors import BackupError, BusyError


def delete_backup(
    target: str | os.PathLike[str], backup_id: str, *, dry_run: bool = False, io: IOTable | None = None
) -> list[str]:
    """Delete one backup, also a damaged one; returns the paths that are removed (with `dry_run`: would be).

    Raises BusyError naming the backups that stand on it, NotFoundError, BackupError if a damaged manifest in the chain
    keeps unknown what stands on it (delete that one first).
    """
    folder = Target(target, io)
    chain = folder.chain_holding(checked_backup_id(backup_id))
    if dry_run:
        _check(folder, chain, backup_id)
    else:
        with ChainLock(folder, chain):
            _check(folder, chain, backup_id)
            folder.remove(chain, backup_id)
    return [os.path.join(folder.chain_path(chain), backup_id)]


def _check(folder: Target, chain: str, backup_id: str) -> None:
    problems: list[str] = []
    backups = folder.backups(chain, problems)
    dependants = [backup.id for backup in backups if backup.base == backup_id]
    if dependants:
        raise BusyError(f"backup {backup_id} is needed by {', '.join(dependants)}: delete those first")
    damaged_itself = backup_id not in {backup.id for backup in backups}
    if problems and not damaged_itself:
        raise BackupError(f"it is unknown what stands on backup {backup_id}: {problems[0]}; delete that one first")
