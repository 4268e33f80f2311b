"""Freeze ledger: what each writer and provider did in a job, when, for how long, within which limit; and what the
writers' events returned, which so stays with a set of which no backup is made yet.

Kept with the snapshot set, printable as JSON (schema "freeze-ledger"). It judges nothing: the coordinator decides,
the ledger remembers.

Threads: one coordinator adds; `to_dict` may be called from any thread at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "veto", "timeout", "died", "skipped"]


@dataclass(frozen=True)
class LedgerEntry:
    """One event of one writer or provider. Times in seconds; offset from the start of the job, wall since 1970."""

    role: Literal["writer", "provider"]
    name: str
    phase: str
    level: str | None
    required: bool
    offset_seconds: float
    wall: float
    duration_seconds: float
    limit_seconds: float
    outcome: Outcome
    message: str | None = None


@dataclass
class FreezeLedger:
    """The entries of one job, and its two windows.

    The freeze window runs from the first freeze that was asked for to the last thaw that returned; it is 0 if nobody
    was frozen. The hold window is the time the provider took to flush, hold, commit and release.
    """

    job: str
    kind: str
    volumes: Sequence[str]
    started: float = field(default_factory=time.time)
    started_monotonic: float = field(default_factory=time.monotonic)
    outcome: Literal["running", "ok", "failed", "cancelled"] = "running"
    error: str | None = None
    freeze_window_seconds: float = 0.0
    hold_window_seconds: float = 0.0
    predicted_freeze_seconds: float | None = None
    entries: list[LedgerEntry] = field(default_factory=list)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)  # by writer

    def add(
        self,
        role: Literal["writer", "provider"],
        name: str,
        phase: str,
        outcome: Outcome,
        *,
        started: float,
        ended: float,
        limit: float = 0.0,
        level: str | None = None,
        required: bool = True,
        message: str | None = None,
    ) -> None:
        """Remember one event; `started` and `ended` in time.monotonic seconds."""
        offset = max(0.0, started - self.started_monotonic)
        duration = max(0.0, ended - started)
        wall = self.started + offset
        entry = LedgerEntry(role, name, phase, level, required, offset, wall, duration, limit, outcome, message)
        self.entries.append(entry)

    def outcome_of(self, writer: str) -> Outcome:
        """How it went for `writer` as a whole: its first outcome that is not ok."""
        outcomes = (entry.outcome for entry in list(self.entries) if entry.role == "writer" and entry.name == writer)
        return next((outcome for outcome in outcomes if outcome != "ok"), "ok")

    def message_of(self, writer: str) -> str | None:
        """What went wrong first for `writer`, or None."""
        own = (entry for entry in list(self.entries) if entry.role == "writer" and entry.name == writer)
        return next((entry.message for entry in own if entry.message), None)

    def to_dict(self) -> dict[str, Any]:
        """As the JSON types of schema "freeze-ledger"."""
        document: dict[str, Any] = {
            "schema": "cowengine/freeze-ledger",
            "version": 1,
            "job": self.job,
            "kind": self.kind,
            "volumes": list(self.volumes),
            "started": self.started,
            "outcome": self.outcome,
            "error": self.error,
            "freeze_window_seconds": self.freeze_window_seconds,
            "hold_window_seconds": self.hold_window_seconds,
            "entries": [asdict(entry) for entry in sorted(self.entries[:], key=lambda entry: entry.offset_seconds)],
        }
        if self.notes:
            document["writer_notes"] = dict(self.notes)
        if self.predicted_freeze_seconds is not None:
            document["predicted_freeze_seconds"] = self.predicted_freeze_seconds
        return document
