"""The tables that a run prints, in Markdown: cowengine's rows, then every peer's ratios beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from result import Line, quantity

OWN = "cowengine"


def cowengine_table(lines: Sequence[Line]) -> list[str]:
    """What cowengine and the lane beside it took, the ratio, its spread, the goal."""
    table = [
        "| row | workload | cowengine | beside it | ratio | 10 % to 90 % | goal |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for line in sorted(lines, key=place):
        if line.subject == OWN:
            value, base = ("" if each is None else quantity(each, line.unit) for each in (line.value, line.base))
            cells = [line.row, line.title, value, base, line.ratio_text, line.spread_text]
            table.append("| " + " | ".join([*cells, " ".join(filter(None, [line.goal_text, line.note]))]) + " |")
    return table


def peers_table(lines: Sequence[Line]) -> list[str]:
    """The ratio to the raw file of every subject; a dash where there is none, with its reason below."""
    peers = list(dict.fromkeys(line.subject for line in lines if line.subject != OWN))
    if not peers:
        return []
    table = [
        f"| ratio to the raw file | {OWN} | " + " | ".join(peers) + " |",
        "|---|" + "---:|" * (len(peers) + 1),
    ]
    reasons: dict[str, None] = {}
    for (row, title), cells in by_row(lines).items():
        if any(peer in cells for peer in peers):
            shown = [cell(cells.get(name)) for name in [OWN, *peers]]
            table.append(f"| {row} {title} | " + " | ".join(shown) + " |")
            for line in cells.values():
                if line.note:
                    reasons[f"{line.subject}, {line.title}: {line.note}"] = None
    return [*table, "", *reasons, *behind(lines)]


def by_row(lines: Sequence[Line]) -> dict[tuple[str, str], Mapping[str, Line]]:
    """The lines that stand side by side: by row and title, then by subject. In the order of the rows' numbers."""
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for line in sorted(lines, key=place):
        rows.setdefault((line.row, line.title), {})[line.subject] = line
    return dict(rows)


def place(line: Line) -> float:
    """Where a line stands in the table: rows without a number come last."""
    return float(line.row or "inf")


def cell(line: Line | None) -> str:
    """A ratio and its spread, or a dash for what is not offered; nothing where the subject was not asked."""
    if line is None or line.ratio is None:
        return "" if line is None else "-"
    return f"{line.ratio_text} ({line.spread_text})" if line.spread_text else line.ratio_text


def behind(lines: Sequence[Line]) -> Iterator[str]:
    """Where a peer is ahead of cowengine."""
    for (row, title), cells in by_row(lines).items():
        own = cells.get(OWN)
        for name, line in cells.items():
            if own is None or own.ratio is None or line.ratio is None or line is own:
                continue
            if line.ratio > own.ratio if own.rate else line.ratio < own.ratio:
                yield f"BEHIND in {row} {title}: {name} has {line.ratio_text}, cowengine {own.ratio_text}"
