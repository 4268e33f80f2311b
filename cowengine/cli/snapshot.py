"""The verbs of a snapshot."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

from cowengine.cli.address import open_snapshot, open_volume, split_snapshot
from cowengine.cli.output import Document, Output, Rows, shown, shown_time, table
from cowengine.cli.progress import Progress
from cowengine.cli.sizes import shown_size, size
from cowengine.cli.verb import DRY_RUN, PROGRESS, RATE, Noun, Options, argument
from cowengine.cli.volume import emit_report
from cowengine.errors import NotFoundError, OutOfRangeError

if TYPE_CHECKING:
    from cowengine import Snapshot, Volume

NOUN = Noun("snapshot", "take, read, roll back to and give up snapshots")

SNAPSHOT = argument("snapshot", metavar="SNAPSHOT", help="VOLUME@NAME, or VOLUME@#ID")
SNAPSHOTS_PER_CALL = 10_000
READ_SIZE = 1 << 20  # bytes


def date(text: str) -> datetime:
    """A date as ISO 8601 writes it, in UTC unless it says. Raises argparse.ArgumentTypeError."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # it is no date, or none in UTC
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no date; write one such as 2031-12-31") from None


def describe_snapshot(snapshot: Snapshot) -> Document:
    """What every verb says about a snapshot."""
    return {
        "id": int(snapshot.id),
        "name": snapshot.name,
        "epoch": int(snapshot.epoch),
        "created": snapshot.created,
        "size": int(snapshot.size),
        "change_id": snapshot.change_id,
        "hold_reason": snapshot.hold_reason,
        "retain_until": snapshot.retain_until,
        "anchor": snapshot.is_anchor,
        "metadata": snapshot.metadata,
    }


@NOUN.verb(
    "create",
    "take a snapshot; durable when the command returns",
    argument("snapshot", metavar="SNAPSHOT", help="VOLUME@NAME"),
    argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="kept with the snapshot; repeatable"),
    examples=(
        "cowengine snapshot create disk.cow@monday",
        "cowengine snapshot create /srv/store:mail@before-upgrade --metadata ticket=4711",
    ),
)
def create(options: Options, out: Output) -> None:
    address, name = split_snapshot(options.snapshot)
    metadata = dict(pair.partition("=")[::2] for pair in options.metadata) or None
    with open_volume(address, read_only=False) as volume:
        document = describe_snapshot(volume.snapshot(name, metadata=metadata))
    out.emit(document, f"{shown(options.snapshot)}: id {document['id']}")


@NOUN.verb(
    "list",
    "list a volume's snapshots, oldest first",
    argument("volume", metavar="VOLUME", help="a volume file's path, or STORE:NAME"),
    examples=("cowengine snapshot list disk.cow", "cowengine snapshot list /srv/store:mail --json"),
)
def list_(options: Options, out: Output) -> None:
    def line(row: Document) -> str:
        size = "anchor" if row["anchor"] else shown_size(row["size"])
        return f"{row['id']:>8}  {shown_time(row['created'])}  {size:>10}  {shown(row['name'])}"

    with open_volume(options.volume, read_only=True) as volume:
        out.emit({"volume": options.volume}, rows=Rows("snapshots", _all_snapshots(volume), line))


def _all_snapshots(volume: Volume) -> Iterator[Document]:
    start = 0
    while page := volume.snapshots(start, SNAPSHOTS_PER_CALL):
        for snapshot in page:
            with suppress(NotFoundError):  # its owner, another process, deleted it meanwhile
                yield describe_snapshot(snapshot)
        start += len(page)


@NOUN.verb(
    "show",
    "show one snapshot",
    SNAPSHOT,
    examples=("cowengine snapshot show disk.cow@monday", "cowengine snapshot show disk.cow@#12 --json"),
)
def show(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=True) as (_, snapshot):
        document = describe_snapshot(snapshot)
    text = [(name.replace("_", " "), value) for name, value in document.items() if name not in ("created", "size")]
    text += [("created", shown_time(document["created"])), ("size", shown_size(document["size"]))]
    out.emit(document, table(text))


@NOUN.verb(
    "delete",
    "delete a snapshot and give its space back",
    SNAPSHOT,
    DRY_RUN,
    examples=("cowengine snapshot delete disk.cow@monday", "cowengine snapshot delete disk.cow@monday --dry-run"),
)
def delete(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=options.dry_run) as (volume, snapshot):
        document = {**describe_snapshot(snapshot), "deleted": not options.dry_run}
        if not options.dry_run:
            snapshot.delete()
            volume.reclaim()
    did = "would delete" if options.dry_run else "deleted"
    out.emit(document, f"{did} {shown(options.snapshot)}")


@NOUN.verb(
    "hold",
    "protect a snapshot from being deleted or given up, for a reason",
    SNAPSHOT,
    argument("--reason", required=True, metavar="TEXT", help="why; 1 to 64 bytes"),
    examples=('cowengine snapshot hold disk.cow@monday --reason "audit 2026"',),
)
def hold(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=False) as (_, snapshot):
        snapshot.hold(options.reason)
        document = describe_snapshot(snapshot)
    out.emit(document, f"held {shown(options.snapshot)}: {shown(options.reason)}")


@NOUN.verb(
    "release",
    "end a hold",
    SNAPSHOT,
    examples=("cowengine snapshot release disk.cow@monday",),
)
def release(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=False) as (_, snapshot):
        snapshot.release()
        document = describe_snapshot(snapshot)
    out.emit(document, f"released {shown(options.snapshot)}")


