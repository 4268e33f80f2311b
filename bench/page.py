"""A run as one HTML page that loads nothing: the table of ratios, plots, settings, and who is missing.

python bench/page.py bench/results/RUN.json         makes bench/results/RUN.html again
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from result import Line, quantity
from svg import Points, chart
from table import OWN, behind, by_row

LINES_MAX = 12  # of a plot, more cannot be told apart
POINTS_MAX = 120  # of a distribution: more are not seen
RAW = "raw file"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; --good: #1e8449; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: 4px 10px; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 17em; }
td small { display: block; opacity: .7; white-space: nowrap; }
.missed { color: var(--bad); font-weight: 600; } .reached { color: var(--good); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34em, 100%), 1fr)); gap: 1em 2em; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; max-width: 900px; height: auto; }
svg text { font-size: 11px; fill: currentColor; } .grid { stroke: var(--line); }
dt { font-weight: 600; } dd { margin: 0 0 .4em 1.5em; }
"""


def page(document: dict[str, Any]) -> str:
    """The page of a run, from its JSON document."""
    lines = [Line(**line) for each in document["benchmarks"] for line in each["extra_info"].get("lines", ())]
    parts = [
        "<h1>cowengine beside a raw file, and its peers</h1>",
        *machine(document),
        "<h2>Ratios to the raw file</h2>",
        "<p>Median of the rounds, 10th to 90th percentile below. Of times, less is better; with ≥, of rates, more is."
        " A dash: not offered, see below the table.</p>",
        ratio_table(lines, list(document["missing"])),
        *reasons(lines),
        '<h2>Flatness</h2><div class="plots">',
        *plots_along("volume size", lines, size_spelt),
        *plots_along("snapshots", lines, lambda value: f"{value:,.0f}"),
        *growing(document["benchmarks"]),
        "</div><h2>Distributions of latency</h2>",
        '<p>The share of rounds that took at most so long an operation.</p><div class="plots">',
        *distributions(document["benchmarks"]),
        "</div>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    title = "<title>cowengine: a run of the benchmarks</title>"
    body = "\n".join(parts)
    style = f"<style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}{title}{style}</head><body>{body}</body></html>\n'


def machine(document: dict[str, Any]) -> Iterator[str]:
    """What it was measured on, with what settings, and who is missing."""
    info, commit = document["machine_info"], document["commit_info"]
    kind = "a quick run: few rounds, small volumes" if document["quick"] else "a full run"
    cpu = info.get("cpu", {}).get("brand_raw", info["machine"])
    yield (
        f"<p>{escape(document['datetime'][:19])} UTC, {kind}; commit {escape(str(commit['id'])[:12])}"
        f"{' with changes' if commit.get('dirty') else ''}; seed {document['seed']}. {info['cpu_count']} cores of "
        f"{escape(cpu)}, Linux {escape(info['release'])}, {escape(info['file_system'])}, Python "
        f"{escape(info['python_version'])}.</p><dl>"
    )
    for name, settings in document["subjects"].items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(settings)}</dd>"
    for name, reason in document["missing"].items():
        yield f'<dt>{escape(name)}</dt><dd class="missed">Missing: {escape(reason)}</dd>'
    yield "</dl>"


def ratio_table(lines: Sequence[Line], missing: Sequence[str]) -> str:
    """A row for each workload, a column for each subject, those that are missing too."""
    subjects = list(dict.fromkeys([OWN, *(line.subject for line in lines), *missing]))
    head = "".join(f"<th>{escape(name)}</th>" for name in [*subjects[:1], "goal", "beside it", *subjects[1:]])
    rows = []
    for (row, title), cells in by_row(lines).items():
        own = cells.get(OWN)
        base = next((line for line in cells.values() if line.base is not None), None)
        raw = "" if base is None or base.base is None else quantity(base.base, base.unit)
        shown = [value_cell(own), goal_cell(own), f"<td>{raw}</td>"]
        shown += ["<td>missing</td>" if name in missing else value_cell(cells.get(name)) for name in subjects[1:]]
        rows.append(f"<tr><td>{escape(f'{row} {title}'.strip())}</td>{''.join(shown)}</tr>")
    return f'<div class="wide"><table><thead><tr><th>row</th>{head}</tr></thead>{"".join(rows)}</table></div>'


def value_cell(line: Line | None) -> str:
    """A ratio with its spread and the median, or a value without ratio, or a dash; nothing for who was not asked."""
    if line is None or line.value is None:
        return "<td></td>" if line is None else "<td>-</td>"
    value = quantity(line.value, line.unit)
    if line.ratio is None:
        return f"<td>{escape(value)}</td>"
    return f"<td>{line.ratio_text}<small>{line.spread_text}</small><small>{escape(value)}</small></td>"


