"""Workloads on a target of backups: fulls and incrementals of one volume, and backups that are deleted.

A backup is found, whole, or it is not there. What may be found are the backups that were acknowledged, and the one in
flight. The volume lies beside its target, so a cut hits both.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from crash_oracle import Violation
from crash_workload import Step

from cowengine import Volume
from cowengine.backup import Backup, delete_backup, list_backups, restore, verify_backup
from cowengine.backup.write import write_backup
from cowengine.errors import CowEngineError, FullBackupRequired

SIZE = 10 * 4096 + 512
BACKUPS_MAX = 4
WEIGHTS = {"write": 10, "backup": 6, "delete": 1}


@dataclass(frozen=True)
class Found:
    """The backups of a target by id, oldest first, with what the volume held."""

    backups: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Kept:
    """The backups that must be there; `new` is what one more may hold, `going` is the id of one that may be gone."""

    backups: tuple[tuple[str, bytes], ...]
    new: bytes | None = None
    going: str | None = None


class BackupRunner:
    """A process that backs a volume up; the same face as `Runner`, on real files."""

    def __init__(self, disk: Any, serial: int = 0) -> None:
        self.disk = disk
        self.io: Any = disk
        self.path = ""
        self.background = False
        self.perform: Callable[[Callable[[], Any]], Any] = lambda action: action()
        self.serial = serial
        self.volume: Any = None
        self.poisoned = False
        self.content = bytearray(SIZE)
        self.backups: tuple[tuple[str, bytes], ...] = ()

    @property
    def target(self) -> str:
        return os.path.join(self.path, "target")

    def create(self) -> None:
        os.makedirs(self.target)
        for folder in (os.path.dirname(self.path), self.path):
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        self.volume = Volume.create(os.path.join(self.path, "volume"), SIZE, io=self.io, log_size=16384)
        self.disk.note(self.expectation())

    def open(self) -> None:
        self.volume = Volume.open(os.path.join(self.path, "volume"), io=self.io, background=self.background)

    def close(self) -> None:
        if self.volume is not None:
            self.volume.close()

    def successor(self, disk: Any) -> BackupRunner:
        other = BackupRunner(disk, self.serial)
        other.path = self.path
        if self.io is not self.disk:
            other.io = self.io
        return other

    def expectation(self) -> Kept:
        return Kept(self.backups)

    def random_steps(self, rng: random.Random, count: int) -> tuple[Step, ...]:
        names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
        return tuple((name, rng.randrange(SIZE), rng.choice((1, 700, 4096, 9000))) for name in names)

    def look(self, expected: Kept, extents: bool = True) -> Found:
        """Every backup there is can be verified and restored, and is one of those expected."""
        report = self.volume.check()
        if not report.ok:
            raise Violation(f"check: {report.problems[:3]}")
        report = verify_backup(self.target, io=self.io)
        if not report.ok:
            raise Violation(f"backups are damaged: {report.problems[:3]}")
        shown = tuple(each.id for each in list_backups(self.target, io=self.io))
        ids = tuple(each for each, _ in expected.backups)
        new = [each for each in shown if each not in ids]
        missing = [each for each in ids if each not in shown and each != expected.going]
        if missing or len(new) > (expected.new is not None):
            raise Violation(f"backups {shown}, expected {ids}, {expected.going} perhaps deleted")
        self.content[:] = self.volume.pread(SIZE, 0)
        contents = dict(expected.backups) | dict.fromkeys(new, expected.new or b"")
        for each in shown:
            if self.restored(each) != contents[each]:
                raise Violation(f"backup {each} holds something else than the volume did")
        return Found(tuple((each, contents[each]) for each in shown))

    def restored(self, backup_id: str) -> bytes:
        with TemporaryDirectory(dir=self.path) as folder:
            restore(self.target, backup_id, folder, io=self.io)
            return (Path(folder) / "v.raw").read_bytes()

    def resume(self, expected: Kept, found: Found) -> None:
        self.backups = found.backups
        self.disk.note(self.expectation())

    # -- steps ------------------------------------------------------------------------------------------------------
    def run(self, steps: tuple[Step, ...]) -> None:
        for name, *numbers in steps:
            getattr(self, name)(*numbers)
            if self.poisoned:
                return

    def write(self, offset: int, length: int) -> None:
        self.serial += 1
        data = (self.serial.to_bytes(4, "little") * (length // 4 + 1))[: min(length, SIZE - offset)]
        self.content[offset : offset + len(data)] = data
        self.call(lambda: self.volume.pwrite(data, offset), self.expectation())

    def backup(self, *_numbers: int) -> None:
        if len(self.backups) >= BACKUPS_MAX:
            return
        self.serial += 1
        name, content = f"b{self.serial}", bytes(self.content)
        made = self.call(lambda: self.back_up(name), Kept(self.backups, new=content))
        if not self.poisoned:
            self.backups += ((made.name, content),)
            self.disk.note(self.expectation())

    def back_up(self, name: str) -> Backup:
        """The child's part: an incremental if the snapshot of the last backup is still there."""
        for snapshot in self.volume.snapshots()[:-2]:
            snapshot.delete()
        snapshots = {"v": self.volume.snapshot(name)}
        try:
            return write_backup(self.target, snapshots, kind="incremental", compression="none", io=self.io)
        except FullBackupRequired:
            return write_backup(self.target, snapshots, kind="full", compression="none", io=self.io)

    def delete(self, *_numbers: int) -> None:
        if not self.backups:
            return
        *kept, (last, _) = self.backups
        self.call(lambda: delete_backup(self.target, last, io=self.io), Kept(self.backups, going=last))
        if not self.poisoned:
            self.backups = tuple(kept)
            self.disk.note(self.expectation())

    def call(self, action: Callable[[], Any], expected: Kept) -> Any:
        """The name of the backup, if one was made."""

        def act() -> Any:
            made = action()
            return SimpleNamespace(name=made.id, change_id="") if isinstance(made, Backup) else None

        self.disk.note(expected)
        faults = self.disk.faults
        try:
            result = self.perform(act)
        except CowEngineError as error:
            if self.disk.faults == faults:
                raise Violation(f"a step failed: {error!r}") from error
            self.poisoned = True
            return None
        if self.disk.faults != faults:
            raise Violation("a step succeeded although a barrier failed in it")
        return result
