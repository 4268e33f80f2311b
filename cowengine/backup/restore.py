"""Restore: any backup of a chain, or the streams of a pipe, into new volumes of a store or raw files in a folder.

Needs nothing of the store that the backup was made from. Every checksum is verified on the way, and nothing gets its
name before the last of them was.

    documents -> pre_restore of each writer -> data, under temporary names -> names -> post_restore of each writer

If any step fails, what was restored is removed and each writer whose pre_restore was called gets `abort`.

Threads   Any number at once into different volumes.
Durable   What is restored is durable on return.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any

from cowengine.backup.codec import worker_pool
from cowengine.backup.destination import Place, Restoring, place_of
from cowengine.backup.manifest import Backup
from cowengine.backup.pipe import is_pipe, pipe_source
from cowengine.backup.progress import Cancel, Meter, Progress
from cowengine.backup.stream import StreamHeader, VolumeEntry
from cowengine.backup.stream_reader import Source, StreamReader
from cowengine.backup.target import Target
from cowengine.backup.verify import check_succession, finished
from cowengine.core.iotable import IOTable
from cowengine.errors import BackupError, NotFoundError, OutOfRangeError, WriterError


@dataclasses.dataclass
class RestoreJob:
    """What writers are told. `restored` maps each volume to its file or name in the store; empty before post_restore.

    `documents` is what the requestor kept with the backup; from a pipe, before post_restore, with its first stream.
    """

    volumes: tuple[str, ...]
    destination: Any
    documents: dict[str, Any]
    backup: Backup | None = None
    restored: dict[str, str] = dataclasses.field(default_factory=dict)
    id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    kind: str = "restore"
    deadline: float = float("inf")
    snapshot_set: None = None

    @property
    def components(self) -> tuple[Any, ...]:
        components = self.documents.get("components")
        return tuple(components) if isinstance(components, list) else ()


def restore(
    target: Any,
    backup_id: str | None,
    destination: Any,
    *,
    volumes: Sequence[str] | None = None,
    writers: Sequence[Any] = (),
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    io: IOTable | None = None,
) -> dict[str, str]:
    """Restore the volumes of a backup (or those named in `volumes`) as they were then; returns where each is now.

    `destination`: a Store, which gets new volumes, or a folder, which gets sparse files `<volume>.raw`. `target`: a
    directory, or "-" or a binary file object with streams, of which the last is restored (`backup_id`: its id or None).

    Raises ExistsError if something of that name is there, NotFoundError, BackupError if anything is damaged or missing,
    WriterError, NoSpaceError, CancelledError; then nothing is left that looks complete. Several volumes get their names
    one after the other when all of them are durable: a crash just then may leave the first ones, each of them whole.
    """
    if is_pipe(target, method="read"):
        return restore_stream(
            target,
            destination,
            backup_id=backup_id,
            volumes=volumes,
            writers=writers,
            progress=progress,
            cancel=cancel,
            io=io,
        )
    if backup_id is None:
        raise OutOfRangeError("name the backup to restore by its id")
    folder = Target(target, io)
    backup = folder.find(backup_id)
    links = folder.chain_of(backup)
    names = _chosen(volumes, backup.header)
    place = place_of(destination, io)
    for name in names:
        place.check(name)
    job = RestoreJob(names, destination, load_documents(folder.path, backup_id, io), backup)
    meter = Meter("restore", sum(link.bytes_written for link in links), progress, cancel)
    sizes = {entry.name: entry.size for entry in backup.header.volumes}
    with _Restoration(place, names, sizes) as restoration, worker_pool() as pool, _Events(writers, job) as events:
        for link in links:
            with folder.source(link) as source:
                restoration.apply(source, pool, link, meter)
        job.restored = restoration.publish(names)
        events.post_restore()
        restoration.keep()
    meter.finish()
    return job.restored


def restore_stream(
    file: Any,
    destination: Any,
    *,
    backup_id: str | None = None,
    volumes: Sequence[str] | None = None,
    writers: Sequence[Any] = (),
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    io: IOTable | None = None,
) -> dict[str, str]:
    """As `restore`, from a binary file object (or "-") in one forward pass: a full, then what stands on it."""
    source = pipe_source(file)
    place = place_of(destination, io)
    meter = Meter("restore", None, progress, cancel)
    with _Restoration(place, volumes, {}) as restoration, worker_pool() as pool:
        reader = StreamReader(source, pool)
        check_succession(None, reader.header)
        if volumes is not None:
            _chosen(volumes, None)
        names = volumes or [entry.name for entry in reader.header.volumes]
        job = RestoreJob(tuple(names), destination, reader.documents)
        for name in job.volumes:
            place.check(name)
        with _Events(writers, job) as events:
            job.backup = restoration.apply_reader(reader, source, None, meter)
            while not source.at_end():
                reader = StreamReader(source, pool)
                check_succession(job.backup, reader.header)
                job.backup = restoration.apply_reader(reader, source, None, meter)
            if backup_id is not None and job.backup.id != backup_id:
                raise NotFoundError(f"the last stream is backup {job.backup.id}, not {backup_id}")
            job.documents = reader.documents
            job.volumes = _chosen(volumes, job.backup.header)
            job.restored = restoration.publish(job.volumes)
            events.post_restore()
            restoration.keep()
    meter.finish()
    return job.restored


def load_documents(target: str | os.PathLike[str], backup_id: str, io: IOTable | None = None) -> dict[str, Any]:
    """The documents that were kept with a backup, their checksums verified; empty if there are none."""
    folder = Target(target, io)
    with folder.source(folder.find(backup_id)) as source, worker_pool() as pool:
        return StreamReader(source, pool).documents


def _chosen(volumes: Sequence[str] | None, header: StreamHeader | None) -> tuple[str, ...]:
    """The names to restore. Raises NotFoundError if the backup lacks one."""
    if volumes is None:
        return tuple(entry.name for entry in header.volumes) if header else ()
    if isinstance(volumes, str) or not volumes or len(set(volumes)) != len(volumes):
        raise OutOfRangeError("volumes is a list of different volume names, or None for all")
    for name in volumes:
        if header is not None and header.volume(name) is None:
            raise NotFoundError(f"backup {header.backup_id} holds no volume {name!r:.80}")
    return tuple(volumes)


class _Restoration:
    """All volumes of one restore: written, published and kept together, or removed together."""

    def __init__(self, place: Place, names: Sequence[str] | None, sizes: dict[str, int]) -> None:
        self._place = place
        self._names = None if names is None else frozenset(names)
        self._sizes = sizes
        self._volumes: dict[str, Restoring] = {}
        self._kept = False

    def apply(self, source: Source, pool: Executor, expected: Backup, meter: Meter) -> Backup:
        """Apply the next backup of the chain, read from `source`."""
        reader = StreamReader(source, pool)
        if reader.header != expected.header:
            raise BackupError(f"backup {expected.id}: its manifest and its stream are of different backups")
        return self.apply_reader(reader, source, expected, meter)

    def apply_reader(self, reader: StreamReader, source: Source, expected: Backup | None, meter: Meter) -> Backup:
        """Apply a stream whose header has been read; returns what it was, all of it verified."""
        position = source.position
        volumes = [self._begun(entry) for entry in reader.header.volumes]
        for extent in reader.records():
            volume = volumes[extent.volume]
            if volume is not None and extent.plain is not None:
                volume.data(extent.offset, extent.plain)
            elif volume is not None and reader.header.volumes[extent.volume].mode == "changes":
                volume.hole(extent.offset, extent.length)
            meter.advance(source.position - position)
            position = source.position
        return finished(reader, expected)

    def publish(self, names: Sequence[str]) -> dict[str, str]:
        """Make the volumes durable, then name them; those that the last backup does not hold go."""
        for name in [name for name in self._volumes if name not in names]:
            self._volumes.pop(name).discard()
        for name in names:
            self._volumes[name].finish()
        return {name: self._volumes[name].publish() for name in names}

    def keep(self) -> None:
        """The restore succeeded."""
        self._kept = True

    def __enter__(self) -> _Restoration:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._kept:
            return
        for name, volume in self._volumes.items():
            with _noting(error, f"what was restored of {name!r} could not be removed"):
                volume.discard()
        with _noting(error, "the new folder could not be removed"):
            self._place.discard()

    def _begun(self, entry: VolumeEntry) -> Restoring | None:
        if self._names is not None and entry.name not in self._names:
            return None
        if entry.name not in self._volumes:
            if entry.mode != "whole":
                # The links were compared, so only a chain made by hand comes here.
                raise BackupError(f"volume {entry.name!r} begins with changes: its base is missing")
            self._volumes[entry.name] = self._place.open(entry, self._sizes.get(entry.name))
        self._volumes[entry.name].begin(entry)
        return self._volumes[entry.name]


class _Events:
    """The writers of one restore: pre_restore on entry, post_restore when told to, abort if the restore fails."""

    def __init__(self, writers: Sequence[Any], job: RestoreJob) -> None:
        self._writers = list(writers)
        self._job = job
        self._begun: list[Any] = []

    def __enter__(self) -> _Events:
        try:
            for writer in self._writers:
                self._begun.append(writer)
                self._tell(writer, "pre_restore")
        except BaseException as error:
            self._abort(error)
            raise
        return self

    def post_restore(self) -> None:
        for writer in self._writers:
            self._tell(writer, "post_restore")

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._abort(error)

    def _tell(self, writer: Any, event: str) -> None:
        try:
            getattr(writer, event)(self._job)
        except Exception as error:
            if isinstance(error, WriterError):
                raise
            name = str(getattr(writer, "name", None) or type(writer).__name__)
            raise WriterError(f"writer {name!r} failed in {event}: {error}", writer=name, phase=event) from error

    def _abort(self, error: BaseException) -> None:
        for writer in reversed(self._begun):
            with _noting(error, f"writer {getattr(writer, 'name', '?')!r} failed in abort"):
                abort = getattr(writer, "abort", None)
                if abort is not None:
                    abort(self._job)


@contextlib.contextmanager
def _noting(error: BaseException | None, what: str) -> Iterator[None]:
    """While one error is on its way out, another must not hide it: it becomes a note."""
    try:
        yield
    except Exception as second:
        if error is None:
            raise
        error.add_note(f"{what}: {second}")
