"""Line charts as SVG text: logarithmic axes, a legend, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

# Okabe and Ito's, which people with any colour vision tell apart; black is for the raw file, which comes last.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
DASHES = ("none", "6 3", "2 3")  # when the colours begin again
WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 12, 46


@dataclass(frozen=True)
class Axis:
    """One direction: its range on the paper, its values, how they are spelt."""

    label: str
    begin: float
    end: float
    low: float
    high: float
    spelt: Callable[[float], str]
    log: bool
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        """Where a value lies on the paper."""
        low, high, value = (math.log10(each) if self.log else each for each in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * (value - low) / ((high - low) or 1)


def axis(
    label: str, values: Sequence[float], begin: float, end: float, spelt: Callable[[float], str], *, log: bool
) -> Axis:  # fmt: skip
    """An axis that has all the values on it; one from left to right has its ticks at the values where they are few."""
    low, high = min(values), max(values)
    few = sorted(set(values))
    if not log:
        return Axis(label, begin, end, 0.0, max(high, 1e-12), spelt, False, [high * part / 4 for part in range(5)])
    if len(few) <= 6 and begin < end:
        return Axis(label, begin, end, low, high, spelt, True, few)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 2 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    inside = [tick for tick in ticks if low <= tick <= high]
    return Axis(label, begin, end, low, high, spelt, True, inside if len(inside) > 1 else [low, high])


def chart(
    title: str, x_label: str, y_label: str, series: Mapping[str, Points], *, x_spelt: Callable[[float], str],
    y_spelt: Callable[[float], str], y_log: bool = True, steps: bool = False,
) -> str:  # fmt: skip
    """The chart; on a logarithmic axis only what is above zero. The x axis is always logarithmic."""
    drawn = {name: [(x, y) for x, y in points if x > 0 and (y > 0 or not y_log)] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    across = axis(x_label, xs, LEFT, WIDTH - RIGHT, x_spelt, log=True)
    up = axis(y_label, [min(ys) / 1.15, max(ys) * 1.15, *ys] if y_log else ys, HEIGHT - BOTTOM, TOP, y_spelt, log=y_log)
    parts = [*grid(across, up)]
    for place, (name, points) in enumerate(drawn.items()):
        colour = "currentColor" if name.startswith("raw file") else COLOURS[place % len(COLOURS)]
        dashes = DASHES[place // len(COLOURS) % len(DASHES)]
        parts += line(points, across, up, f'stroke="{colour}" stroke-dasharray="{dashes}"', colour, steps=steps)
        parts += legend(name, place, f'stroke="{colour}" stroke-dasharray="{dashes}"')
    height = max(HEIGHT, TOP + 18 * len(drawn) + 10)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg></figure>"
    )


def grid(across: Axis, up: Axis) -> list[str]:
    """Lines, ticks and labels of both axes."""
    parts = []
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{up.begin}" y2="{up.end}"/>')
        parts.append(f'<text x="{x:.1f}" y="{up.begin + 16}" text-anchor="middle">{escape(across.spelt(tick))}</text>')
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{across.begin}" x2="{across.end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{across.begin - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(up.spelt(tick))}</text>')
    middle = (across.begin + across.end) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across.label)}</text>')
    middle = (up.begin + up.end) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{escape(up.label)}</text>')
    return parts


def line(points: Points, across: Axis, up: Axis, stroke: str, colour: str, *, steps: bool) -> list[str]:
    """A line through the points, with a dot at each where they are few."""
    places = [(across.place(x), up.place(y)) for x, y in sorted(points)]
    path = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]
    path += [f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}" for x, y in places[1:]]
    parts = [f'<path d="{"".join(path)}" fill="none" {stroke} stroke-width="2"/>']
    if not steps and len(places) <= 12:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return parts


def legend(name: str, place: int, stroke: str) -> list[str]:
    """The name of a line, right of the chart."""
    x, y = WIDTH - RIGHT + 14, TOP + 10 + 18 * place
    shown = name if len(name) <= 36 else name[:35] + "…"
    return [
        f'<line x1="{x}" x2="{x + 16}" y1="{y}" y2="{y}" {stroke} stroke-width="3"/>',
        f'<text x="{x + 22}" y="{y + 4}">{escape(shown)}<title>{escape(name)}</title></text>',
    ]
