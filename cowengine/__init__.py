"""cowengine: snapshots of live data, made by redirecting writes.

The public names, each imported when it is first asked for: `import cowengine` alone loads no extension and no
dependency. Has no logic of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowengine.version import __version__

if TYPE_CHECKING:
    from cowengine.backup import Backup, copy_backup, list_backups, restore, verify_backup
    from cowengine.control import connect
    from cowengine.convert import export_image, import_image
    from cowengine.engine.repair import Repaired
    from cowengine.engine.report import Report
    from cowengine.engine.salvage import Salvaged
    from cowengine.engine.usage import SnapshotSpace, VolumeSpace
    from cowengine.errors import (
        AnchorError,
        BackupError,
        BusyError,
        CancelledError,
        ClosedError,
        CorruptionError,
        CowEngineError,
        ExistsError,
        FormatError,
        FullBackupRequired,
        NoSpaceError,
        NotFoundError,
        OutOfRangeError,
        PoisonedError,
        ProviderError,
        ReadOnlyError,
        RetentionError,
        StorageError,
        UnsupportedVersionError,
        WriterError,
        WriterTimeout,
        WriterVeto,
    )
    from cowengine.snapshot import Snapshot
    from cowengine.store import SnapshotSet, Store
    from cowengine.volume import Volume
    from cowengine.vss import Job, Provider, Requestor, Writer, WriterMetadata

__all__ = [
    "AnchorError",
    "Backup",
    "BackupError",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "CorruptionError",
    "CowEngineError",
    "ExistsError",
    "FormatError",
    "FullBackupRequired",
    "Job",
    "NoSpaceError",
    "NotFoundError",
    "OutOfRangeError",
    "PoisonedError",
    "Provider",
    "ProviderError",
    "ReadOnlyError",
    "Repaired",
    "Report",
    "Requestor",
    "RetentionError",
    "Salvaged",
    "Snapshot",
    "SnapshotSet",
    "SnapshotSpace",
    "StorageError",
    "Store",
    "UnsupportedVersionError",
    "Volume",
    "VolumeSpace",
    "Writer",
    "WriterError",
    "WriterMetadata",
    "WriterTimeout",
    "WriterVeto",
    "__version__",
    "connect",
    "copy_backup",
    "export_image",
    "import_image",
    "list_backups",
    "restore",
    "verify_backup",
]

# Where the names that are no error live; every other public name is in cowengine.errors.
_MODULES = {
    "Backup": "backup",
    "Job": "vss",
    "Provider": "vss",
    "Repaired": "engine.repair",
    "Report": "engine.report",
    "Requestor": "vss",
    "Salvaged": "engine.salvage",
    "Snapshot": "snapshot",
    "SnapshotSet": "store",
    "SnapshotSpace": "engine.usage",
    "Store": "store",
    "Volume": "volume",
    "VolumeSpace": "engine.usage",
    "Writer": "vss",
    "WriterMetadata": "vss",
    "__version__": "version",
    "connect": "control",
    "copy_backup": "backup",
    "export_image": "convert",
    "import_image": "convert",
    "list_backups": "backup",
    "restore": "backup",
    "verify_backup": "backup",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
