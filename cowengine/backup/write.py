"""Writes a backup of snapshots: to a chain of a target directory, or as one stream to a pipe.

Reads snapshots only and freezes nobody: the requestor has made the snapshots, and tells writers how it ended.
Format: docs/backup-format.md.

Threads   Any number of backups at once, one per chain. Each reads and compresses in a pool.
Durable   A backup in a directory is durable on return and absent after any failure, cancel or crash before.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

from cowengine.backup import layout
from cowengine.backup.batch import reader_of
from cowengine.backup.codec import checked_level, worker_pool
from cowengine.backup.manifest import Backup
from cowengine.backup.names import checked_backup_id, checked_chain, checked_name
from cowengine.backup.pieces import SnapshotLike, allocated, batches, changed
from cowengine.backup.pipe import PipeSink, is_pipe
from cowengine.backup.progress import Cancel, Meter, Progress
from cowengine.backup.stream import StreamHeader, VolumeEntry
from cowengine.backup.stream_reader import Source
from cowengine.backup.stream_writer import Sink, StreamWriter
from cowengine.backup.target import ChainLock, NewBackup, Target
from cowengine.backup.verify import read_through
from cowengine.core.iotable import IOTable
from cowengine.errors import BackupError, FullBackupRequired, NotFoundError, OutOfRangeError


def write_backup(
    target: Any,
    snapshots: Mapping[str, SnapshotLike],
    *,
    kind: str,
    chain: str = "default",
    base: Backup | str | None = None,
    documents: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    compression: str = "zstd",
    verify: bool = False,
    io: IOTable | None = None,
) -> Backup:
    """Back up `snapshots` (by volume name) and return the finished, durable Backup.

    `kind`: "full", "copy" (a full nobody stands on), "incremental" (since the chain's last backup but copies) or
    "differential" (since its last full). `base` names another base of the chain. A volume that the base lacks is backed
    up whole. `target`: a directory, or "-" or a binary file object for the bare stream; then `base` is the Backup that
    an earlier call returned. `documents` is one JSON object; its list "components" is repeated in the manifest.
    `compression`: "zstd", "zstd:1" to "zstd:19" or "none". With `verify` the whole backup is read back from the disk
    and checked before it gets its name; not for a pipe.

    Raises FullBackupRequired if there is no base or its snapshot is gone, BusyError if another backup runs in the
    chain, NoSpaceError, CancelledError, OutOfRangeError for what cannot be.
    """
    checked_chain(chain)
    checked_level(compression)
    if kind not in layout.KIND_NUMBERS:
        raise OutOfRangeError(f"kind is one of {', '.join(layout.KIND_NUMBERS)}, not {kind!r:.40}")
    if not 1 <= len(snapshots) <= layout.VOLUMES_MAX:
        raise OutOfRangeError(f"a backup holds 1 to {layout.VOLUMES_MAX} volumes, not {len(snapshots)}")
    job = _Job(snapshots, kind, chain, documents, progress, cancel, compression)
    if is_pipe(target, method="write"):
        if verify:
            raise OutOfRangeError("what went into a pipe can only be verified where it comes out")
        if isinstance(base, str):
            raise OutOfRangeError("for a pipe, give the Backup that an earlier call returned as base")
        pipe = PipeSink(target)
        backup = job.run(pipe, _checked_base(base, kind, chain), (base.number if base else 0) + 1)
        pipe.finish()
        return backup
    folder = Target(target, io)
    with ChainLock(folder, chain) as lock:
        found = _chosen_base(folder, kind, chain, base)
        number = folder.next_number(chain)
        with NewBackup(folder, lock, job.backup_id) as new:
            backup = job.run(new, found, number)
            if verify:
                job.verify(new.written(), backup)
            new.publish(backup)
    return backup


def last_backup(target: str | os.PathLike[str], chain: str = "default", io: IOTable | None = None) -> Backup | None:
    """The backup that the next incremental of the chain stands on, or None."""
    try:
        return _latest(Target(target, io).backups(chain), ("full", "incremental", "differential"))
    except NotFoundError:
        return None


def _chosen_base(target: Target, kind: str, chain: str, base: Backup | str | None) -> Backup | None:
    if kind in ("full", "copy"):
        if base is not None:
            raise OutOfRangeError(f"a {kind} backup has no base")
        return None
    if base is not None:
        backup_id = checked_backup_id(base.id if isinstance(base, Backup) else base)
        found = target.find(backup_id)
        if isinstance(base, Backup) and base.root != found.root:
            raise BackupError(f"backup {backup_id} in the target is not the one given as base")
    else:
        kinds = ("full",) if kind == "differential" else ("full", "incremental", "differential")
        latest = _latest(target.backups(chain), kinds)
        if latest is None:
            raise FullBackupRequired(f"chain {chain!r} has no full backup yet: take one first")
        found = latest
    return _checked_base(found, kind, chain)


def _latest(backups: list[Backup], kinds: tuple[str, ...]) -> Backup | None:
    return max((backup for backup in backups if backup.kind in kinds), key=lambda backup: backup.number, default=None)


def _checked_base(base: Backup | None, kind: str, chain: str) -> Backup | None:
    if kind in ("full", "copy"):
        if base is not None:
            raise OutOfRangeError(f"a {kind} backup has no base")
        return None
    if base is None:
        raise FullBackupRequired(f"an {kind} backup needs a base: take a full backup first")
    if base.chain != chain:
        raise OutOfRangeError(f"base {base.id} belongs to chain {base.chain!r}, not {chain!r}")
    if base.kind == "copy" or (kind == "differential" and base.kind != "full"):
        raise OutOfRangeError(f"a {kind} backup cannot stand on {base.id}, a {base.kind}")
    return base


class _Job:
    """One backup on its way: what was asked for, and the run that writes it into a sink."""

    def __init__(
        self,
        snapshots: Mapping[str, SnapshotLike],
        kind: str,
        chain: str,
        documents: Mapping[str, Any] | None,
        progress: Progress | None,
        cancel: Cancel | None,
        compression: str,
    ) -> None:
        self.backup_id = str(uuid.uuid4())
        self._snapshots = list(snapshots.items())
        self._kind = kind
        self._chain = chain
        self._documents = documents
        self._progress = progress
        self._cancel = cancel
        self._compression = compression

    def run(self, sink: Sink, base: Backup | None, number: int) -> Backup:
        header = StreamHeader(
            backup_id=self.backup_id,
            chain=self._chain,
            kind=self._kind,
            number=number,
            base_id=base.id if base else None,
            base_root=base.root if base else None,
            created_ns=time.time_ns(),
            volumes=tuple(_entry(name, snapshot, base) for name, snapshot in self._snapshots),
        )
        jobs = list(zip(header.volumes, (snapshot for _, snapshot in self._snapshots), strict=True))
        total = sum(_bytes_to_read(entry, snapshot) for entry, snapshot in jobs)
        meter = Meter("backup", total, self._progress, self._cancel)
        with worker_pool() as pool:
            writer = StreamWriter(sink, header, pool, compression=self._compression)
            writer.documents(self._documents)
            for index, (entry, snapshot) in enumerate(jobs):
                read_many = reader_of(snapshot)
                for pieces in batches(snapshot, entry.from_id):
                    writer.batch(index, read_many, pieces, holes=entry.mode == "changes")
                    meter.advance(int(pieces.extents[:, 1].sum()))
            totals = writer.finish()
        meter.finish()
        components = (self._documents or {}).get("components")
        return Backup(header, totals, tuple(components) if isinstance(components, list) else ())

    def verify(self, source: Source, backup: Backup) -> None:
        """Read back what was written. Raises BackupError."""
        with worker_pool() as pool:
            meter = Meter("verify", backup.bytes_written, self._progress, self._cancel)
            read_through(source, pool, backup, meter)
            meter.finish()


def _entry(name: str, snapshot: SnapshotLike, base: Backup | None) -> VolumeEntry:
    checked_name(name, "volume")
    volume_uuid = volume_uuid_of(snapshot.change_id)
    before = base.header.volume(name) if base else None
    if before is not None:
        _check_base_volume(name, volume_uuid, snapshot, before)
    return VolumeEntry(
        name=name,
        uuid=volume_uuid,
        size=snapshot.size,
        block_size=snapshot.block_size,
        mode="changes" if before else "whole",
        from_id=before.to_id if before else None,
        to_id=snapshot.change_id,
    )


def _check_base_volume(name: str, volume_uuid: str, snapshot: SnapshotLike, before: VolumeEntry) -> None:
    if before.uuid != volume_uuid:
        raise FullBackupRequired(
            f"volume {name!r} is not the one in the base backup (its id is {volume_uuid}, there {before.uuid}): "
            "take a full backup"
        )
    try:
        snapshot.changed_extents(before.to_id, 0, snapshot.size, 1)
    except NotFoundError as error:
        raise FullBackupRequired(
            f"volume {name!r} no longer has the snapshot that the base backup was made of ({before.to_id}): "
            "take a full backup"
        ) from error


def volume_uuid_of(change_id: str) -> str:
    """The volume's uuid in a change id. Raises OutOfRangeError if it is none."""
    try:
        return str(uuid.UUID(change_id.partition("/")[0]))
    except ValueError:
        raise OutOfRangeError(f"{change_id!r:.80} is no change id of a snapshot") from None


def _bytes_to_read(entry: VolumeEntry, snapshot: SnapshotLike) -> int:
    pages = allocated(snapshot) if entry.from_id is None else changed(snapshot, entry.from_id)
    return sum(int((page.end - page.begin).sum()) for page in pages)
