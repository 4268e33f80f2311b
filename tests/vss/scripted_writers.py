"""Writers that follow a script: real ones, which raise, hang or die at an event, and write down what happened to them.

The journal is a file, appended line by line, so that it sees writers in other processes too, and survives their death.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cowengine.vss import Component, JobView, Writer, WriterMetadata

EVENTS = (
    "identify",
    "prepare_backup",
    "prepare_snapshot",
    "freeze",
    "thaw",
    "post_snapshot",
    "backup_complete",
    "abort",
    "backup_shutdown",
)


@dataclass(frozen=True)
class Line:
    """One line of the journal: what `writer` did when (time.monotonic), in which process."""

    writer: str
    event: str
    stage: str  # "begin" or "end"
    at: float
    pid: int
    job: str


class Journal:
    """The file in which writers write down their events."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, writer: str, event: str, stage: str, job: str) -> None:
        line = f"{writer} {event} {stage} {time.monotonic()} {os.getpid()} {job}\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def lines(self, writer: str | None = None) -> list[Line]:
        if not self.path.exists():
            return []
        fields = [line.split() for line in self.path.read_text().splitlines()]
        lines = [Line(f[0], f[1], f[2], float(f[3]), int(f[4]), f[5]) for f in fields]
        return [line for line in lines if writer is None or line.writer == writer]

    def events(self, writer: str) -> list[str]:
        """The events that `writer` began, in order."""
        return [line.event for line in self.lines(writer) if line.stage == "begin"]

    def freezes(self, writer: str) -> list[tuple[float, float | None]]:
        """For each freeze that returned: when, and when the next thaw or abort began (None: never)."""
        lines = self.lines(writer)
        found: list[tuple[float, float | None]] = []
        for index, line in enumerate(lines):
            if (line.event, line.stage) == ("freeze", "end"):
                rest = (o.at for o in lines[index + 1 :] if o.event in ("thaw", "abort") and o.stage == "begin")
                found.append((line.at, next(rest, None)))
        return found


class ScriptedWriter(Writer):
    """`script` maps an event to "raise", "hang" or "die", each of which happens once in the writer's life."""

    def __init__(
        self,
        journal: Journal,
        name: str,
        script: dict[str, str] | None = None,
        *,
        level: Any = "front-end",
        volumes: tuple[str, ...] = (),
        delays: dict[str, float] | None = None,
        returns: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> None:
        self.journal = journal
        self.name = name
        self.script = script or {}
        self.level = level
        self.volumes = volumes
        self.delays = delays or {}
        self.returns = returns or {}
        for key, value in attributes.items():
            assert hasattr(Writer, key), key
            setattr(self, key, value)

    def identify(self) -> WriterMetadata:
        self._do("identify", None)
        components = [Component("data", self.volumes)] if self.volumes else []
        return WriterMetadata(self.name, components)

    def _do(self, event: str, job: JobView | None) -> Any:
        job_id = job.id if job else "-"
        self.journal.add(self.name, event, "begin", job_id)
        if event in self.script and self._first_time(event):
            getattr(self, f"_{self.script[event]}")()
        time.sleep(self.delays.get(event, 0.0))
        self.journal.add(self.name, event, "end", job_id)
        return self.returns.get(event)

    def _first_time(self, event: str) -> bool:
        marker = self.journal.path.with_name(f"{self.name}.{event}.fired")
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _raise(self) -> None:
        raise ValueError("scripted veto")

    def _hang(self) -> None:
        """Until the test is over; an isolated writer is killed long before."""
        release = self.journal.path.with_name("release")
        deadline = time.monotonic() + 60.0
        while not release.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _die(self) -> None:
        if self.isolated:
            os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(3)  # what a library that calls sys.exit does to a thread


def _event(name: str) -> Any:
    def method(self: ScriptedWriter, job: JobView) -> Any:
        return self._do(name, job)

    return method


for _name in EVENTS[1:]:
    setattr(ScriptedWriter, _name, _event(_name))