def goal_cell(line: Line | None) -> str:
    """The goal, red if it was missed."""
    if line is None or line.goal is None:
        return "<td></td>"
    return f'<td class="{"missed" if line.missed else "reached"}">{escape(line.goal_text)}</td>'


def reasons(lines: Sequence[Line]) -> Iterator[str]:
    """Why there are dashes, what is not to be trusted, and where a peer is ahead."""
    notes = dict.fromkeys(f"{line.subject}, {line.row} {line.title}: {line.note}" for line in lines if line.note)
    yield "<ul>"
    yield from (f'<li class="missed">{escape(each)}</li>' for each in behind(lines))
    yield from (f"<li>{escape(note)}</li>" for note in notes)
    yield "</ul>"


def plots_along(along: str, lines: Sequence[Line], spelt: Any) -> Iterator[str]:
    """One plot for each workload that was measured at several points of one direction: medians, and the raw file's."""
    for workload in dict.fromkeys(line.workload for line in lines if along in line.at):
        series: dict[str, dict[float, float]] = {}
        for line in lines:
            if line.workload == workload and along in line.at and line.value is not None:
                others = [f"{key} {value:,.0f}" for key, value in line.at.items() if key != along]
                series.setdefault(", ".join([line.subject, *others]), {})[line.at[along]] = line.value
                if line.base is not None:
                    series.setdefault(", ".join([RAW, *others]), {})[line.at[along]] = line.base
        ordered = sorted(series.items(), key=lambda item: item[0].startswith(RAW))
        shown = {name: sorted(points.items()) for name, points in ordered if len(points) > 1}
        if shown:
            yield chart(
                f"{workload}, by {along}", along, "median latency", shown, x_spelt=spelt, y_spelt=seconds_spelt
            )  # fmt: skip


def growing(benchmarks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Row 1 round by round: each round leaves one snapshot more, so the round is the number of snapshots."""
    for each in benchmarks:
        first = each["extra_info"].get("lines", [{}])[0]
        if first.get("row") == "1" and not first["at"]:
            series = {
                label: [(number + 1.0, pair[0]) for number, pair in smoothed(pairs)]
                for label, pairs in each["extra_info"]["rounds"].items()
            }
            yield chart(
                "durable snapshot, by the number of snapshots that were taken before", "snapshots",
                "latency (medians of neighbours)", series, x_spelt=lambda value: f"{value:,.0f}", y_spelt=seconds_spelt,
            )  # fmt: skip


def smoothed(pairs: Sequence[Sequence[float]]) -> Iterator[tuple[int, Sequence[float]]]:
    """The median of each group of neighbours, so few that a line through them can be read."""
    width = max(len(pairs) // 40, 1)
    for start in range(0, len(pairs) - width + 1, width):
        yield start, sorted(pairs[start : start + width])[width // 2]


def distributions(benchmarks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A plot for each race, or if that has too many lines for each variant; the raw file is in all of them."""
    for each in benchmarks:
        rounds = {label: pairs for label, pairs in each["extra_info"].get("rounds", {}).items() if pairs}
        lines = [Line(**line) for line in each["extra_info"].get("lines", ())]
        subjects = {line.subject for line in lines}
        for variant, labels in grouped(list(rounds), apart=len(rounds) > LINES_MAX and len(subjects) > 1).items():
            series = {label: distribution([pair[0] for pair in rounds[label]]) for label in labels}
            series[RAW] = distribution([pair[1] for pair in rounds[labels[0]]])
            title = ", ".join(filter(None, [f"{lines[0].row} {lines[0].workload}".strip(), variant]))
            yield chart(
                title, "latency of one operation", "share of rounds", series, x_spelt=seconds_spelt,
                y_spelt=lambda value: f"{value:.0%}", y_log=False, steps=True,
            )  # fmt: skip


def grouped(labels: Sequence[str], *, apart: bool) -> dict[str, list[str]]:
    """The labels of entries, "subject, variant", together or by variant."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(label.partition(", ")[2] if apart else "", []).append(label)
    return groups


def distribution(values: Sequence[float]) -> Points:
    """(value, share of values up to it), thinned out."""
    ordered = sorted(values)
    step = max(len(ordered) // POINTS_MAX, 1)
    places = [*range(0, len(ordered), step), len(ordered) - 1]
    return [(ordered[place], (place + 1) / len(ordered)) for place in dict.fromkeys(places)]


def seconds_spelt(value: float) -> str:
    """Two digits are enough for a tick."""
    for name, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 0.9995:
            return f"{value * factor:.3g} {name}"
    return f"{value * 1e9:.3g} ns"


def size_spelt(value: float) -> str:
    """A number of bytes."""
    for name, power in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if value >= 1 << power:
            return f"{value / (1 << power):g} {name}"
    return f"{value:,.0f} B"


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        path.with_suffix(".html").write_text(page(json.loads(path.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
