"""The freeze ledger as text: who was asked what, for how long, with which outcome."""

from __future__ import annotations

from typing import Any

from cowengine.cli.output import shown
from cowengine.cli.sizes import shown_duration


def ledger_lines(ledger: dict[str, Any] | None) -> list[str]:
    """One line per writer or provider and phase; the windows first."""
    if not ledger:
        return []
    windows = [("freeze window", "freeze_window_seconds"), ("hold window", "hold_window_seconds")]
    lines = [f"  {name}: {shown_duration(float(ledger[key]))}" for name, key in windows if ledger.get(key) is not None]
    return lines + [_entry_line(entry) for entry in ledger.get("entries", ())]


def _entry_line(entry: dict[str, Any]) -> str:
    duration = shown_duration(float(entry["duration_seconds"]))
    message = f"  {shown(entry['message'])}" if entry.get("message") else ""
    return f"  {shown(entry['name']):<20} {entry['phase']:<18} {duration:>12}  {entry['outcome']}{message}"
