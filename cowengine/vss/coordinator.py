"""Coordinator: the state machine of one job. Moves no bytes.

    identify                                      writers
    check (is_volume_supported)                   provider
    prepare_backup                                writers
    begin_prepare                                 provider
    prepare_snapshot                              writers: the slow work
    end_prepare                                   provider
    freeze                                        front-end, back-end, system; in parallel within a level
    pre_commit, commit (hold, commit, release), post_commit      provider
    thaw                                          system, back-end, front-end
    post_snapshot                                 writers
    pre_final_commit, post_final_commit           provider
    backup_complete                               writers; backup jobs, after the written backup was verified
    backup_shutdown                               writers, always

Rules
    V1  Whatever fails, every writer whose freeze returned is thawed, and every writer that was asked to prepare_backup
        gets abort. Nobody waits for one that hangs: a thaw level gets at most half of what the others have left.
    V2  Time is this module's own: nothing outlasts its deadline, whoever hangs. A writer stands still no longer than
        its freeze limit, from the moment freeze was asked for until thaw is.
    V3  A set that was committed after the hold limit or a required writer's freeze limit is deleted again.
    V4  An optional writer that fails is left out, and may use at most half of what is left of the others' windows.

Threads: one thread runs a job's coordinator. Workers and `Job.cancel` speak to it through its inbox alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

from cowengine.errors import CancelledError, CowEngineError, WriterError
from cowengine.vss.documents import WriterMetadata
from cowengine.vss.ledger import FreezeLedger, Outcome
from cowengine.vss.provider import ProviderGroup
from cowengine.vss.session import ProviderSession, Session, WriterSession
from cowengine.vss.worker import Call
from cowengine.vss.writer import LEVELS, JobView, Writer

_START_SECONDS = 30.0  # for the process of an isolated writer
_NOTES_BYTES_MAX = 1 << 20  # what a writer's events may return altogether, as JSON
_NOTES_BYTES_ALL = 8 << 20  # and those of all writers of one job: a document holds no more than twice of that

Message = Call | Literal["granted", "cancel"]


@dataclass(frozen=True)
class Limits:
    """Seconds. `event` bounds every event outside the freeze window, `abort` each abort and backup_shutdown."""

    freeze: float = 60.0
    hold: float = 10.0
    event: float = 600.0
    abort: float = 10.0


class Coordinator:
    """One job. The steps are called in order by `requestor`; each raises what makes the job fail."""

    def __init__(
        self,
        job: JobView,
        writers: Sequence[Writer],
        group: ProviderGroup,
        limits: Limits,
        inbox: SimpleQueue[Message],
        on_phase: Callable[[str], None],
    ) -> None:
        self.ledger = FreezeLedger(job.id, job.kind, job.volumes)
        self.snapshot_set: Any = None
        self._job = job
        self._limits = limits
        self._inbox = inbox
        self._on_phase = on_phase
        self.writers = [WriterSession(writer, limits.freeze, inbox.put) for writer in writers]
        self._provider = ProviderSession(group, inbox.put)
        self._provider_began = False
        self._pending: set[Call] = set()
        self._notes_bytes: dict[str, int] = {}  # by writer
        self._cancelled = False
        self._granted = False
        self._failure: CowEngineError | None = None
        self._freeze_began: float | None = None
        self._freeze_ended = 0.0
        self._commit_began = False

    # ---- the steps -------------------------------------------------------------------------------------------------

    def wait_for_turn(self) -> None:
        """Until the volumes are reserved for this job."""
        self._on_phase("queued")
        while not self._granted:
            self._step(float("inf"))
            self._raise_failure()

    def identify(self) -> None:
        """Who takes part: writers own what lies on the set's volumes, or on no volume at all."""
        self._tell("start", _START_SECONDS, [session for session in self.writers if session.writer.isolated])
        self._tell("identify", self._limits.event)

    def identify_all(self) -> None:
        """The same, from every writer, whoever fails; nothing else may follow but close."""
        isolated = [session for session in self.writers if session.writer.isolated]
        self._gather(
            [self._post(session, "start", time.monotonic() + _START_SECONDS) for session in isolated], patient=True
        )
        deadline = time.monotonic() + self._limits.event
        self._gather([self._post(session, "identify", deadline) for session in self._included()], patient=True)

    def prepare_backup(self) -> None:
        """Tell the writers that a job has begun; from here on they are owed an abort."""
        for session in self._included():
            session.prepared = True
        self._tell("prepare_backup", self._limits.event)

    def check_provider(self) -> None:
        """Refuse the set before anybody was disturbed, if a provider refuses a volume of it."""
        self._provide("check", self._limits.event)

    def prepare_snapshot(self) -> None:
        """The slow work, before anybody stands still."""
        self._provider_began = True
        self._provide("begin_prepare", self._limits.event)
        self._tell("prepare_snapshot", self._limits.event)
        self._provide("end_prepare", self._limits.event)

    def freeze(self) -> None:
        """Level by level; returns with every included writer standing still."""
        self._on_phase("freeze")
        for level in LEVELS:
            sessions = [session for session in self._included() if session.level == level]
            now = time.monotonic()
            self._freeze_began = self._freeze_began or (now if sessions else None)
            for session in sessions:
                session.freeze_deadline = now + session.freeze_limit
            self._gather([self._post_freeze(session) for session in sessions])

    def commit(self) -> None:
        """Flush, hold, commit, release, inside the writers' window and the hold limit (V3)."""
        self._provide("pre_commit", self._limits.event)
        self._commit_began = True
        call = self._provide("commit", self._limits.hold)
        self._commit_began = False
        self.snapshot_set = call.value
        self.ledger.hold_window_seconds = call.ended - call.started
        self._provide("post_commit", self._limits.event)

    def rehearse(self) -> None:
        """In place of commit: as long as one takes, without a set."""
        self._provide("rehearse", self._limits.hold)

    def thaw(self) -> None:
        """In reverse order; returns when nobody stands still any more."""
        self._on_phase("thaw")
        self._thaw_levels(None)
        self._raise_failure()

    def finish_set(self) -> None:
        """The writers see the set, and the provider makes it final."""
        self._tell("post_snapshot", self._limits.event)
        self._provide("pre_final_commit", self._limits.event)
        self._provide("post_final_commit", self._limits.event)

    def keep_ledger(self, *, or_delete: bool) -> None:
        """Keep the ledger with the set. If that fails: delete the set and raise, or only say so in `ledger`."""
        call = self._post(self._provider, "keep_ledger", time.monotonic() + self._limits.event, self.ledger.to_dict())
        self._gather([call], patient=True)
        if call.outcome != "ok" and or_delete:
            error = self._provider.failure(call)
            self.fail(error)
            self._gather([self._post(self._provider, "abort", time.monotonic() + self._limits.abort)], patient=True)
            raise error

    def backup_complete(self) -> None:
        """The backup is written and verified: the writers may truncate their logs. No cancel any more."""
        self._on_phase("backup_complete")
        deadline = time.monotonic() + self._limits.event
        self._gather([self._post(session, "backup_complete", deadline) for session in self._included()], patient=True)
        if self._failure is not None:
            raise self._failure

    def abort(self, error: BaseException) -> None:
        """Undo everything (V1): thaw, abort, and no set. Never raises; what fails is in the ledger."""
        self._on_phase("abort")
        self.fail(error)
        deadline = time.monotonic() + self._limits.abort
        if self._commit_began:
            self._release_elsewhere()
        self._thaw_levels(deadline)
        calls = [self._post_abort(session) for session in self.writers if session.prepared and session.included]
        if self._provider_began:
            calls.append(self._post(self._provider, "abort", deadline))
        self._gather(calls, patient=True)

    def fail(self, error: BaseException) -> None:
        """Note in the ledger why the job failed."""
        self.ledger.outcome = "cancelled" if isinstance(error, CancelledError) else "failed"
        self.ledger.error = f"{type(error).__name__}: {error}"

    def abort_all(self) -> None:
        """After a rehearsal that went well: there will be no set."""
        calls: list[Call] = [self._post_abort(session) for session in self._included() if session.prepared]
        calls.append(self._post(self._provider, "abort", time.monotonic() + self._limits.abort))
        self._gather(calls, patient=True)

    def use_set(self, snapshot_set: Any) -> None:
        """Go on with a set that exists: the writers whose data it holds take part in the backup, and nobody freezes."""
        self.snapshot_set = snapshot_set
        self.identify()
        for session in self._included():  # what they wrote down when it was taken
            session.notes = dict((snapshot_set.ledger or {}).get("writer_notes", {}).get(session.name, {}))
        self.prepare_backup()

    def shutdown(self) -> None:
        """backup_shutdown to everybody who was asked to prepare. Never raises."""
        self._on_phase("backup_shutdown")
        self._gather(list(self._pending), patient=True)
        limit = time.monotonic() + self._limits.abort
        prepared = [session for session in self.writers if session.prepared]
        calls = [
            self._post(session, "backup_shutdown", limit + self._new_process_seconds(session)) for session in prepared
        ]
        self._gather(calls, patient=True)
        if self.ledger.outcome == "running":
            self.ledger.outcome = "ok"

    def close(self) -> None:
        """End all workers, also those of isolated writers. Waits for nobody."""
        sessions: list[Session] = [*self.writers, self._provider]
        for session in sessions:
            session.worker.close()

    # ---- asking ----------------------------------------------------------------------------------------------------

    def _included(self) -> list[WriterSession]:
        return [session for session in self.writers if session.included]

    def _tell(self, event: str, limit: float, sessions: Iterable[WriterSession] | None = None) -> list[Call]:
        """Send `event` to the writers, in parallel, and wait for all of them."""
        self._on_phase(event)
        deadline = time.monotonic() + limit
        calls = [
            self._post(session, event, deadline) for session in (self._included() if sessions is None else sessions)
        ]
        self._gather(calls)
        return calls

    def _provide(self, event: str, limit: float, argument: Any = None) -> Call:
        """Ask the providers, inside the window if writers stand still (V2)."""
        self._on_phase(event)
        deadline = min(time.monotonic() + limit, self._window_end(self.writers))
        call = self._post(self._provider, event, deadline, argument)
        self._gather([call])
        return call

    def _post(self, session: Session, event: str, deadline: float, argument: Any = None) -> Call:
        view = argument
        if argument is None and event not in ("start", "identify"):
            view = self._view(session, deadline)
        call = Call(session, event, view, time.monotonic(), deadline)
        self._pending.add(call)
        if event in ("start", "identify") or session.overrides(event):
            session.worker.post(call)
            return call
        call.ended, call.finished = call.started, True
        if event in ("freeze", "thaw"):
            session.worker.frozen = event == "freeze"
        self._settle(call)
        return call

    def _view(self, session: Session, deadline: float) -> JobView:
        components = session.components if isinstance(session, WriterSession) else ()
        job = self._job
        return JobView(job.id, job.kind, job.volumes, components, deadline, self.snapshot_set, job.set_name)

    def _post_abort(self, session: WriterSession) -> Call:
        session.included = False
        deadline = time.monotonic() + self._limits.abort + self._new_process_seconds(session)
        return self._post(session, "abort", deadline)

    @staticmethod
    def _new_process_seconds(session: WriterSession) -> float:
        return _START_SECONDS if session.starting else 0.0

    def _choose(self, call: Call) -> None:
        """Take the writer in, leave it out, or veto: by the volumes that its components name."""
        session: WriterSession = call.actor
        try:
            if not isinstance(call.value, WriterMetadata):
                raise WriterError(f"identify returned {type(call.value).__name__}, not WriterMetadata")
            call.value.to_json()
            missing = set(call.value.volumes) - set(self._job.volumes)
            if missing and len(missing) < len(call.value.volumes):
                raise WriterError(f"it also needs the volumes {sorted(missing)}: put them into the set as well")
        except Exception as error:
            call.outcome, call.error = "veto", error
            return
        session.metadata = call.value
        session.included = not missing

    # ---- waiting and judging ---------------------------------------------------------------------------------------

    def _gather(self, calls: Sequence[Call], *, patient: bool = False, until: float = float("inf")) -> None:
        """Until all `calls` are settled, or `until`. Unless patient, raise as soon as the job has failed."""
        while True:
            if not patient:
                self._raise_failure()
            if all(call.settled for call in calls) or time.monotonic() >= until:
                return
            self._step(until)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._cancelled:
            raise CancelledError("the job was cancelled; nobody is frozen and no set was made")

    def _step(self, until: float) -> None:
        """Take one message, or wait for the next deadline; then give up on what is past its own."""
        wake = min([until, *(call.deadline for call in self._pending), *self._optional_deadlines()])
        try:
            wait = max(0.0, wake - time.monotonic())
            message = self._inbox.get(timeout=None if wait == float("inf") else min(wait, 3600.0))
        except Empty:
            message = None
        if message == "cancel":
            self._cancelled = True
        elif message == "granted":
            self._granted = True
        elif message is not None and message in self._pending:
            self._settle(message)
        self._expire(time.monotonic())

    def _expire(self, now: float) -> None:
        for call in [call for call in self._pending if call.deadline <= now]:
            if call in self._pending:  # an earlier one of the same worker may have taken it along
                call.outcome, call.ended = "timeout", now
                self._settle(call)
        for session in self._included():
            if not session.required and session.freeze_deadline is not None and session.freeze_deadline <= now:
                self._leave_out_frozen(session, now)

    def _optional_deadlines(self) -> list[float]:
        deadlines = (session.freeze_deadline for session in self._included() if not session.required)
        return [deadline for deadline in deadlines if deadline is not None]

    def _settle(self, call: Call) -> None:
        """Record a call that finished or ran out of time, and draw the consequences."""
        self._pending.discard(call)
        call.settled = True
        call.actor.starting = False
        if call.outcome == "ok" and call.ended > call.deadline:
            call.outcome = "timeout"
        if call.outcome == "ok" and call.event == "identify":
            self._choose(call)
        elif call.outcome == "ok" and call.actor.role == "writer":
            self._note(call)
        self._record(call)
        if call.event == "thaw":
            self._freeze_ended = max(self._freeze_ended, call.ended)
        if call.outcome in ("ok", "skipped"):
            return
        if call.actor.role == "provider":
            self._provider_failed(call)
        else:
            self._writer_failed(call.actor, call)

    def _record(self, call: Call) -> None:
        """Into the ledger; not the process start of an isolated writer, if it went well."""
        if call.event in ("keep_ledger", "start") and call.outcome == "ok":
            return
        session: Session = call.actor
        message = None if call.outcome in ("ok", "skipped") else str(session.failure(call))
        outcome: Outcome = call.outcome
        self.ledger.add(
            session.role,
            session.name,
            call.event,
            outcome,
            started=min(call.started, call.ended),
            ended=call.ended,
            limit=round(call.limit, 3),
            level=session.level,
            required=session.required,
            message=message,
        )

    def _note(self, call: Call) -> None:
        """Keep what the event returned; what JSON cannot hold is a veto."""
        if not isinstance(call.value, dict) or not call.value:
            return
        notes = {**call.actor.notes, **call.value}
        try:
            size = len(json.dumps(notes, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            call.outcome, call.error = "veto", error
            return
        if size > _NOTES_BYTES_MAX:
            call.outcome, call.error = (
                "veto",
                WriterError(f"its events returned {size} bytes; {_NOTES_BYTES_MAX} are kept"),
            )
            return
        if size + sum(self._notes_bytes.values()) - self._notes_bytes.get(call.actor.name, 0) > _NOTES_BYTES_ALL:
            call.outcome = "veto"
            call.error = WriterError(f"the events of all writers returned more than {_NOTES_BYTES_ALL} bytes")
            return
        self._notes_bytes[call.actor.name] = size
        call.actor.notes = notes
        self.ledger.notes[call.actor.name] = notes

    def _provider_failed(self, call: Call) -> None:
        self._failure = self._failure or self._provider.failure(call)
        if call.outcome == "died":
            self._provider.replace_worker()

    def _writer_failed(self, session: WriterSession, call: Call) -> None:
        """Give up on the writer; the job as well, if it is required. Abort reaches it in any case (V1)."""
        lost = call.outcome == "died" or (call.outcome == "timeout" and session.worker.abandon())
        if lost:
            for other in [other for other in self._pending if other.actor is session]:
                self._pending.discard(other)
                other.settled, other.outcome = True, "skipped"
            session.replace_worker()
        if call.event in ("abort", "backup_shutdown"):
            return
        if session.required and session.included:
            self._failure = self._failure or session.failure(call)
        session.freeze_deadline = None
        if session.prepared and (session.included or lost):
            if session.worker.frozen:
                self._post(session, "thaw", time.monotonic() + self._limits.abort)
            self._post_abort(session)
        session.included = False

    # ---- the freeze window -----------------------------------------------------------------------------------------

    @staticmethod
    def _window_end(sessions: Iterable[WriterSession]) -> float:
        """The earliest deadline of the required writers among `sessions` that stand still (or are about to)."""
        deadlines = (session.freeze_deadline for session in sessions if session.required)
        return min((deadline for deadline in deadlines if deadline is not None), default=float("inf"))

    def _post_freeze(self, session: WriterSession) -> Call:
        deadline = self._freeze_call_deadline(session)
        end = min(self._window_end(self.writers), session.freeze_deadline or deadline)
        return self._post(session, "freeze", deadline, self._view(session, end))

    def _freeze_call_deadline(self, session: WriterSession) -> float:
        """Until when freeze must return: within everybody's window, for an optional writer within half of it (V4)."""
        assert session.freeze_deadline is not None
        others = self._window_end(other for other in self.writers if other is not session)
        if session.required or others == float("inf"):
            return min(session.freeze_deadline, others)
        now = time.monotonic()
        return min(session.freeze_deadline, now + (others - now) / 2)

    def _thaw_levels(self, deadline: float | None) -> None:
        """Thaw everybody who was asked to freeze, system first; each call until `deadline` or its own freeze limit."""
        calls: list[Call] = []
        for level in reversed(LEVELS):
            frozen = [session for session in self._included() if session.freeze_deadline is not None]
            level_calls = [self._post_thaw(session, deadline) for session in frozen if session.level == level]
            now = time.monotonic()
            rest = [session.freeze_deadline for session in frozen if session.freeze_deadline is not None]
            until = now + max(0.0, min(rest) - now) / 2 if rest else float("inf")
            calls += level_calls
            self._gather(level_calls, patient=True, until=until)
        self._gather(calls, patient=True)
        if self._freeze_began is not None and self._freeze_ended:
            self.ledger.freeze_window_seconds = self._freeze_ended - self._freeze_began

    def _post_thaw(self, session: WriterSession, deadline: float | None) -> Call:
        limit = session.freeze_deadline if deadline is None else deadline
        assert limit is not None
        session.freeze_deadline = None
        return self._post(session, "thaw", limit)

    def _leave_out_frozen(self, session: WriterSession, now: float) -> None:
        """An optional writer's own window is over while others still need theirs."""
        call = Call(session, "freeze", None, now, now, ended=now, outcome="timeout")
        self._record(call)
        session.freeze_deadline = None
        self._post(session, "thaw", now + self._limits.abort)
        self._post_abort(session)

    def _release_elsewhere(self) -> None:
        """A provider hangs in commit: end its hold from another thread."""
        helper = ProviderSession(self._provider.group, self._inbox.put)
        self._gather([self._post(helper, "release", time.monotonic() + self._limits.abort)], patient=True, until=0.0)
        helper.worker.close()
