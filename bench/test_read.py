"""Reads from the page cache, so that the disk hides nothing: rows 9 and 10, and reads of the live volume."""

from __future__ import annotations

import os
import time

from race import Lane
from workload import BLOCK, MiB

UNSEALED = {"background": False}  # else what a snapshot holds is sealed, and verified when it is read, within seconds


def opened(race, disk, name):
    """A snapshot to read from, closed after the race."""
    view = disk.open_snapshot(name)
    race.disks.callback(view.close)
    return view


def random_reads(view, workload, size, reads):
    """Rounds of random 4 KiB reads into one buffer, the second time each: what leads to the bytes is in the cache.

    Else the raw file, beside every subject and so read as often as all of them, would have it there alone.
    """
    offsets, buffer, pread_into = [], bytearray(BLOCK), view.pread_into

    def read() -> None:
        for offset in offsets:
            pread_into(buffer, offset)

    def prepare() -> None:
        offsets[:] = workload.offsets(size, reads)
        read()

    return Lane(read, prepare, reads)


def random_reads_raw(raw, workload, size, reads):
    """The same by the system call."""
    offsets, buffers, preadv, fd = [], [bytearray(BLOCK)], os.preadv, raw.fd
    workload.fill(raw.pwrite, size, BLOCK)

    def read() -> None:
        for offset in offsets:
            preadv(fd, buffers, offset)

    def prepare() -> None:
        offsets[:] = workload.offsets(size, reads)
        read()

    return Lane(read, prepare, reads)


