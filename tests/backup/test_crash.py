"""Power cuts while backups are written, copied and deleted and files restored: what is there afterwards is whole.

The target lies on the crash tests' disk in memory, which loses what no barrier covered; the snapshots are of a real
volume. At every barrier, and at the end, images are built from what may have reached the disk; in each of them every
backup that is listed must verify, and every backup that was reported finished must be listed.
"""

from __future__ import annotations

import posixpath
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cowengine.backup import copy_backup, delete_backup, list_backups, restore, verify_backup, write_backup
from cowengine.errors import CowEngineError, NotFoundError

sys.path.append(str(Path(__file__).parent.parent / "crash"))

from memory_disk import (
    DIRECTORY,
    Barrier,
    DirectoryBarrier,
    Durable,
    Entry,
    Instant,
    MemoryDisk,
    Write,
    instants,
    sector_count,
)

TARGET = "/disk/target"


@dataclass(frozen=True, slots=True)
class FolderRename(Entry):
    """A folder gets another name, and what lies in it goes with it, at once."""

    source: str = ""


class FolderDurable(Durable):
    """What the disk holds, with folders that can be renamed."""

    def copy(self) -> FolderDurable:
        plain = super().copy()
        return FolderDurable(plain.files, plain.entries)

    def apply(self, change: Any, sectors: int | None = None) -> None:
        if not isinstance(change, FolderRename):
            super().apply(change, sectors)
            return
        for path in [path for path in self.entries if path == change.source or path.startswith(change.source + "/")]:
            self.entries[str(change.added) + path[len(change.source) :]] = self.entries.pop(path)


