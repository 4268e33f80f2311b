"""What size costs: opening, looking up, listing, rolling back and memory, by snapshots and by scattered blocks.

The big volumes are made without barriers, and the scattered one without its data: only the map is of interest, and
2,000,000 blocks of it are 8 GiB that nobody reads.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Any

import cowengine
from cowengine.core.iotable import KERNEL, IOTable

BLOCK = 4096
MiB, GiB, TiB = 1 << 20, 1 << 30, 1 << 40
CACHE = 16 * MiB
ROUNDS = 7
SIZES = (("1 GiB", GiB), ("1 TiB", TiB))


class Unsynced(IOTable):
    """The kernel's calls without barriers; a sync follows."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""


class MapOnly(Unsynced):
    """Also without the bytes of blocks at home."""

    home = (0, 0)

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        """Everything but blocks."""
        if not self.home[0] <= offset < self.home[1]:
            super().pwrite(fd, data, offset)


def with_snapshots(path: Path, count: int) -> None:
    with cowengine.Volume.create(path, GiB, io=Unsynced(), background=False) as volume:
        for number in range(count):
            if number % 10 == 0:
                volume.pwrite(b"x", number * 7919 * BLOCK % GiB)
            volume.snapshot(f"snapshot {number:06}")


def with_scattered_blocks(path: Path, count: int) -> None:
    table, size = MapOnly(), 64 * GiB
    with cowengine.Volume.create(path, size, io=table, background=False) as volume:
        (region,) = volume.engine.superblock.regions
        table.home = (region.slot * 4096, region.slot * 4096 + size)
        block = bytes(BLOCK)
        for number in random.Random(1).sample(range(size // BLOCK), count):
            volume.pwrite(block, number * BLOCK)
        volume.snapshot("snapshot 000000")


def measure(path: Path, count: int) -> dict[str, float]:
    """Medians in seconds; memory in bytes after all of it."""
    fd = KERNEL.open(str(path), 2)
    KERNEL.fdatasync(fd)
    KERNEL.close(fd)
    times: dict[str, list[float]] = {"open": [], "name": [], "page": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        volume = cowengine.Volume.open(path, cache_size=CACHE, background=False)
        opened = time.perf_counter()
        volume.get_snapshot(f"snapshot {count // 2:06}")
        found = time.perf_counter()
        volume.snapshots(count // 2, 100)
        listed = time.perf_counter()
        for offset in random.Random(2).sample(range(volume.size // BLOCK), 20_000):
            volume.pread(BLOCK, offset * BLOCK)
        memory = volume.stats()["memory_bytes"]
        volume.close()
        for name, seconds in zip(times, (opened - began, found - opened, listed - found), strict=True):
            times[name].append(seconds)
    return {"memory": memory, **{name: statistics.median(values) for name, values in times.items()}}


def test_open_lookup_list_and_memory(directory, scale, report_table, benchmark):
    """A table; the scattered volume's 20,000 random reads fill the cache of 16 MiB."""
    blocks = scale(2_000_000, 2000)
    volumes = [(f"{count:,} snapshots", count) for count in scale((0, 10_000, 100_000), (0, 10), quick=(0, 1000))]
    for name, count in volumes:
        with_snapshots(directory / name, count + 1)
    volumes.append((f"{blocks:,} scattered blocks", 0))
    with_scattered_blocks(directory / volumes[-1][0], blocks)

    def measured() -> dict[str, dict[str, float]]:
        return {name: measure(directory / name, count) for name, count in volumes}

    rows = benchmark.pedantic(measured, rounds=1)
    lines = [
        "| volume | open | first look-up by name | list 100 | memory (cache 16 MiB) |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        times = " | ".join(f"{row[key] * 1e3:.2f} ms" for key in ("open", "name", "page"))
        lines.append(f"| {name} | {times} | {row['memory'] / MiB:.1f} MiB |")
    report_table("\n".join(lines))
    benchmark.extra_info["size"] = rows
    assert all(row["memory"] <= 1.5 * CACHE for row in rows.values())


def test_rollback(directory, scale, report_table, benchmark):
    """Rolling back 256 scattered blocks, by volume size."""

    def measured() -> dict[str, float]:
        return {name: rollback_seconds(directory / f"rollback {name}", size, scale(30, 2)) for name, size in SIZES}

    rows = benchmark.pedantic(measured, rounds=1)
    benchmark.extra_info["rollback"] = rows
    report_table("rollback of 256 scattered blocks: " + ", ".join(f"{n} {t * 1e3:.2f} ms" for n, t in rows.items()))


def test_clone(directory, scale, report_table, benchmark):
    """Making a clone of a volume with 256 scattered blocks, durable, and deleting it again, by volume size."""

    def measured() -> dict[str, float]:
        return {name: clone_seconds(directory / f"clone {name}", size, scale(30, 2)) for name, size in SIZES}

    rows = benchmark.pedantic(measured, rounds=1)
    benchmark.extra_info["clone"] = rows
    report_table("clone: " + ", ".join(f"{n} {t * 1e3:.2f} ms" for n, t in rows.items()))


def clone_seconds(path: Path, size: int, rounds: int) -> float:
    """The median."""
    times = []
    with cowengine.Volume.create(path, size, background=False) as volume:
        for block in random.Random(1).sample(range(size // BLOCK), 256):
            volume.pwrite(b"x" * BLOCK, block * BLOCK)
        snapshot = volume.snapshot("s")
        for number in range(rounds):
            began = time.perf_counter()
            clone = snapshot.clone(f"c{number}")
            times.append(time.perf_counter() - began)
            clone.close()
            volume.delete_head(f"c{number}")
    return statistics.median(times)


def rollback_seconds(path: Path, size: int, rounds: int) -> float:
    """The median."""
    times = []
    with cowengine.Volume.create(path, size, background=False) as volume:
        for number in range(rounds):
            snapshot = volume.snapshot(f"s{number}")
            for block in random.Random(number).sample(range(size // BLOCK), 256):
                volume.pwrite(b"x" * BLOCK, block * BLOCK)
            volume.flush()
            began = time.perf_counter()
            volume.rollback(snapshot)
            times.append(time.perf_counter() - began)
    return statistics.median(times)
