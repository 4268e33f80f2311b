"""Writer: an application that owns data, and the view of a job that its events get.

A writer says what it owns (`identify`), gets its data in order before a snapshot (`prepare_snapshot`), stands still
for an instant (`freeze` ... `thaw`), and is told afterwards how it went. Raising from an event is the veto.

Order of events in one job: identify, prepare_backup, prepare_snapshot, freeze, thaw, post_snapshot, backup_complete
(backup jobs only, after the written backup was verified), backup_shutdown (always). abort may come at any time from
prepare_backup on, also twice.

Threads: all events of one job run one after another in one worker thread of the writer's own, or, with `isolated`, in
a process of its own. The exception is a writer that hangs: its abort and backup_shutdown come from another thread
(isolated: the process is killed and they run in a new one, made from the pickled writer).
"""

# ruff: noqa: B027 - events that do nothing unless overridden are the point
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cowengine.errors import OutOfRangeError
from cowengine.vss.documents import Component, WriterMetadata

Level = Literal["front-end", "back-end", "system"]

# Freeze order; thaw goes the other way: a front-end stops using its back-end before that back-end stands still.
LEVELS: tuple[Level, ...] = ("front-end", "back-end", "system")


@dataclass(frozen=True)
class SetSummary:
    """What an isolated writer sees of the snapshot set, which itself cannot leave its process."""

    id: str
    name: str
    created: Any
    volumes: tuple[str, ...]


@dataclass(frozen=True)
class JobView:
    """A job as a writer or provider sees it. Immutable; each event gets a new one.

    `kind` is "snapshot", "full", "incremental", "differential", "copy" or "rehearsal" (and "restore" for pre_restore
    and post_restore). `components` are this writer's. `deadline` is in time.monotonic seconds: the event must have
    returned by then, and for freeze the thaw as well. `snapshot_set` is None until the set exists.
    """

    id: str
    kind: str
    volumes: tuple[str, ...]
    components: tuple[Component, ...] = ()
    deadline: float = float("inf")
    snapshot_set: Any = None
    set_name: str = ""

    def portable(self) -> JobView:
        """The same with nothing in it that cannot be pickled."""
        whole = self.snapshot_set
        if whole is None or isinstance(whole, SetSummary):
            return self
        created = whole.created if isinstance(whole.created, int | float | str) else str(whole.created)
        return replace(self, snapshot_set=SetSummary(str(whole.id), whole.name, created, tuple(whole.snapshots)))


class Writer(ABC):
    """Base of all writers. Override `identify` and the events you need; the others do nothing.

    `name` is unique in a requestor. `freeze_limit` is in seconds, from the start of freeze to the end of thaw; the
    requestor's own limit applies as well. With `required = False` its failure leaves it out instead of failing the
    set. `isolated` writers must be picklable and defined in a module that can be imported.

    An event may return a dict of JSON values: up to post_snapshot it is kept as this writer's metadata in the backup.
    """

    name: str = ""
    level: Level = "front-end"
    required: bool = True
    freeze_limit: float = 60.0
    isolated: bool = False

    @abstractmethod
    def identify(self) -> WriterMetadata:
        """What this writer owns. Keep no state: it may be asked at any time, also without a job."""

    def prepare_backup(self, job: JobView) -> Mapping[str, Any] | None:
        """A job has begun that wants this writer's data."""

    def prepare_snapshot(self, job: JobView) -> Mapping[str, Any] | None:
        """Do the slow work (a checkpoint) here, so that freeze is short. Nothing stands still yet."""

    def freeze(self, job: JobView) -> Mapping[str, Any] | None:
        """Stop changing the data and return. It stays so until thaw, at the latest until job.deadline."""

    def thaw(self, job: JobView) -> Mapping[str, Any] | None:
        """Go on. Comes once for every freeze that returned, also in a job that fails."""

    def post_snapshot(self, job: JobView) -> Mapping[str, Any] | None:
        """The set exists (job.snapshot_set) and may be looked at."""

    def backup_complete(self, job: JobView) -> Mapping[str, Any] | None:
        """The backup is written and verified: logs that it covers may be truncated, if job.kind calls for it."""

    def abort(self, job: JobView) -> Mapping[str, Any] | None:
        """The job failed. Undo what is left; go on if frozen. Must be idempotent and may come at any time."""

    def backup_shutdown(self, job: JobView) -> Mapping[str, Any] | None:
        """The job is over, well or badly. Always the last event."""

    def pre_restore(self, job: JobView) -> Mapping[str, Any] | None:
        """Let go of the data: it is about to be replaced."""

    def post_restore(self, job: JobView) -> Mapping[str, Any] | None:
        """The data is back: recover and check it."""


def check_writers(writers: Sequence[Writer]) -> None:
    """Raise OutOfRangeError if a writer's attributes cannot be, or two share a name."""
    seen: set[str] = set()
    for writer in writers:
        if not isinstance(writer, Writer):
            raise OutOfRangeError(f"{type(writer).__name__} is no Writer: derive it from cowengine.Writer")
        kind = type(writer).__name__
        if not isinstance(writer.name, str) or not 0 < len(writer.name) <= 255 or not writer.name.isprintable():
            raise OutOfRangeError(f"{kind}.name must be 1 to 255 printable characters, not {writer.name!r:.80}")
        if writer.name in seen:
            raise OutOfRangeError(f"two writers are named {writer.name!r}: give each its own name")
        if writer.level not in LEVELS:
            raise OutOfRangeError(f"level of writer {writer.name!r} must be one of {LEVELS}, not {writer.level!r}")
        if not 0 < writer.freeze_limit < float("inf"):
            raise OutOfRangeError(f"freeze_limit of writer {writer.name!r} must be a positive number of seconds")
        seen.add(writer.name)
