"""The cases of backups: written, incremental too, verified, restored, copied and deleted."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from crash_oracle import Violation
from crash_workload import determinism
from fault_cases import SEED, Case
from fault_states import Asked, StateCase, World
from memory_disk import Durable, MemoryDisk

from cowengine import Volume
from cowengine.backup import (
    copy_backup,
    delete_backup,
    get_backup,
    last_backup,
    list_backups,
    load_documents,
    restore,
    restore_stream,
    verify_backup,
    write_backup,
)
from cowengine.core.checksum import xxh64
from cowengine.errors import StorageError

SOURCE, TARGET, OTHER, RESTORED = "/disk/source", "/disk/target", "/disk/other", "/disk/restored"


def backups(disk: MemoryDisk, target: str) -> list[int]:
    """The checksums of what the backups of a target hold; they are verified."""
    if target not in disk.cache.entries:
        return []
    report = verify_backup(target, io=disk)
    if not report.ok:
        raise Violation(f"backups are damaged: {report.problems[:3]}")
    return sorted(restored(disk, target, each.id) for each in list_backups(target, io=disk))


def restored(disk: MemoryDisk, target: str, backup_id: str) -> int:
    folder = "/disk/looked-at"
    disk.mkdir(folder)
    try:
        restore(target, backup_id, folder, io=disk)
        return xxh64(disk.cache.files[disk.cache.entries[f"{folder}/v.raw"]])
    finally:
        for name in disk.names(folder):
            disk.unlink(f"{folder}/{name}")
        disk.rmdir(folder)


def shown(disk: MemoryDisk) -> Any:
    with Volume.open(SOURCE, io=disk, background=False) as volume:
        source = xxh64(volume.pread(volume.size, 0)), [each.name for each in volume.snapshots()]
        if not volume.check().ok:
            raise Violation("check finds problems in the source")
    out = {
        name: xxh64(disk.cache.files[disk.cache.entries[f"{RESTORED}/{name}"]])
        for name in disk.names(RESTORED)
        if name[0] != "."
    }
    return source, backups(disk, TARGET), backups(disk, OTHER), out


def opened(disk: MemoryDisk) -> Volume:
    return Volume.open(SOURCE, io=disk, background=False)


SOURCES = World(opened, Volume.close, shown)
NO_SOURCE = World(lambda disk: disk, lambda disk: None, shown)


def backup_cases() -> Iterator[Case]:
    """All of them."""
    with determinism(SEED + 1):
        disk = MemoryDisk()
        for folder in (TARGET, OTHER, RESTORED):
            disk.mkdir(folder)
        volume = Volume.create(SOURCE, 10 * 4096 + 512, log_size=16384, io=disk, background=False)
        with volume:
            volume.pwrite(b"first" * 3000, 5000)
            written = [write(volume, "one", "full")]
            volume.pwrite(b"second" * 1000, 100)
            written.append(write(volume, "two", "incremental"))
            volume.pwrite(b"third" * 500, 30000)
            volume.snapshot("three")
        start = disk.cache
    last = written[-1].id
    yield case("backup:full", SOURCES, start, lambda volume: write(volume, "three", "full"))
    yield case("backup:incremental", SOURCES, start, lambda volume: write(volume, "three", "incremental"))
    yield case("backup:differential", SOURCES, start, lambda volume: write(volume, "three", "differential"))
    yield case("backup:pipe", SOURCES, start, into_a_pipe)
    yield case("backup:restore", NO_SOURCE, start, lambda disk: restore(TARGET, last, RESTORED, io=disk))
    yield case("backup:verify", NO_SOURCE, start, verify)
    yield case("backup:look", NO_SOURCE, start, Asked(looked))
    yield case("backup:restore-stream", NO_SOURCE, start, Stream(start))
    yield case("backup:delete", NO_SOURCE, start, lambda disk: delete_backup(TARGET, last, io=disk))
    yield case("backup:copy", NO_SOURCE, start, lambda disk: copy_backup(TARGET, written[0].id, OTHER, io=disk))


def case(name: str, world: World, start: Durable, step: Callable[[Any], Any]) -> StateCase:
    """What an error may leave is what the next run replaces or removes, and the lock of a chain."""
    return StateCase(name, world, start, step, ("/.new-", "/.old-", "/lock", ".restoring"))


def write(volume: Volume, name: str, kind: str) -> Any:
    """Of a snapshot of that name, taken now unless there is one."""
    snapshots = {each.name: each for each in volume.snapshots()}
    snapshot = snapshots.get(name) or volume.snapshot(name)
    return write_backup(TARGET, {"v": snapshot}, kind=kind, compression="none", io=volume.engine.io)


def verify(disk: MemoryDisk) -> None:
    report = verify_backup(TARGET, io=disk)
    if not report.ok:
        raise StorageError(str(report.problems))


def into_a_pipe(volume: Volume) -> None:
    write_backup(io.BytesIO(), {"v": volume.get_snapshot("one")}, kind="full", compression="none")


def looked(disk: MemoryDisk) -> Any:
    """What a damaged manifest or a stream that cannot be read would hide counts as an error."""
    problems: list[str] = []
    found = [each.id for each in list_backups(TARGET, problems=problems, io=disk)]
    if problems:
        raise StorageError("; ".join(problems))
    last = last_backup(TARGET, io=disk)
    assert last is not None
    return found, last.id, get_backup(TARGET, last.id, io=disk).root, load_documents(TARGET, last.id, io=disk)


class Stream:
    """Restores what comes out of a pipe."""

    def __init__(self, start: Durable) -> None:
        disk, file = MemoryDisk(start), io.BytesIO()
        with opened(disk) as volume:
            write_backup(file, {"v": volume.get_snapshot("one")}, kind="full", compression="none")
        self.stream = file.getvalue()

    def __call__(self, disk: MemoryDisk) -> None:
        restore_stream(io.BytesIO(self.stream), RESTORED, io=disk)