@NOUN.verb(
    "retain",
    "protect a snapshot from everybody until a date, which can be extended and never shortened",
    SNAPSHOT,
    argument(
        "--until",
        required=True,
        type=date,
        metavar="DATE",
        help="such as 2031-12-31 or 2031-12-31T18:00+01:00",
    ),
    examples=("cowengine snapshot retain disk.cow@monday --until 2031-12-31",),
)
def retain(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=False) as (_, snapshot):
        snapshot.retain_until = options.until
        document = describe_snapshot(snapshot)
    out.emit(document, f"retained {shown(options.snapshot)} until {shown_time(options.until)}")


@NOUN.verb(
    "anchor",
    "give a snapshot's space back and keep it as an anchor: a base for changes, without data",
    SNAPSHOT,
    DRY_RUN,
    examples=("cowengine snapshot anchor disk.cow@monday", "cowengine volume changes disk.cow --since monday"),
)
def anchor(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=options.dry_run) as (volume, snapshot):
        if not options.dry_run:
            snapshot.to_anchor()
            volume.reclaim()
        document = describe_snapshot(snapshot)
    did = "would make an anchor of" if options.dry_run else "an anchor now:"
    out.emit(document, f"{did} {shown(options.snapshot)}")


@NOUN.verb(
    "rollback",
    "make the live volume what it was; what it replaces is kept as a snapshot of its own",
    SNAPSHOT,
    DRY_RUN,
    examples=("cowengine snapshot rollback disk.cow@monday --dry-run", "cowengine snapshot rollback disk.cow@monday"),
)
def rollback(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=options.dry_run) as (volume, snapshot):
        changed = int(volume.changed_extents(snapshot)[:, 1].sum())
        document: Document = {"snapshot": describe_snapshot(snapshot), "changed_bytes": changed, "kept": None}
        if not options.dry_run:
            document["kept"] = describe_snapshot(volume.rollback(snapshot))
    target = shown(options.snapshot)
    if options.dry_run:
        text = f"would roll back to {target}, replacing {shown_size(changed)}"
    else:
        text = f"rolled back to {target}; what was there is snapshot {shown(document['kept']['name'])}"
    out.emit(document, text)


@NOUN.verb(
    "verify",
    "compare every block of a snapshot, on the disk, with its seal (exit code 4 if one is damaged)",
    SNAPSHOT,
    RATE,
    PROGRESS,
    examples=("cowengine snapshot verify disk.cow@monday", "cowengine snapshot verify disk.cow@monday --rate 50M"),
)
def verify(options: Options, out: Output) -> int:
    with open_snapshot(options.snapshot, read_only=True) as (_, snapshot), out.progress("verifying") as meter:
        total = int(snapshot.allocated_extents()[:, 1].sum())
        report = snapshot.verify(
            lambda done: meter.update(done.counts["blocks"] * snapshot.block_size, total), rate=options.rate
        )
    return emit_report(report, out, options.snapshot)


@NOUN.verb(
    "clone",
    "make a writable clone of a snapshot: a further head of the volume; durable when the command returns",
    SNAPSHOT,
    argument("head", metavar="NAME", help="the clone's name"),
    examples=("cowengine snapshot clone disk.cow@monday trial", "cowengine volume delete-head disk.cow trial"),
)
def clone(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=False) as (_, snapshot), snapshot.clone(options.head) as head:
        document = {"snapshot": describe_snapshot(snapshot), "head": head.head, "size": int(head.size)}
    out.emit(document, f"{shown(options.head)}: a clone of {shown(options.snapshot)}")


@NOUN.verb(
    "cat",
    "write a snapshot's bytes to stdout or into a new file",
    SNAPSHOT,
    argument("--start", type=size, default=0, metavar="SIZE", help="begin at this byte (default 0)"),
    argument("--length", type=size, default=None, metavar="SIZE", help="so many bytes (default: to the end)"),
    argument("--output", metavar="FILE", default="-", help="a new file instead of stdout"),
    PROGRESS,
    examples=(
        "cowengine snapshot cat disk.cow@monday | sha256sum",
        "cowengine snapshot cat disk.cow@monday --output monday.raw",
        "cowengine snapshot cat disk.cow@monday --start 1M --length 4K | xxd",
    ),
)
def cat(options: Options, out: Output) -> None:
    with open_snapshot(options.snapshot, read_only=True) as (_, snapshot):
        end = snapshot.size if options.length is None else options.start + options.length
        if options.start > end or end > snapshot.size:
            raise OutOfRangeError(f"bytes {options.start} to {end} are not within the snapshot's {snapshot.size}")
        with out.progress("snapshot cat") as progress:
            if options.output == "-":
                _copy(snapshot, options.start, end, out.data(), progress)
            else:
                _copy_to_file(snapshot, options.start, end, options.output, progress)
    document = {"snapshot": options.snapshot, "offset": options.start, "length": end - options.start}
    if out.as_json or not out.carries_data:
        out.emit(document, f"{shown(options.output)}: {shown_size(document['length'])}")


def _copy(snapshot: Snapshot, start: int, end: int, stream: BinaryIO, progress: Progress) -> None:
    for offset in range(start, end, READ_SIZE):
        stream.write(snapshot.pread(min(READ_SIZE, end - offset), offset))
        progress.update(offset - start, end - start)
    stream.flush()


def _copy_to_file(snapshot: Snapshot, start: int, end: int, path: str, progress: Progress) -> None:
    """Into a new file, mode 0600, durably; a copy that fails leaves no file."""
    from cowengine.core.iotable import KERNEL

    with open(KERNEL.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        try:
            _copy(snapshot, start, end, stream, progress)
            KERNEL.fdatasync(stream.fileno())
        except BaseException:
            os.unlink(path)
            raise
