"""What the public interface can be asked to do, and in which of it calls of the I/O table are made while they may fail.

Operations are methods and properties of the public classes, and public functions. Nobody lists them: one that is added
is found here, and needs a case of every_call.py, or a place in one of the lists below.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from faulty_disk import FaultyDisk

import cowengine
import cowengine.backup
import cowengine.sqlite
import cowengine.vss
from cowengine.engine.compaction import CompactionJob
from cowengine.reader import PinnedSnapshot, SnapshotReader
from cowengine.store.sets import PendingSet

MODULES: tuple[ModuleType, ...] = (cowengine, cowengine.backup, cowengine.sqlite, cowengine.vss)
GIVEN = (SnapshotReader, PinnedSnapshot, PendingSet, CompactionJob)  # by the operations of others; nobody makes one

# They hold values, or are what a user derives his own from: nothing that could call a table.
VALUES = frozenset({
    "Backup", "BackupComponents", "Component", "FreezeLedger", "Job", "JobView", "Provider", "Report", "RestoreJob",
    "Writer", "WriterMetadata", "WriterRecord",
})  # fmt: skip
# They say what an open volume or store has in memory, or register somebody.
FROM_MEMORY = frozenset({
    "CompactionJob.end", "CompactionJob.progress", "CompactionJob.running", "CompactionJob.stop",
    "EngineProvider.abort", "EngineProvider.post_final_commit", "PendingSet.abort",
    "PinnedSnapshot.open", "SQLiteWriter.abort",
    "SQLiteWriter.freeze", "SQLiteWriter.identify", "SQLiteWriter.thaw", "Snapshot.block_size", "Snapshot.change_id",
    "Snapshot.created", "Snapshot.created_ns", "Snapshot.epoch", "Snapshot.exported", "Snapshot.hold_reason",
    "Snapshot.id",
    "Snapshot.is_anchor", "Snapshot.name", "Snapshot.open", "Snapshot.set_id", "Snapshot.size", "Snapshot.volume_path",
    "SnapshotReader.check", "SnapshotReader.export", "SnapshotReader.open_head", "SnapshotReader.verify",
    "SnapshotSet.created", "SnapshotSet.id", "SnapshotSet.name", "SnapshotSet.volumes", "Store.documents",
    "Store.get_snapshot_set", "Store.hand_back",
    "Store.problems", "Store.release_set", "Store.snapshot_sets", "Store.volume_path",
    "VFS.database", "VFS.in_use", "VFS.of", "VFS.open_database", "Volume.block_size", "Volume.closed", "Volume.epoch",
    "Volume.given_up", "Volume.head", "Volume.heads", "Volume.id", "Volume.on_space_low", "Volume.on_space_needed",
    "Volume.open_head", "Volume.path", "Volume.read_only", "Volume.size",
})  # fmt: skip
# They only ask others that are here, at a moment at which no case has them; or they go to the system by themselves.
OTHERWISE = {
    "EngineProvider.delete": "SnapshotSet.delete", "ProviderSet.delete": "SnapshotSet.delete",
    "SQLiteWriter.pre_restore": "VFS.release", "SQLiteWriter.post_restore": "open_snapshot",
    "Volume.start_compaction": "Volume.compact", "CompactionJob.wait": "Volume.compact",
    "connect": "Store.open", "Store.rebuild": "Store.open",
    "verify_stream": "a pipe", "export_image": "qemu-img", "import_image": "qemu-img", "VFS.export": "SQLite",
    "configured_writer_names": "installed packages",
    "load_provider": "installed packages", "load_writers": "installed packages",
    "provider_names": "installed packages", "writer_names": "installed packages",
}  # fmt: skip


def operations() -> dict[str, tuple[Any, str]]:
    """Each by its name, with where it is found: an object and the name of its attribute."""
    found: dict[str, tuple[Any, str]] = {}
    classes = set(GIVEN)
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                found[name] = (module, name)
            elif inspect.isclass(value) and not issubclass(value, BaseException):
                classes.add(value)
    for owner in classes:
        compiled = [base for base in owner.__bases__ if base.__module__ == "cowengine.core.handle"]
        for name, value in ChainMap(*map(vars, (owner, *compiled))).items():  # type: ignore[arg-type]
            is_operation = inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod, property))
            if (is_operation or name not in vars(owner)) and not name.startswith("_") and owner.__name__ not in VALUES:
                found[f"{owner.__name__}.{name}"] = (owner, name)
    return found


@dataclass
class Noted:
    """In which operations a watched disk was called: by any thread meanwhile, or by the thread that is in it."""

    covered: set[str] = field(default_factory=set)
    by_itself: set[str] = field(default_factory=set)


@contextmanager
def recorded() -> Iterator[Noted]:
    """Within, the operations are noted in which a watched disk is called."""
    made, noted = Counter[int](), Noted()  # calls by thread
    counted = FaultyDisk.counted

    def counting(self: FaultyDisk, *call: Any) -> Any:
        made[threading.get_ident()] += self.watched and not self.inside
        return counted(self, *call)

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def operation(*arguments: Any, **named: Any) -> Any:
            thread = threading.get_ident()
            before, mine = made.total(), made[thread]
            try:
                return function(*arguments, **named)
            finally:
                if made.total() > before:
                    noted.covered.add(name)
                if made[thread] > mine:
                    noted.by_itself.add(name)

        return operation

    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, attribute: str, value: Any) -> None:
        replaced.append((owner, attribute, vars(owner).get(attribute)))  # None: of a base
        setattr(owner, attribute, value)

    replace(FaultyDisk, "counted", counting)
    for name, (owner, attribute) in operations().items():
        value = vars(owner)[attribute] if attribute in vars(owner) else getattr(owner, attribute)
        if isinstance(value, property):
            setter = None if value.fset is None else noting(name, value.fset)
            replace(owner, attribute, property(noting(name, value.fget), setter, doc=value.__doc__))  # type: ignore[arg-type]
        elif isinstance(value, (classmethod, staticmethod)):
            replace(owner, attribute, type(value)(noting(name, value.__func__)))
        elif inspect.isclass(owner):
            replace(owner, attribute, noting(name, value))
        else:
            wrapper = noting(name, value)
            for module in [each for each in sys.modules.values() if vars(each).get(attribute) is value]:
                replace(module, attribute, wrapper)
    try:
        yield noted
    finally:
        for owner, attribute, value in reversed(replaced):
            if value is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, value)
