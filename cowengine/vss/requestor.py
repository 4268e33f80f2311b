"""Requestor: asks for snapshot sets and backups of a store's volumes, with everybody concerned standing still.

Puts the parts together and holds no logic of the freeze itself (coordinator.py) nor of the stream (cowengine.backup).

Threads: any number of requestors and of jobs at once. Sets of disjoint volumes are made in parallel, overlapping ones
queue. Durable: a set is durable when its job is done, a backup is written and verified.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cowengine.errors import NotFoundError, OutOfRangeError
from cowengine.vss.backup_work import SNAPSHOT_SHARE, BackupWork, ProgressCallback, check_base
from cowengine.vss.coordinator import Coordinator, Limits
from cowengine.vss.discovery import load_writers
from cowengine.vss.job import Job
from cowengine.vss.provider import ProviderChoice, ProviderGroup
from cowengine.vss.reservation import Reservation, queue_of
from cowengine.vss.session import WriterSession
from cowengine.vss.writer import JobView, Writer, check_writers

if TYPE_CHECKING:
    from cowengine.backup import Backup
    from cowengine.store import SnapshotSet, Store

BACKUP_KINDS = ("full", "incremental", "differential", "copy")

# Where in a job each phase begins, as a fraction of a snapshot; a backup's snapshot is its first tenth.
_PHASES = (
    "queued",
    "start",
    "identify",
    "check",
    "prepare_backup",
    "begin_prepare",
    "prepare_snapshot",
    "end_prepare",
    "freeze",
    "pre_commit",
    "commit",
    "rehearse",
    "post_commit",
    "thaw",
    "post_snapshot",
    "pre_final_commit",
    "post_final_commit",
    "backup_shutdown",
)


class Requestor:
    """Asks for snapshots and backups of one store.

    `writers`: Writer objects, or names from the entry point group cowengine.writers. `provider`: None (the engine), a
    Provider, a name from cowengine.providers, or a dict of one per volume; a provider that is named is required.
    Limits in seconds: `freeze_limit` for each writer from freeze to thaw (a writer may ask for less), `hold_limit` for
    the provider's flush, hold and commit, `event_limit` for any other event, `abort_limit` for each abort and
    shutdown. `queue_limit`: how many jobs may wait for a volume that another job is snapshotting.
    """

    def __init__(
        self,
        store: Store,
        writers: Iterable[Writer | str] = (),
        provider: ProviderChoice = None,
        *,
        freeze_limit: float = 60.0,
        hold_limit: float = 10.0,
        event_limit: float = 600.0,
        abort_limit: float = 10.0,
        queue_limit: int = 16,
    ) -> None:
        for name, value in (
            ("freeze", freeze_limit),
            ("hold", hold_limit),
            ("event", event_limit),
            ("abort", abort_limit),
        ):
            if not 0 < value < float("inf"):
                raise OutOfRangeError(f"{name}_limit must be a positive number of seconds, not {value!r}")
        if queue_limit < 0:
            raise OutOfRangeError(f"queue_limit must be 0 or more, not {queue_limit!r}")
        self.store = store
        self.provider = provider
        self.queue_limit = queue_limit
        self._limits = Limits(freeze_limit, hold_limit, event_limit, abort_limit)
        self.writers: tuple[Writer, ...] = tuple(_load(writers, store))
        check_writers(self.writers)
        self._status: dict[str, dict[str, Any]] = {}

    # ---- snapshots -------------------------------------------------------------------------------------------------

    def snapshot(self, volumes: Sequence[str] | None = None, name: str | None = None) -> SnapshotSet:
        """Snapshot `volumes` (all of the store, unless given) at one instant, with the writers frozen for it.

        Durable on return. Raises WriterError, ProviderError, BusyError (too many wait for these volumes),
        NotFoundError, OutOfRangeError, or what the store raises; then there is no set and nobody is frozen.
        """
        return self.start_snapshot(volumes, name).wait()

    def start_snapshot(self, volumes: Sequence[str] | None = None, name: str | None = None) -> Job[SnapshotSet]:
        """The same, without waiting. Raises at once: BusyError, NotFoundError, OutOfRangeError."""
        job: Job[SnapshotSet] = Job("snapshot", self._volumes(volumes))
        coordinator = self._coordinator(job, name, 1.0)
        reservation = self._reserve(job)
        job.start(lambda: self._snapshot_job(coordinator, reservation))
        return job

    def rehearse(self, volumes: Sequence[str] | None = None) -> dict[str, Any]:
        """Prepare, freeze and thaw without making a set; the writers then get abort.

        Returns the freeze ledger with "predicted_freeze_seconds": how long a snapshot now would have frozen them.
        """
        job: Job[dict[str, Any]] = Job("rehearsal", self._volumes(volumes))
        coordinator = self._coordinator(job, None, 1.0)
        reservation = self._reserve(job)
        job.start(lambda: self._rehearse_job(coordinator, reservation))
        return job.wait()

    def writer_status(self) -> list[dict[str, Any]]:
        """Each writer with its level and limits, what it owns now, and how its last job in this requestor went."""
        coordinator = self._coordinator(Job("rehearsal", tuple(self.store.volumes())), None, 1.0)
        try:
            coordinator.identify_all()
        finally:
            coordinator.close()
        return [self._writer_status(coordinator, session) for session in coordinator.writers]

    # ---- backups ---------------------------------------------------------------------------------------------------

    def backup(
        self,
        target: Any,
        *,
        kind: str = "full",
        snapshot_set: SnapshotSet | str | None = None,
        volumes: Sequence[str] | None = None,
        chain: str = "default",
        progress: ProgressCallback | None = None,
    ) -> Backup:
        """Back up a snapshot set, a new one unless given, and verify what was written; then the writers complete.

        `target`: a folder, "-" or a binary file (see cowengine.backup); what went to a pipe cannot be verified here, so
        its writers get no backup_complete. `progress` is called with bytes done, bytes in
        all or None, and the phase. The set stays: the next incremental needs it. Raises FullBackupRequired before
        anybody is frozen if the chain has no base, BackupError, and what `snapshot` raises; then the target is as it
        was and a set made for this backup is deleted. Only if a writer fails at backup_complete, the backup stands.
        """
        return self.start_backup(
            target, kind=kind, snapshot_set=snapshot_set, volumes=volumes, chain=chain, progress=progress
        ).wait()

    def start_backup(
        self,
        target: Any,
        *,
        kind: str = "full",
        snapshot_set: SnapshotSet | str | None = None,
        volumes: Sequence[str] | None = None,
        chain: str = "default",
        progress: ProgressCallback | None = None,
    ) -> Job[Backup]:
        """The same, without waiting."""
        if kind not in BACKUP_KINDS:
            raise OutOfRangeError(f"kind must be one of {', '.join(BACKUP_KINDS)}, not {kind!r:.40}")
        check_base(target, kind, chain)
        given = self.store.get_snapshot_set(snapshot_set) if isinstance(snapshot_set, str) else snapshot_set
        chosen = self._volumes(volumes) if given is None else _volumes_of(given, volumes)
        job: Job[Backup] = Job(kind, chosen)
        coordinator = self._coordinator(job, None, SNAPSHOT_SHARE)
        work = BackupWork(job, coordinator, target, chain, progress)
        reservation = self._reserve(job) if given is None else None
        job.start(lambda: self._backup_job(coordinator, reservation, given, work))
        return job

    # ---- in the job's thread ---------------------------------------------------------------------------------------

    def _snapshot_job(self, coordinator: Coordinator, reservation: Reservation) -> Any:
        try:
            try:
                self._make_set(coordinator, reservation)
            except BaseException as error:
                coordinator.abort(error)
                raise
            finally:
                coordinator.shutdown()
            coordinator.keep_ledger(or_delete=True)
        finally:
            self._end(coordinator, reservation)
        return coordinator.snapshot_set

    def _rehearse_job(self, coordinator: Coordinator, reservation: Reservation) -> dict[str, Any]:
        ledger = coordinator.ledger
        try:
            coordinator.wait_for_turn()
            _stand_still(coordinator)
            coordinator.rehearse()
            coordinator.thaw()
            coordinator.abort_all()
        except BaseException as error:
            coordinator.abort(error)
            raise
        finally:
            coordinator.shutdown()
            self._end(coordinator, reservation)
        ledger.predicted_freeze_seconds = ledger.freeze_window_seconds
        return ledger.to_dict()

    def _backup_job(
        self, coordinator: Coordinator, reservation: Reservation | None, given: Any, work: BackupWork
    ) -> Any:
        try:
            try:
                if reservation is not None:
                    self._make_set(coordinator, reservation)
                else:
                    coordinator.use_set(given)
                backup = work.write_and_verify()
            except BaseException as error:
                coordinator.abort(error)
                raise
            try:
                if work.verified:
                    coordinator.backup_complete()
            except BaseException as error:
                coordinator.fail(error)
                raise
        finally:
            coordinator.shutdown()
            coordinator.keep_ledger(or_delete=False)
            self._end(coordinator, reservation)
        return backup

    def _make_set(self, coordinator: Coordinator, reservation: Reservation) -> None:
        coordinator.wait_for_turn()
        _stand_still(coordinator)
        coordinator.commit()
        coordinator.thaw()
        coordinator.finish_set()
        queue_of(self.store).leave(reservation)

    def _end(self, coordinator: Coordinator, reservation: Reservation | None) -> None:
        """What every job does last."""
        coordinator.close()
        if reservation is not None:
            queue_of(self.store).leave(reservation)
        for session in coordinator.writers:
            outcome = coordinator.ledger.outcome_of(session.name)
            error = coordinator.ledger.message_of(session.name)
            self._status[session.name] = {"last_job": coordinator.ledger.job, "outcome": outcome, "last_error": error}

    # ---- what a job is made of -------------------------------------------------------------------------------------

    def _volumes(self, volumes: Sequence[str] | None) -> tuple[str, ...]:
        known = self.store.volumes()
        if isinstance(volumes, str | bytes):
            raise OutOfRangeError("volumes must be a list of names, not one string")
        chosen = tuple(dict.fromkeys(known if volumes is None else volumes))
        for volume in chosen:
            if volume not in known:
                raise NotFoundError(f"the store has no volume {volume!r:.300}")
        if not chosen:
            raise OutOfRangeError("a snapshot set has at least one volume: name some, or create one in the store")
        return chosen

    def _reserve(self, job: Job[Any]) -> Reservation:
        return queue_of(self.store).enter(job.volumes, self.queue_limit, lambda: job.inbox.put("granted"))

    def _coordinator(self, job: Job[Any], name: str | None, share: float) -> Coordinator:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        view = JobView(job.id, job.kind, job.volumes, set_name=name if name is not None else f"{stamp}-{job.id[:8]}")
        group = ProviderGroup(self.provider, self.store, job.volumes)

        def on_phase(phase: str) -> None:
            known = _PHASES.index(phase) / len(_PHASES) if phase in _PHASES else 0.0
            job.set_progress(phase, share * known)

        coordinator = Coordinator(view, self.writers, group, self._limits, job.inbox, on_phase)
        job.report_ledger = coordinator.ledger.to_dict
        return coordinator

    def _writer_status(self, coordinator: Coordinator, session: WriterSession) -> dict[str, Any]:
        problem = coordinator.ledger.message_of(session.name)
        last = self._status.get(session.name, {"last_job": None, "outcome": None, "last_error": None})
        return {
            "name": session.name,
            "level": session.level,
            "required": session.required,
            "isolated": bool(session.writer.isolated),
            "freeze_limit": session.freeze_limit,
            "state": problem or "stable",
            "components": [component.to_dict() for component in session.components],
            **last,
        }


def _stand_still(coordinator: Coordinator) -> None:
    coordinator.identify()
    coordinator.check_provider()
    coordinator.prepare_backup()
    coordinator.prepare_snapshot()
    coordinator.freeze()


def _load(writers: Iterable[Writer | str], store: Any) -> Iterable[Writer]:
    if isinstance(writers, str | bytes):
        raise OutOfRangeError("writers must be a list, not one string")
    for writer in writers:
        if isinstance(writer, str):
            yield from load_writers(writer, store)
        else:
            yield writer


def _volumes_of(taken: Any, volumes: Sequence[str] | None) -> tuple[str, ...]:
    members = tuple(taken.snapshots)
    chosen = members if volumes is None else tuple(dict.fromkeys(volumes))
    for volume in chosen:
        if volume not in members:
            raise NotFoundError(f"snapshot set {taken.name!r} has no snapshot of volume {volume!r:.300}")
    return chosen