class FolderDisk(MemoryDisk):
    """The disk in memory, with folders that can be renamed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.renamed: dict[str, str] = {}

    def unlink(self, path: str) -> None:
        """A name goes from its folder, whatever the folder is called by the time that reaches the disk."""
        folder, name = posixpath.split(posixpath.normpath(path))
        before = self.renamed.get(folder, folder)
        self._inode(path)
        self._change(Entry((posixpath.join(folder, name), posixpath.join(before, name)), None, -1))

    def rename(self, source: str, target: str) -> None:
        source, target = posixpath.normpath(source), posixpath.normpath(target)
        if self._inode(source) == DIRECTORY:
            self.renamed[target] = source
            self._change(FolderRename((source,), target, DIRECTORY, source))
        else:
            super().rename(source, target)

    def _content(self, fd: int) -> bytearray:
        """A name that arrived before any byte: an empty file."""
        return self.cache.files.setdefault(self._file(fd).inode, bytearray())


def images(
    disk: FolderDisk, keeps: Callable[[int], bool] = lambda _: True, budget: int = 24
) -> Iterator[tuple[Any, Durable]]:
    """(the last note, the disk after a power cut)."""
    chance = random.Random(1)
    for instant in instants(disk.start, disk.journal, keeps):
        for choice in choices(len(instant.pending), chance, budget):
            yield instant.note, build(instant, choice, chance)


def choices(count: int, chance: random.Random, budget: int) -> Iterator[tuple[int, ...]]:
    """For each pending change: 0 lost, 1 arrived, 2 arrived in part."""
    if 2**count <= budget:
        yield from product((0, 1), repeat=count)
    else:
        for first in sorted(chance.sample(range(count + 1), min(count + 1, budget // 3))):
            yield (1,) * first + (0,) * (count - first)
        for first in chance.sample(range(count), min(count, budget // 3)):
            yield (1,) * first + (0,) + (1,) * (count - first - 1)
    for _ in range(budget // 3 if count else 0):
        yield tuple(chance.randrange(3) for _ in range(count))


def build(instant: Instant, choice: tuple[int, ...], chance: random.Random) -> Durable:
    image = instant.durable.copy()
    for change, arrived in zip(instant.pending, choice, strict=True):
        if arrived:
            torn = arrived == 2 and isinstance(change, Write)
            image.apply(change, chance.getrandbits(sector_count(change)) if torn else None)
    return image


def violation(certain: frozenset[str], possible: frozenset[str], image: Durable) -> str | None:
    """What a user would find wrong after this crash: `certain` must be there, whole; `possible` whole or not at all."""
    disk = FolderDisk(image, recorded=False)
    problems: list[str] = []
    found: set[str] = set()
    try:
        found = {backup.id for backup in list_backups(TARGET, problems=problems, io=disk)}
        problems += verify_backup(TARGET, io=disk).problems
    except NotFoundError:
        pass
    if problems:
        return problems[0]
    if not certain <= found:
        return f"lost: {certain - found}"
    return None if found <= certain | possible else f"came back: {found - certain - possible}"


@pytest.fixture
def recorded(origin: Any) -> tuple[FolderDisk, frozenset[str]]:
    """A full, an incremental and, last, its deletion; notes are what must be there from then on. And all ids."""
    disk = FolderDisk(FolderDurable())
    origin.scribble(3)
    full = write_backup(TARGET, {"main": origin.snapshot("s0")}, kind="full", io=disk)
    disk.note(frozenset([full.id]))
    origin.scribble(3)
    incremental = write_backup(TARGET, {"main": origin.snapshot("s1")}, kind="incremental", io=disk)
    disk.note(frozenset([full.id, incremental.id]))
    # In another chain, and so that power cuts fall between the incremental and its end.
    other = write_backup(TARGET, {"main": origin.snapshots["s0"]}, kind="full", chain="other", io=disk)
    disk.note(frozenset([full.id, other.id]))
    delete_backup(TARGET, incremental.id, io=disk)
    return disk, frozenset([full.id, incremental.id, other.id])


def test_no_power_cut_leaves_a_damaged_or_a_lost_backup(recorded: tuple[FolderDisk, frozenset[str]]) -> None:
    disk, everything = recorded
    count = 0
    for certain, image in images(disk):
        assert violation(certain or frozenset(), everything, image) is None
        count += 1
    assert count > 200


def test_a_deleted_backup_does_not_come_back(recorded: tuple[FolderDisk, frozenset[str]]) -> None:
    disk, _ = recorded
    *_, last = instants(disk.start, disk.journal)
    chance = random.Random(2)
    for choice in choices(len(last.pending), chance, 24):
        assert violation(last.note, frozenset(), build(last, choice, chance)) is None


def test_after_any_power_cut_the_next_backup_succeeds(recorded: tuple[FolderDisk, frozenset[str]], origin: Any) -> None:
    seen = 0
    for index, (_, image) in enumerate(images(recorded[0], budget=8)):
        if index % 3 == 0:
            disk = FolderDisk(image, recorded=False)
            write_backup(TARGET, {"main": origin.snapshots["s1"]}, kind="full", io=disk)
            assert verify_backup(TARGET, io=disk).ok
            assert not [name for name in disk.names(f"{TARGET}/chains/default") if name.startswith(".")]
            seen += 1
    assert seen > 20


def test_each_barrier_is_needed(recorded: tuple[FolderDisk, frozenset[str]]) -> None:
    """Every barrier is switched off in turn; some image must then show a damaged or a lost backup."""
    disk, everything = recorded
    barriers = [at for at, event in enumerate(disk.journal) if isinstance(event, (Barrier, DirectoryBarrier))]
    assert len(barriers) > 10
    unneeded = []
    for off in barriers:
        with_it_off = images(disk, lambda position, off=off: position != off)  # type: ignore[misc]
        if not any(violation(certain or frozenset(), everything, image) for certain, image in with_it_off):
            unneeded.append(disk.journal[off])
    assert unneeded == []


def test_a_copy_and_a_restore_survive_power_cuts(origin: Any, tmp_path: Path) -> None:
    disk = FolderDisk(FolderDurable())
    origin.scribble(3)
    backup = write_backup("/disk/first", {"main": origin.snapshot("a")}, kind="full", io=disk)
    copy_backup("/disk/first", backup.id, TARGET, io=disk)
    disk.note("copied")
    restore("/disk/first", backup.id, "/disk/out", io=disk)
    disk.note("restored")
    for note, image in images(disk):
        after = FolderDisk(image, recorded=False)
        assert violation(frozenset([backup.id] if note else []), frozenset([backup.id]), image) is None
        restored = content(after, "/disk/out/main.raw")
        assert restored is None or restored == origin.expected["a"]
        assert note != "restored" or restored is not None


def content(disk: FolderDisk, path: str) -> bytes | None:
    try:
        fd = disk.open(path, 0)
    except (FileNotFoundError, CowEngineError):
        return None
    return disk.pread(fd, disk.size(fd), 0)
