"""Verification: re-reads whole backups and believes neither stream, manifest nor names.

Says what is wrong; changes nothing. For each backup: that the manifest is intact, the stream is (every record, every
checksum, the root), the two agree, and the backup fits the one it stands on, down to one without a base.

Threads   Any number at once. Memory is bounded by the reader.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

from cowengine.backup.codec import worker_pool
from cowengine.backup.manifest import Backup
from cowengine.backup.names import checked_backup_id
from cowengine.backup.pipe import is_pipe, pipe_source
from cowengine.backup.progress import Cancel, Meter, Progress
from cowengine.backup.stream import StreamHeader
from cowengine.backup.stream_reader import Source, StreamReader
from cowengine.backup.target import Target, check_link
from cowengine.core.iotable import IOTable
from cowengine.engine.report import Report
from cowengine.errors import BackupError, CancelledError, CowEngineError, NotFoundError


def verify_backup(
    target: Any,
    backup_id: str | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    io: IOTable | None = None,
) -> Report:
    """Verify one backup and all it stands on, or every backup of a target directory, or the streams of a pipe.

    The report's `problems` name backup and place; its counts are backups, records, data_bytes and stream_bytes.
    Raises NotFoundError if there is no such target or backup; what is damaged is a problem, not an exception.
    """
    if is_pipe(target, method="read"):
        return verify_stream(target, progress=progress, cancel=cancel)
    report = _new_report()
    folder = Target(target, io)
    if backup_id is None:
        chosen = folder.backups(problems=report.problems)
        _check_links(chosen, report)
    else:
        chosen = _needed(folder, checked_backup_id(backup_id), report)
    meter = Meter("verify", sum(backup.bytes_written for backup in chosen), progress, cancel)
    with worker_pool() as pool:
        for backup in chosen:
            try:
                with folder.source(backup) as source:
                    count(report, read_through(source, pool, backup, meter))
            except CancelledError:
                raise
            except CowEngineError as error:
                report.problems.append(_named(backup, error))
    meter.finish()
    return report


def verify_stream(file: Any, *, progress: Progress | None = None, cancel: Cancel | None = None) -> Report:
    """Verify the streams that follow one another in a binary file object (or "-"), in one forward pass to its end."""
    report = _new_report()
    source = pipe_source(file)
    meter = Meter("verify", None, progress, cancel)
    before: Backup | None = None
    with worker_pool() as pool:
        try:
            while before is None or not source.at_end():
                before = read_through(source, pool, None, meter, before)
                count(report, before)
        except CancelledError:
            raise
        except CowEngineError as error:
            report.problems.append(f"stream {report.counts['backups'] + 1}: {error}")
    meter.finish()
    return report


def _new_report() -> Report:
    return Report(counts=dict.fromkeys(("backups", "records", "data_bytes", "stream_bytes"), 0))


def _needed(folder: Target, backup_id: str, report: Report) -> list[Backup]:
    """The backup and what it stands on, as far as that can be found."""
    try:
        backup = folder.find(backup_id)
    except NotFoundError:
        raise
    except CowEngineError as error:
        report.problems.append(str(error))
        return []
    try:
        return folder.chain_of(backup)
    except CowEngineError as error:
        report.problems.append(_named(backup, error))
        return [backup]


def _check_links(backups: list[Backup], report: Report) -> None:
    by_id = {(backup.chain, backup.id): backup for backup in backups}
    for backup in backups:
        if backup.base is None:
            continue
        base = by_id.get((backup.chain, backup.base))
        if base is None:
            report.problems.append(_named(backup, f"it stands on {backup.base}, which is missing or damaged"))
            continue
        try:
            check_link(base, backup.header)
        except BackupError as error:
            report.problems.append(_named(backup, error))


def _named(backup: Backup, problem: object) -> str:
    text = str(problem)
    return text if backup.id in text else f"backup {backup.id} of chain {backup.chain!r}: {text}"


def read_through(
    source: Source, pool: Executor, expected: Backup | None, meter: Meter, before: Backup | None = None
) -> Backup:
    """Reads one stream to its end; returns what it is. Raises BackupError if it is damaged or not the `expected` one.

    Without `expected`, `before` is the backup whose stream came before in the same pipe.
    """
    position = source.position
    reader = StreamReader(source, pool)
    if expected is None:
        check_succession(before, reader.header)
    for _ in reader.records():
        meter.advance(source.position - position)
        position = source.position
    return finished(reader, expected)


def finished(reader: StreamReader, expected: Backup | None) -> Backup:
    """The backup that was read, compared with its manifest."""
    assert reader.totals is not None
    components = reader.documents.get("components")
    found = Backup(reader.header, reader.totals, tuple(components) if isinstance(components, list) else ())
    if expected is not None and found.manifest != expected.manifest:
        differing = sorted(key for key, value in found.manifest.items() if expected.manifest.get(key) != value)
        raise BackupError(f"the manifest does not belong to this stream: {', '.join(differing)} differ")
    return found


def check_succession(before: Backup | None, here: StreamHeader) -> None:
    """Raises BackupError unless the stream may follow `before` in a pipe: it stands on it, or both are None."""
    if before is None:
        if here.base_id is not None:
            raise BackupError(f"the first stream is {here.kind} on {here.base_id}, which must come before it")
    elif here.base_id is None:
        raise BackupError(f"a {here.kind} backup begins in the middle of a chain of streams")
    else:
        check_link(before, here)


def count(report: Report, backup: Backup) -> None:
    """Adds one backup that was read to a report's counts."""
    totals = backup.totals
    report.counts["backups"] += 1
    report.counts["records"] += totals.data_records + totals.hole_records + totals.document_records + 2
    report.counts["data_bytes"] += totals.data_bytes
    report.counts["stream_bytes"] += backup.bytes_written