def sequential_reads(view, size):
    """The whole size, front to back, 1 MiB at a time, into one buffer."""
    buffer, pread_into = bytearray(MiB), view.pread_into

    def read() -> None:
        for offset in range(0, size, MiB):
            pread_into(buffer, offset)

    return Lane(read, operations=size // MiB)


def sequential_reads_raw(raw, workload, size):
    """The same by the system call."""
    buffers, preadv, fd = [bytearray(MiB)], os.preadv, raw.fd
    workload.fill(raw.pwrite, size)

    def read() -> None:
        for offset in range(0, size, MiB):
            preadv(fd, buffers, offset)

    return Lane(read, operations=size // MiB)


def test_random_reads_of_a_snapshot(race, scale):
    """The newest of 1, 50 and 100,000 snapshots, with a 4 KiB write before every eighth; as it is and sealed."""
    size, reads = scale(256, 8, quick=16) * MiB, scale(2048, 16, quick=1024)
    some, many = scale(50, 2, quick=5), scale(100_000, 20, quick=2000)

    def newest(snapshots, sealed=False):
        def made(disk, workload):
            workload.fill(disk.pwrite, size, BLOCK)
            for number, offset in zip(range(snapshots), workload.each_once(size), strict=False):
                if number % 8 == 1:
                    disk.pwrite(workload.block, offset)
                disk.snapshot(str(number))
            if sealed:
                disk.volume.seal()
            return random_reads(opened(race, disk, str(snapshots - 1)), workload, size, reads)

        return made

    race.against(lambda raw, workload: random_reads_raw(raw, workload, size, reads), size)
    own = race.racers(**UNSEALED)
    for snapshots, among in (1, own), (some, own), (many, own[:1]):
        race.enter(newest(snapshots), size, shown(snapshots), goal=1.2, among=among, at={"snapshots": snapshots})
    for snapshots in 1, many:
        race.enter(newest(snapshots, sealed=True), size, f"{shown(snapshots)}, verified", goal=1.4, among=own[:1])
    race.run("9", "random 4 KiB reads of a snapshot", rounds=200)
    for verified in "", ", verified":
        race.between(shown(many) + verified, shown(1) + verified, goal=1.05)


def shown(snapshots):
    """As a variant's name."""
    return f"{snapshots:,} snapshot{'s' if snapshots > 1 else ''}"


def test_sequential_reads_of_a_snapshot(race, scale):
    """Of one that was written front to back; of one 10 % of whose blocks were redirected; of one that is sealed."""
    size = scale(256, 8, quick=16) * MiB

    def fresh(disk, workload):
        workload.fill(disk.pwrite, size)
        disk.snapshot("read")
        return sequential_reads(opened(race, disk, "read"), size)

    def redirected(disk, workload):
        workload.fill(disk.pwrite, size)
        disk.snapshot("before")
        for offset in workload.offsets(size, size // BLOCK // 10):
            disk.pwrite(workload.block, offset)
        disk.snapshot("read")
        return sequential_reads(opened(race, disk, "read"), size)

    def verified(disk, workload):
        lane = fresh(disk, workload)
        disk.volume.seal()
        return lane

    race.against(lambda raw, workload: sequential_reads_raw(raw, workload, size), size)
    racers = race.racers(**UNSEALED)
    race.enter(fresh, size, "fresh", goal=0.95, among=racers)
    race.enter(redirected, size, "10 % redirected", goal=0.6, among=racers)
    race.enter(verified, size, "verified", among=racers[:1])
    race.run("10", "sequential 1 MiB reads of a snapshot", rounds=30, rate=True)
    race.between("verified", "fresh", goal=0.8, rate=True)


def test_random_reads(race, scale):
    """Of the live volume."""
    size, reads = scale(256, 8, quick=16) * MiB, scale(1024, 16)

    def live(disk, workload):
        workload.fill(disk.pwrite, size, BLOCK)
        return random_reads(disk, workload, size, reads)

    race.against(lambda raw, workload: random_reads_raw(raw, workload, size, reads), size)
    race.enter(live, size, among=race.racers()[:1])
    race.run("", "random 4 KiB reads of the live volume", rounds=100)


def test_sequential_reads(race, scale):
    """Of the live volume: written front to back, aged by 1,000 snapshots and deletes, and compacted after that."""
    size, rounds = scale(256, 8, quick=16) * MiB, scale(1000, 10, quick=20)

    def live(disk, workload):
        workload.fill(disk.pwrite, size)
        return sequential_reads(disk, size)

    def aged(disk, workload):
        lane = live(disk, workload)
        for number in range(rounds):
            disk.snapshot(str(number))
            for offset in workload.offsets(size, 64):
                disk.pwrite(workload.block, offset)
            disk.delete(str(number))
        return lane

    def compacted(disk, workload):
        lane = aged(disk, workload)
        began = time.perf_counter()
        moved = disk.volume.compact().moved_bytes
        race.benchmark.extra_info["compaction"] = {"bytes": moved, "seconds": time.perf_counter() - began}
        return lane

    race.against(lambda raw, workload: sequential_reads_raw(raw, workload, size), size)
    own = race.racers()[:1]
    race.enter(live, size, "fresh", among=own)
    race.enter(aged, size, f"after {rounds:,} snapshots and deletes", among=own)
    race.enter(compacted, size, "after those and compaction", among=own)
    race.run("", "sequential 1 MiB reads of the live volume", rounds=30, rate=True)


def test_verify_of_a_snapshot(race, scale):
    """Every block from the disk against its seal; raw: the same size from the disk, front to back, 1 MiB at a time."""
    size = scale(128, 8, quick=16) * MiB

    def verify(disk, workload):
        workload.fill(disk.pwrite, size)
        disk.snapshot("read")
        disk.volume.seal()
        snapshot = disk.volume.get_snapshot("read")

        def verified() -> None:
            assert snapshot.verify().counts["verified"] == size // BLOCK

        return Lane(verified, operations=size // MiB)

    def base(raw, workload):
        lane = sequential_reads_raw(raw, workload, size)
        raw.flush()
        return Lane(lane.run, lambda: os.posix_fadvise(raw.fd, 0, 0, os.POSIX_FADV_DONTNEED), lane.operations)

    race.against(base, size)
    race.enter(verify, size, goal=0.9, among=race.racers(**UNSEALED)[:1])
    race.run("", "verifying a snapshot from the disk", rounds=20, rate=True)
