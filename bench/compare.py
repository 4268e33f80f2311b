"""The rows that are not races yet: cowengine beside a raw file alone, in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from result import quantity as shown
from workload import BLOCK, SEED


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


@dataclass
class Comparison:
    """Runs a workload in turns with its raw counterpart, one round each, and keeps the row."""

    benchmark: Any
    scale: Any
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


def ratio_table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [
        "| workload | cowengine | raw file | ratio | 10 % to 90 % | goal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        goal = "" if row.goal is None else f"≤ {row.goal:.2f}{'' if row.ratio <= row.goal else ' MISSED'}"
        lines.append(
            f"| {row.name.replace('_', ' ')} | {shown(row.cow_seconds, 's')} | {shown(row.raw_seconds, 's')} "
            f"| {row.ratio:.2f} | {row.ratio_low:.2f} to {row.ratio_high:.2f} | {goal} |"
        )
    return lines
