"""What a run found: one line for each subject of a row, as the table, the JSON file and the page show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One subject in one row. What was not measured has only a note that says why."""

    row: str  # the number in the table of goals; empty: not in it
    workload: str
    variant: str
    subject: str
    value: float | None = None  # median; seconds an operation unless `unit` says otherwise
    unit: str = "s"
    base: float | None = None  # the same of the lane beside it, most often the raw file
    ratio: float | None = None  # median of the rounds: of times, or with `rate` of rates
    low: float | None = None  # 10th percentile
    high: float | None = None  # 90th
    rate: bool = False  # larger is better
    goal: float | None = None  # for the ratio, and where there is none for the value
    note: str = ""
    at: dict[str, float] = field(default_factory=dict)  # where it stands in plots: "volume size", "snapshots"
    absolute: bool = False  # the goal is for the value all the same

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.variant}" if self.variant else self.workload

    @property
    def missed(self) -> bool:
        """Whether there is a goal and it was not reached."""
        reached = self.value if self.is_of_value else self.ratio
        if self.goal is None or reached is None:
            return False
        return reached < self.goal if self.rate else reached > self.goal

    @property
    def is_of_value(self) -> bool:
        """Whether the goal is for the value."""
        return self.absolute or self.ratio is None

    @property
    def goal_text(self) -> str:
        """The goal, and whether it was missed."""
        if self.goal is None:
            return ""
        goal = quantity(self.goal, self.unit) if self.is_of_value else f"{self.goal:g}"
        return f"{'≥' if self.rate else '≤'} {goal}{' MISSED' if self.missed else ''}"

    @property
    def ratio_text(self) -> str:
        return "" if self.ratio is None else number(self.ratio)

    @property
    def spread_text(self) -> str:
        return "" if self.low is None or self.high is None else f"{number(self.low)} to {number(self.high)}"


def median(values: Sequence[float]) -> float:
    """The middle one, or the lower of the two: a value that was measured."""
    return sorted(values)[(len(values) - 1) // 2]


def tenths(values: Sequence[float]) -> tuple[float, float, float]:
    """10th percentile, median, 90th percentile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 10], median(ordered), ordered[-1 - len(ordered) // 10]


def number(value: float) -> str:
    """Three digits, without more behind the point than are of use."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def quantity(value: float, unit: str) -> str:
    """A value with its unit; seconds with a fitting one."""
    if unit != "s":
        return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    for name, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.2f} {name}"
    return f"{value * 1e9:.0f} ns"
