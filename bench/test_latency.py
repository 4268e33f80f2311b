"""Durable snapshot latency by volume size and number of snapshots: the table that must be flat.

All nine volumes are open at once and measured in turns, in a new order in each round, with the raw barrier among them;
so what the machine does meanwhile meets all alike. The figure is the first quartile, on both sides: a disk throttled to
so many operations a second gives every cell two speeds, between which medians and means jump from run to run.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import cowengine
from cowengine.core.iotable import IOTable

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SIZES = {"1 GiB": GiB, "64 GiB": 64 * GiB, "1 TiB": TiB}
FLATNESS = 1.3  # the largest max/min of the nine that is good enough


class Unsynced(IOTable):
    """The kernel's calls without barriers: only to make 100,000 snapshots in seconds. A sync follows."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""


def with_snapshots(path: str, size: int, count: int, block: bytes) -> None:
    """Make a volume of that size with so many snapshots, and a random 4 KiB write before every eighth."""
    generator = random.Random(f"{size} {count}")
    with cowengine.Volume.create(path, size, io=Unsynced()) as volume:
        for _ in range(256):
            volume.pwrite(block, generator.randrange(size // 4096) * 4096)
        for number in range(count):
            if number % 8 == 0:
                volume.pwrite(block, generator.randrange(size // 4096) * 4096)
            volume.snapshot(f"snapshot {number}")


def synced(path: Path) -> None:
    """Make durable what was written without barriers, so that opening pays for nothing else."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


def measure(volume: cowengine.Volume, name: str, *, keep: bool) -> float:
    """Seconds of one durable snapshot with nothing unflushed, which is deleted again unless `keep`."""
    started = time.perf_counter()
    snapshot = volume.snapshot(name)
    elapsed = time.perf_counter() - started
    if not keep:
        snapshot.delete()
        volume.flush()
    return elapsed


def typical(times: list[float]) -> float:
    """The first quartile."""
    return sorted(times)[len(times) // 4]


def test_snapshot_latency_is_flat(benchmark, workload, directory, make_raw, scale, report_table):
    counts = (0, 1000, 100_000) if scale.full else (0, 10, 100)
    raw = make_raw(MiB)
    paths = {(label, count): directory / f"latency-{size}-{count}" for label, size in SIZES.items() for count in counts}
    times: dict[tuple[str, int], list[float]] = {cell: [] for cell in paths}
    raw_times: list[float] = []
    opened: dict[tuple[str, int], float] = {}
    with ExitStack() as stack:
        for (label, count), path in paths.items():
            stack.callback(path.unlink, missing_ok=True)
            with_snapshots(str(path), SIZES[label], count, workload.block)
        volumes = {}
        for cell, path in paths.items():
            synced(path)
            started = time.perf_counter()
            volumes[cell] = stack.enter_context(cowengine.Volume.open(str(path)))
            measure(volumes[cell], "first", keep=False)
            opened[cell] = time.perf_counter() - started
        assert all(len(volumes[cell].snapshots()) == cell[1] for cell in paths)

        def measure_raw() -> None:
            started = time.perf_counter()
            raw.write_durably()
            raw_times.append(time.perf_counter() - started)

        def measure_cell(cell: tuple[str, int]) -> None:
            name = f"measured {len(times[cell])}"
            # A few hundred more are nothing to a thousand; but none must stay none.
            times[cell].append(measure(volumes[cell], name, keep=cell[1] > 0))

        turns = [measure_raw, *(partial(measure_cell, cell) for cell in volumes)]

        def one_round() -> None:
            for turn in workload.random.sample(turns, len(turns)):
                turn()

        benchmark.pedantic(one_round, rounds=scale(300, 1), warmup_rounds=scale(10, 0))
    latencies = {cell: typical(taken[scale(10, 0) :]) for cell, taken in times.items()}
    barrier = typical(raw_times[scale(10, 0) :])
    flatness = max(latencies.values()) / min(latencies.values())
    benchmark.extra_info.update(
        latencies={f"{label}, {count}": value for (label, count), value in latencies.items()},
        opened={f"{label}, {count}": value for (label, count), value in opened.items()},
        medians={f"{label}, {count}": statistics.median(taken) for (label, count), taken in times.items()},
        barrier=barrier,
        flatness=flatness,
    )
    slowest = max(opened.values())
    note = f"opening one of them and taking the first snapshot took {slowest * 1e3:.0f} ms at most"
    report_table(f"{table(latencies, counts, barrier, flatness)}; {note}")


def table(latencies: dict[tuple[str, int], float], counts: tuple[int, ...], barrier: float, flatness: float) -> str:
    """The latencies as a Markdown table, in microseconds."""
    lines = ["", "| durable snapshot | " + " | ".join(f"{count:,} snapshots" for count in counts) + " |"]
    lines.append("|---|" + "---:|" * len(counts))
    for label in SIZES:
        cells = " | ".join(f"{latencies[label, count] * 1e6:.0f} µs" for count in counts)
        lines.append(f"| {label} | {cells} |")
    verdict = "met" if flatness <= FLATNESS else "MISSED"
    lines.append(
        f"\nmax/min {flatness:.2f} (goal ≤ {FLATNESS}: {verdict}); one 4 KiB overwrite and fdatasync of a raw "
        f"file in the same rounds: {barrier * 1e6:.0f} µs"
    )
    return "\n".join(lines)
