"""How a workload is measured: beside the same one on a raw file, in the same run, in turns (A B A B).

A machine's noise then meets both sides alike, and the ratio says what cowengine costs. Every random choice is seeded.
With --benchmark-disable each workload runs once, small. Results go to bench/results (or --benchmark-json).
"""

from __future__ import annotations

import itertools
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

SEED = 20240229
MiB = 1 << 20
BLOCK = 4096
RESULTS = Path(__file__).parent / "results"
ROWS = pytest.StashKey[list["Row"]]()
TABLES = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Row:
    """One workload, measured: seconds per operation on both sides."""

    name: str
    cow_seconds: float
    raw_seconds: float
    ratio: float  # median of (cow / raw), pair by pair
    ratio_low: float  # 10th percentile
    ratio_high: float  # 90th percentile
    goal: float | None
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """Picks the size of a workload: the full one, or the one that merely proves that it still runs."""

    full: bool

    def __call__(self, full: int, small: int) -> int:
        return full if self.full else small


@dataclass
class Comparison:
    """Runs a workload in turns with its raw counterpart, one round each, and keeps the row."""

    benchmark: Any
    scale: Scale
    name: str
    rows: list[Row]
    cow_times: list[float] = field(default_factory=list)
    raw_times: list[float] = field(default_factory=list)

    def __call__(
        self,
        cow: Callable[[], object],
        raw: Callable[[], object],
        *,
        rounds: int,
        operations: int = 1,
        before_cow: Callable[[], object] | None = None,
        before_raw: Callable[[], object] | None = None,
        goal: float | None = None,
        note: str = "",
    ) -> None:
        """`before_*` runs before each round and is not measured; `goal` is the largest ratio that is good enough."""

        def raw_round() -> None:
            if before_raw is not None:
                before_raw()
            started = time.perf_counter()
            raw()
            self.raw_times.append((time.perf_counter() - started) / operations)
            if before_cow is not None:
                before_cow()

        def cow_round() -> None:
            started = time.perf_counter()
            cow()
            self.cow_times.append((time.perf_counter() - started) / operations)

        warmup = max(rounds // 20, 1) if self.scale.full else 0
        self.benchmark.pedantic(cow_round, setup=raw_round, rounds=rounds, warmup_rounds=warmup)
        self._keep(warmup, goal, note)

    def of_program(self, run: Callable[[], list[tuple[float, float]]], *, goal: float | None = None) -> None:
        """The same for rounds that a program ran and measured: seconds per operation, (cow, raw)."""
        for cow_seconds, raw_seconds in self.benchmark.pedantic(run, rounds=1):
            self.cow_times.append(cow_seconds)
            self.raw_times.append(raw_seconds)
        self._keep(0, goal, "")

    def _keep(self, warmup: int, goal: float | None, note: str) -> None:
        cow, raw = self.cow_times[warmup:], self.raw_times[warmup:]
        ratios = sorted(a / b for a, b in zip(cow, raw, strict=True))
        row = Row(
            self.name,
            statistics.median(cow),
            statistics.median(raw),
            statistics.median(ratios),
            ratios[len(ratios) // 10],
            ratios[-1 - len(ratios) // 10],
            goal,
            note,
        )
        self.rows.append(row)
        self.benchmark.extra_info.update(asdict(row), seed=SEED)


class RawFile:
    """The raw counterpart: a file whose every byte was written before, so that no write allocates."""

    def __init__(self, path: Path, size: int, step: int) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        for offset in range(0, size, step):
            os.pwrite(self.fd, b"\xaa" * step, offset)
        os.fsync(self.fd)

    def write_durably(self) -> None:
        """What no durable operation can undercut: overwrite 4 KiB, and one barrier."""
        os.pwrite(self.fd, b"\x55" * BLOCK, 0)
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


class Workload:
    """Seeded data and offsets; the seed is the benchmark's name, so that each one repeats itself exactly."""

    def __init__(self, name: str) -> None:
        self.random = random.Random(f"{SEED} {name}")
        self.block = self.random.randbytes(BLOCK)
        self.mebibyte = self.random.randbytes(MiB)

    def offsets(self, size: int, count: int) -> list[int]:
        """`count` offsets of 4 KiB blocks below `size`, at random, each at most once."""
        return [block * BLOCK for block in self.random.sample(range(size // BLOCK), count)]

    def fill(self, pwrite: Callable[[bytes, int], object], size: int, step: int = MiB) -> None:
        """Write every byte from 0 to `size`, a multiple of `step`, in writes of `step` bytes.

        The page cache remembers the step: on ext4 a 4 KiB overwrite of what came in 1 MiB writes takes ten times as
        long as of what came in 4 KiB writes. So both sides are filled alike, and for 4 KiB workloads in 4 KiB steps.
        """
        for offset in range(0, size, step):
            pwrite(self.mebibyte[:step], offset)


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(full=not request.config.getoption("benchmark_disable"))


@pytest.fixture(scope="session")
def directory(scale: Scale) -> Iterator[Path]:
    """Where the files lie: below BENCH_DIR, or beside the results; the full run refuses a file system in memory."""
    RESULTS.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_DIR", RESULTS)))
    try:
        if scale.full and file_system(path) in {"tmpfs", "ramfs"}:
            pytest.exit("a barrier costs nothing in memory; set BENCH_DIR to a directory on a disk", returncode=2)
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def compare(benchmark: Any, scale: Scale, request: pytest.FixtureRequest) -> Comparison:
    name = request.node.name.removeprefix("test_")
    return Comparison(benchmark, scale, name, request.config.stash[ROWS])


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> Workload:
    return Workload(request.node.name)


@pytest.fixture
def volume_path(directory: Path) -> Iterator[Path]:
    """The path of a volume that is gone after the test."""
    path = directory / f"volume-{next(_numbers)}"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def make_raw(directory: Path) -> Iterator[Callable[..., RawFile]]:
    """Makes raw files that are gone after the test, filled in writes of `step` bytes (see Workload.fill)."""
    made: list[RawFile] = []

    def make(size: int, step: int = MiB) -> RawFile:
        made.append(RawFile(directory / f"raw-{next(_numbers)}", size, step))
        return made[-1]

    yield make
    for raw in made:
        raw.close()
        raw.path.unlink()


_numbers = itertools.count()


@pytest.fixture
def report_table(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a table of a test's own to what is printed at the end."""
    return request.config.stash[TABLES].append


def file_system(path: Path) -> str:
    """The type of the file system that `path` lies on."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    below = [(mount, kind) for mount, kind in mounts if path.resolve().is_relative_to(mount)]
    return max(below, key=lambda mount_kind: len(mount_kind[0]), default=("", "unknown"))[1]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.stash[TABLES] = []
    if not config.getoption("benchmark_disable") and not config.getoption("benchmark_json"):
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_quiet = True  # our own table says what theirs would, as ratios
        config.option.benchmark_json = str(RESULTS / time.strftime("%Y%m%dT%H%M%S.json"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["cpu_count"] = os.cpu_count()
    machine_info["file_system"] = file_system(Path(os.environ.get("BENCH_DIR", RESULTS)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    tables = config.stash[TABLES]
    if not (rows or tables) or config.getoption("benchmark_disable"):
        return
    terminalreporter.write_sep("=", "cowengine beside a raw file")
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    terminalreporter.write_line(machine)
    for line in [*(ratio_table(rows) if rows else []), *tables, "", f"written to {config.getoption('benchmark_json')}"]:
        terminalreporter.write_line(line)


def ratio_table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [
        "| workload | cowengine | raw file | ratio | 10 % to 90 % | goal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        goal = "" if row.goal is None else f"≤ {row.goal:.2f}{'' if row.ratio <= row.goal else ' MISSED'}"
        lines.append(
            f"| {row.name.replace('_', ' ')} | {shown(row.cow_seconds)} | {shown(row.raw_seconds)} "
            f"| {row.ratio:.2f} | {row.ratio_low:.2f} to {row.ratio_high:.2f} | {goal} |"
        )
    return lines


def shown(seconds: float) -> str:
    """A duration with a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.2f} µs"
