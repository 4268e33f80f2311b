"""What every benchmark gets: who takes part, sizes that fit the kind of run, a race, and the output at the end.

Three kinds of runs: the full one, --quick (under three minutes), and --benchmark-disable, in which each workload runs
once and small. Every random choice is seeded. Results go to bench/results (or --benchmark-json).
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from big_maps import BigMaps
from memory import present
from page import page
from race import ONCE, Budget, Race
from result import Line
from subjects.field import LEAST_ROOM, Field, all_subjects, started
from table import cowengine_table, peers_table
from workload import SEED, GiB, MiB, TiB, Workload

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"
LINES = pytest.StashKey[list[Line]]()
FIELD = pytest.StashKey[Field]()
MEMORY = pytest.StashKey[str]()
ROOM = 32 << 30  # bytes that the full run needs


@dataclass(frozen=True)
class Scale:
    """Picks the size of a workload by the kind of run: full, quick, or merely proving that it still works."""

    kind: str

    @property
    def full(self) -> bool:
        """Whether anything is measured at all."""
        return self.kind != "small"

    def __call__(self, full: T, small: T, quick: T | None = None) -> T:
        """Without `quick` a quick run takes an eighth of the full number."""
        if self.kind == "quick" and quick is None:
            return max(full // 8, small)
        return {"full": full, "small": small, "quick": quick}[self.kind]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: all rows in under three minutes")


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    if request.config.getoption("benchmark_disable"):
        return Scale("small")
    return Scale("quick" if request.config.getoption("quick") else "full")


@pytest.fixture(scope="session")
def directory(scale: Scale) -> Iterator[Path]:
    """Where the files lie: below BENCH_DIR, or beside the results; the full run refuses a file system in memory."""
    RESULTS.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_DIR", RESULTS)))
    try:
        if scale.full and file_system(path) in {"tmpfs", "ramfs"}:
            pytest.exit("a barrier costs nothing in memory; set BENCH_DIR to a directory on a disk", returncode=2)
        if scale.kind == "full" and shutil.disk_usage(path).free < ROOM:
            pytest.exit(f"less than {ROOM >> 30} GiB are free in {path.parent}; set BENCH_DIR", returncode=2)
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def memory(scale: Scale, request: pytest.FixtureRequest) -> Iterator[None]:
    """What the page cache will need belongs to this machine before anything is measured."""
    if not scale.full:
        yield  # nothing is measured: the machine stays as it is
        return
    with present(scale(64, 0, quick=2) << 30) as done:
        request.config.stash[MEMORY] = done
        yield


@pytest.fixture(scope="session")
def field(directory: Path, scale: Scale, memory: None, request: pytest.FixtureRequest) -> Iterator[Field]:
    """The subjects of this run, running."""
    subjects = all_subjects(scale(4096 * MiB, LEAST_ROOM, quick=1024 * MiB))
    with started(subjects, directory, at_once=not scale.full) as found:
        request.config.stash[FIELD] = found
        yield found


@pytest.fixture(scope="session")
def big_maps(directory: Path, scale: Scale) -> BigMaps:
    """Volumes with 1 TiB mapped, 2,000,000 scattered blocks, 100,000 snapshots; smaller in smaller runs."""
    sizes = {
        "mapped": scale(TiB, GiB, quick=TiB),
        "span": scale(64, 1, quick=8) * GiB,
        "blocks": scale(2_000_000, 2000, quick=250_000),
        "snapshots": scale(100_000, 100, quick=10_000),
    }
    return BigMaps(directory, sizes)


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> Workload:
    return Workload(request.node.name)


@pytest.fixture
def race(
    benchmark: Any, field: Field, workload: Workload, scale: Scale, request: pytest.FixtureRequest
) -> Iterator[Race]:  # fmt: skip
    """An empty race; its disks are closed after the test."""
    budget = {"full": Budget(6.0, 3.0, least=5), "quick": Budget(0.3, 0.15, least=2), "small": ONCE}[scale.kind]
    made = Race(benchmark, field, workload, budget, request.config.stash[LINES])
    with made.disks:
        yield made


def file_system(path: Path) -> str:
    """The type of the file system that `path` lies on."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    below = [(mount, kind) for mount, kind in mounts if path.resolve().is_relative_to(mount)]
    return max(below, key=lambda mount_kind: len(mount_kind[0]), default=("", "unknown"))[1]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Who ends a run with SIGTERM gets the same order as with Ctrl-C: files, mounts and daemons of the subjects go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[LINES] = []
    config.stash[FIELD] = Field()
    config.stash[MEMORY] = ""
    if not config.getoption("benchmark_disable") and not config.getoption("benchmark_json"):
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_quiet = True  # our own tables say what theirs would, as ratios
        config.option.benchmark_json = str(RESULTS / time.strftime("%Y%m%dT%H%M%S.json"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A benchmark that was interrupted has no result. If that were not said, saving results would fail for want of it,
    before mounts and daemons are ended.
    """
    try:
        return (yield)
    except BaseException:
        if isinstance(item, pytest.Function) and "benchmark" in item.funcargs:
            item.funcargs["benchmark"].has_error = True
        raise


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["cpu_count"] = os.cpu_count()
    machine_info["file_system"] = file_system(Path(os.environ.get("BENCH_DIR", RESULTS)))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    field = config.stash[FIELD]
    output_json["seed"] = SEED
    output_json["quick"] = bool(config.getoption("quick"))
    output_json["subjects"] = {subject.name: subject.settings for subject in field.running}
    output_json["missing"] = field.missing
    output_json["memory"] = config.stash[MEMORY]
    Path(config.option.benchmark_json).with_suffix(".html").write_text(page(output_json), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    field = config.stash[FIELD]
    missing = [f"not measured: {name}: {reason}" for name, reason in field.missing.items()]
    lines = config.stash[LINES]
    if config.getoption("benchmark_disable"):
        for line in missing:
            terminalreporter.write_line(line)
        return
    if not lines:
        return
    terminalreporter.write_sep("=", "cowengine beside a raw file, and its peers")
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    settings = [config.stash[MEMORY], *(f"{subject.name}: {subject.settings}" for subject in field.running)]
    shown = [machine, *settings, *missing, "", *cowengine_table(lines), "", *peers_table(lines), ""]
    for line in [*shown, f"written to {config.getoption('benchmark_json')} and .html beside it"]:
        terminalreporter.write_line(line)
