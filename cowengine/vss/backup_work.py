"""The part of a backup job that moves bytes: write the set, read the written backup back, and only then believe it.

All bytes go through cowengine.backup. Freezes nobody and tells no writer anything.

Threads: the job's thread. Durable: the backup is, when `write_and_verify` returns; else the target is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cowengine.errors import FullBackupRequired
from cowengine.vss.coordinator import Coordinator
from cowengine.vss.documents import BackupComponents, WriterRecord
from cowengine.vss.job import Job

if TYPE_CHECKING:
    from cowengine.backup import Backup

# Of a backup's progress.
SNAPSHOT_SHARE, WRITE_SHARE, VERIFY_SHARE = 0.1, 0.6, 0.3

ProgressCallback = Callable[[int, "int | None", str], None]


class BackupWork:
    """One backup of one job's snapshot set."""

    def __init__(
        self, job: Job[Any], coordinator: Coordinator, target: Any, chain: str, progress: ProgressCallback | None
    ) -> None:
        self._job = job
        self._coordinator = coordinator
        self._target = target
        self._chain = chain
        self._progress = progress
        self.verified = False

    def write_and_verify(self) -> Backup:
        """Write; read everything back before the backup gets its name. Raises BackupError, CancelledError and the like.

        What went to a pipe cannot be read back here: it stays unverified, and whoever reads the pipe verifies it.
        """
        from cowengine.backup import write_backup

        snapshots = self._coordinator.snapshot_set.snapshots
        self.verified = is_folder(self._target)
        return write_backup(
            self._target,
            {name: snapshots[name] for name in self._job.volumes},
            kind=self._job.kind,
            chain=self._chain,
            documents=documents(self._job, self._coordinator),
            progress=self._report,
            cancel=self._job.cancel_event,
            verify=self.verified,
        )

    def _report(self, done: int, total: int | None, phase: str) -> None:
        begin, share = (SNAPSHOT_SHARE, WRITE_SHARE) if phase == "backup" else (1 - VERIFY_SHARE, VERIFY_SHARE)
        self._job.set_progress(phase, begin + share * (done / total if total else 0.0))
        if self._progress is not None:
            self._progress(done, total, phase)


def documents(job: Job[Any], coordinator: Coordinator) -> dict[str, Any]:
    """What travels with a backup: the writers' metadata, the backup components, and the freeze ledger so far."""
    taken = coordinator.snapshot_set
    concerned = [session for session in coordinator.writers if session.included or session.prepared]
    records = tuple(
        WriterRecord(
            session.name,
            session.required,
            coordinator.ledger.outcome_of(session.name),
            tuple(component.name for component in session.components),
            session.notes,
        )
        for session in concerned
    )
    described = {"id": str(taken.id), "name": taken.name, "created": str(taken.created)}
    components = BackupComponents(job.id, job.kind, job.volumes, described, records)
    included = [session for session in concerned if session.included]
    return {
        "components": [
            {"writer": session.name, **component.to_dict()} for session in included for component in session.components
        ],
        "writer_metadata": [session.metadata.to_dict() for session in included],
        "backup_components": components.to_dict(),
        "freeze_ledger": taken.ledger or coordinator.ledger.to_dict(),
    }


def check_base(target: Any, kind: str, chain: str) -> None:
    """Refuse, before anybody is frozen, a backup that would find no base: raises FullBackupRequired."""
    if kind not in ("incremental", "differential"):
        return
    if not is_folder(target):
        raise FullBackupRequired(f"a pipe holds no chain, so no base for kind {kind!r}: use full or copy")
    from cowengine.backup import last_backup

    if last_backup(target, chain) is None:
        raise FullBackupRequired(f"chain {chain!r} has no backup yet: take a full one first")


def is_folder(target: Any) -> bool:
    """Whether `target` is a directory of chains, and no pipe."""
    return target != "-" and not hasattr(target, "write")
