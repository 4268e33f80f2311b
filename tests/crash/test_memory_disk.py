"""The disk in memory does what its module says: the crash tests stand on it."""

from __future__ import annotations

import os

import pytest
from memory_disk import SECTOR, Durable, Instant, MemoryDisk, Write, instants, sector_count

PATH = "/disk/file"


def opened(disk: MemoryDisk) -> int:
    return disk.open(PATH, os.O_RDWR | os.O_CREAT)


def last_instant(disk: MemoryDisk) -> Instant:
    return list(instants(disk.start, disk.journal))[-1]


def synced(content: bytes) -> tuple[MemoryDisk, int]:
    disk = MemoryDisk()
    fd = opened(disk)
    disk.pwrite(fd, content, 0)
    disk.fdatasync(fd)
    disk.sync_directory("/disk")
    return disk, fd


def test_a_write_is_durable_only_behind_a_barrier() -> None:
    disk, fd = synced(b"old.")
    disk.pwrite(fd, b"new.", 0)
    instant = last_instant(disk)
    assert disk.pread(fd, 4, 0) == b"new."
    assert dict(instant.durable.reachable()) == {PATH: b"old."}
    assert instant.pending == [Write(1, 0, b"new.")]


def test_a_new_name_needs_its_directory_synced() -> None:
    disk = MemoryDisk()
    fd = opened(disk)
    disk.pwrite(fd, b"data", 0)
    disk.fdatasync(fd)
    assert not list(last_instant(disk).durable.reachable())
    disk.sync_directory("/disk")
    assert list(last_instant(disk).durable.reachable()) == [(PATH, b"data")]


def test_a_write_tears_at_sectors() -> None:
    durable = Durable({1: bytearray(4 * SECTOR)}, {PATH: 1})
    write = Write(1, 100, b"x" * (2 * SECTOR))
    assert sector_count(write) == 3
    durable.apply(write, 0b101)
    content = durable.files[1]
    assert content[100:SECTOR] == b"x" * (SECTOR - 100)
    assert content[SECTOR : 2 * SECTOR] == bytes(SECTOR)
    assert content[2 * SECTOR : 2 * SECTOR + 100] == b"x" * 100
    assert content.count(b"x") == SECTOR


def test_a_part_of_a_sector_reaches_the_disk_with_the_rest_of_the_cached_sector() -> None:
    disk, fd = synced(b"....")
    disk.pwrite(fd, b"a", 0)
    disk.pwrite(fd, b"b", 2)
    durable = last_instant(disk).durable.copy()
    durable.apply(last_instant(disk).pending[1])
    assert bytes(durable.files[1]) == b"a.b."


def test_a_write_made_during_a_barrier_is_not_covered() -> None:
    disk, fd = synced(b"....")
    disk.before_barrier = lambda _: disk.pwrite(fd, b"b", 1)
    disk.pwrite(fd, b"a", 0)
    disk.fdatasync(fd)
    instant = last_instant(disk)
    assert bytes(instant.durable.files[1]) == b"a..."
    assert instant.pending == [Write(1, 0, b"ab..")]


def test_a_failed_barrier_leaves_clean_pages_that_the_disk_never_got() -> None:
    disk, fd = synced(b"old.")
    disk.fail_barrier = 0
    disk.pwrite(fd, b"new.", 0)
    with pytest.raises(OSError, match="Input/output"):
        disk.fdatasync(fd)
    disk.fdatasync(fd)  # the kernel reports an error once
    assert disk.pread(fd, 4, 0) == b"new."
    disk.forget(fd)
    assert disk.pread(fd, 4, 0) == b"old."


def test_a_kill_keeps_what_the_disk_never_got_in_the_cache() -> None:
    disk, fd = synced(b"old.")
    disk.fail_barrier = 0
    disk.pwrite(fd, b"new.", 0)
    with pytest.raises(OSError, match="Input/output"):
        disk.fdatasync(fd)
    instant = last_instant(disk)
    assert not instant.pending
    again = MemoryDisk(instant.durable.copy(), instant.pending, instant.cached)
    fd = again.open(PATH, os.O_RDWR)
    assert again.pread(fd, 4, 0) == b"new."
    again.forget(fd)
    assert again.pread(fd, 4, 0) == b"old."


def test_a_switched_off_barrier_leaves_its_writes_to_the_next_one() -> None:
    disk, fd = synced(b"....")
    disk.pwrite(fd, b"a", 0)
    disk.fdatasync(fd)
    disk.pwrite(fd, b"b", 1)
    position = next(n for n, event in enumerate(disk.journal) if event == Write(1, 0, b"a...")) + 1
    *_, last = instants(disk.start, disk.journal, lambda n: n != position)
    assert last.pending == [Write(1, 0, b"a..."), Write(1, 0, b"ab..")]


def test_a_second_owner_is_refused() -> None:
    disk, fd = synced(b"")
    disk.lock(fd, True)
    with pytest.raises(BlockingIOError):
        disk.lock(opened(disk), True)
    disk.close(fd)
    disk.lock(opened(disk), True)


def test_locks_of_ranges_conflict_only_where_they_meet() -> None:
    disk, fd = synced(b"")
    other = opened(disk)
    disk.lock(fd, True, 10, 10)
    disk.lock(other, True, 20)
    assert disk.locked(other, False, 0) == disk.locked(other, True, 19, 1) == (10, 10)
    disk.unlock(fd, 14, 2)
    disk.lock(other, False, 14, 2)
    disk.lock(fd, False, 14, 1)
    for start in (10, 13, 15, 16, 19, 20):
        with pytest.raises(BlockingIOError):
            disk.lock(other if start < 20 and start != 15 else fd, True, start, 1)
    disk.close(fd)
    disk.lock(other, True)
