"""Backups of snapshots: written, listed, verified, restored, copied and deleted. Format: docs/backup-format.md.

Freezes nobody and takes no snapshot; `cowengine.vss` does and calls this.
"""

from cowengine.backup.copying import copy_backup
from cowengine.backup.listing import get_backup, list_backups
from cowengine.backup.manifest import Backup
from cowengine.backup.removal import delete_backup
from cowengine.backup.restore import RestoreJob, load_documents, restore, restore_stream
from cowengine.backup.verify import verify_backup, verify_stream
from cowengine.backup.write import last_backup, write_backup

__all__ = [
    "Backup",
    "RestoreJob",
    "copy_backup",
    "delete_backup",
    "get_backup",
    "last_backup",
    "list_backups",
    "load_documents",
    "restore",
    "restore_stream",
    "verify_backup",
    "verify_stream",
    "write_backup",
]
