"""The verbs of a volume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cowengine.cli import exits
from cowengine.cli.address import find_snapshot, open_volume, split_snapshot, split_store
from cowengine.cli.output import Document, Output, Rows, shown, table
from cowengine.cli.sizes import shown_size, size
from cowengine.cli.verb import DRY_RUN, PROGRESS, RATE, Noun, Options, argument
from cowengine.errors import BusyError, CorruptionError

if TYPE_CHECKING:
    from cowengine import Report, Volume

NOUN = Noun("volume", "create, inspect and remove volumes")

VOLUME = argument("volume", metavar="VOLUME", help="a volume file's path, or STORE:NAME")
START = argument("--start", type=size, default=0, metavar="SIZE", help="begin at this byte (default 0)")
LENGTH = argument("--length", type=size, default=None, metavar="SIZE", help="so many bytes (default: to the end)")
EXTENTS_PER_CALL = 65536


def describe_volume(volume: Volume) -> Document:
    """What every verb says about a volume."""
    return {
        "path": str(volume.path),
        "id": str(volume.id),
        "size": int(volume.size),
        "block_size": int(volume.block_size),
        "epoch": int(volume.epoch),
    }


@NOUN.verb(
    "create",
    "make a new, empty, sparse volume",
    VOLUME,
    argument("size", metavar="SIZE", type=size, help="a multiple of 512 bytes, such as 10G"),
    argument("--block-size", type=size, default=4096, metavar="SIZE", help="4K to 1M, a power of two (default 4K)"),
    examples=("cowengine volume create disk.cow 10G", "cowengine volume create /srv/store:mail 1T --block-size 64K"),
)
def create(options: Options, out: Output) -> None:
    in_store = split_store(options.volume)
    if in_store is None:
        from cowengine import Volume

        with Volume.create(options.volume, options.size, block_size=options.block_size) as volume:
            document = describe_volume(volume)
    else:
        from cowengine import connect

        path, name = in_store
        with connect(path) as store:
            document = describe_volume(store.create_volume(name, options.size, block_size=options.block_size))
    out.emit(document, f"{shown(options.volume)}: {shown_size(document['size'])}")


@NOUN.verb(
    "info",
    "show a volume's size, epoch, snapshots and statistics",
    VOLUME,
    examples=("cowengine volume info disk.cow", "cowengine volume info /srv/store:mail --json"),
)
def info(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=True) as volume:
        document = describe_volume(volume)
        document["snapshot_count"] = len(volume.snapshots())
        document["stats"] = volume.stats()
    text = table(
        [
            ("path", document["path"]),
            ("id", document["id"]),
            ("size", f"{shown_size(document['size'])} ({document['size']} bytes)"),
            ("block size", shown_size(document["block_size"])),
            ("epoch", document["epoch"]),
            ("snapshots", document["snapshot_count"]),
            *(
                (name, value)
                for name, value in sorted(document["stats"].items())
                if name not in document and not isinstance(value, dict)
            ),
        ]
    )
    out.emit(document, text)


@NOUN.verb(
    "list",
    "list the volumes of a store",
    argument("store", metavar="STORE", help="the store's directory"),
    examples=("cowengine volume list /srv/store",),
)
def list_(options: Options, out: Output) -> None:
    from cowengine import Store, connect

    def rows(store: Store) -> Iterator[Document]:
        for name in store.volumes():
            with store.open_volume(name) as volume:
                yield {"name": name, **describe_volume(volume)}

    def line(row: Document) -> str:
        return f"{shown_size(row['size']):>12}  {shown(row['name'])}"

    with connect(options.store, read_only=True) as store:
        out.emit({"store": options.store}, rows=Rows("volumes", rows(store), line))


@NOUN.verb(
    "resize",
    "make a volume larger or smaller; what a smaller one loses is gone, snapshots keep their size",
    VOLUME,
    argument("size", metavar="SIZE", type=size, help="a multiple of 512 bytes, such as 10G"),
    examples=("cowengine volume resize disk.cow 20G", "cowengine volume resize /srv/store:mail 2T --json"),
)
def resize(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=False) as volume:
        before = int(volume.size)
        volume.resize(options.size)
        document = {**describe_volume(volume), "size_before": before}
    out.emit(document, f"{shown(options.volume)}: {shown_size(document['size'])}, was {shown_size(before)}")


@NOUN.verb(
    "delete",
    "remove a volume and its file",
    VOLUME,
    argument("--with-snapshots", action="store_true", help="also if it has snapshots; without this they protect it"),
    DRY_RUN,
    examples=("cowengine volume delete disk.cow --dry-run", "cowengine volume delete /srv/store:mail --with-snapshots"),
)
def delete(options: Options, out: Output) -> None:
    # Opened for writing: that proves that nobody else owns it, and that it is a volume at all.
    with open_volume(options.volume, read_only=options.dry_run) as volume:
        document = describe_volume(volume)
        document["snapshot_count"] = len(volume.snapshots())
        document["deleted"] = not options.dry_run
        if document["snapshot_count"] and not options.with_snapshots:
            held = f"{options.volume} has {document['snapshot_count']} snapshots"
            raise BusyError(f"{held}; delete them first, or add --with-snapshots")
        in_store = split_store(options.volume)
        if in_store is None or options.dry_run:  # else the store asks
            for snapshot in volume.snapshots():
                snapshot.require_deletable()
        if in_store is None and not options.dry_run:
            _remove_file(str(volume.path))
    if in_store is not None and not options.dry_run:
        from cowengine import connect

        with connect(in_store[0]) as store:
            store.delete_volume(in_store[1])
    did = "would delete" if options.dry_run else "deleted"
    out.emit(document, f"{did} {shown(options.volume)} with {document['snapshot_count']} snapshots")


def _remove_file(path: str) -> None:
    """Remove a volume file durably; the caller still owns it, so nobody can have opened it meanwhile."""
    from cowengine.core.iotable import KERNEL

    KERNEL.unlink(path)
    KERNEL.sync_directory(os.path.dirname(os.path.abspath(path)))


@NOUN.verb(
    "check",
    "verify every invariant of a volume (exit code 4 if one does not hold)",
    VOLUME,
    argument("--repair", action="store_true", help="put right what can be put right without guessing; refuse the rest"),
    examples=(
        "cowengine volume check disk.cow",
        "cowengine volume check /srv/store:mail --json",
        "cowengine volume check disk.cow --repair",
    ),
)
def check(options: Options, out: Output) -> int:
    if options.repair:
        return _repair(options, out)
    with open_volume(options.volume, read_only=True) as volume:
        report = volume.check()
    return emit_report(report, out, options.volume)


@NOUN.verb(
    "compact",
    "move blocks that snapshots displaced back to their places, for sequential reads",
    VOLUME,
    RATE,
    START,
    examples=("cowengine volume compact disk.cow", "cowengine volume compact /srv/store:mail --rate 20M"),
)
def compact(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=False) as volume, out.progress("compacting") as meter:
        result = volume.compact(
            options.start, rate=options.rate, progress=lambda done: meter.update(done.position, volume.size)
        )
    document = {"path": options.volume, "moved_bytes": result.moved_bytes, "position": result.position}
    out.emit(document, f"{shown_size(result.moved_bytes)} moved in {shown(options.volume)}")


@NOUN.verb(
    "seal",
    "make the checksums of what snapshots hold now, instead of in the background",
    VOLUME,
    RATE,
    PROGRESS,
    examples=("cowengine volume seal disk.cow", "cowengine volume seal /srv/store:mail --rate 20M --json"),
)
def seal(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=False) as volume, out.progress("sealing") as meter:
        total = None
        with suppress(CorruptionError):  # what cannot be read is told of when the rest is sealed
            total = volume.unsealed_bytes()
        result = volume.seal(rate=options.rate, progress=lambda done: meter.update(done.sealed_bytes, total))
        document = {
            "path": options.volume, "sealed_bytes": result.sealed_bytes, "snapshots": result.snapshots,
            "unsealed_bytes": volume.unsealed_bytes(),
        }  # fmt: skip
    out.emit(document, f"{shown_size(result.sealed_bytes)} sealed in {shown(options.volume)}")


@NOUN.verb(
    "verify",
    "compare every block that a snapshot holds, on the disk, with its seal (exit code 4 if one is damaged)",
    VOLUME,
    RATE,
    PROGRESS,
    examples=("cowengine volume verify disk.cow", "cowengine volume verify /srv/store:mail --rate 50M --json"),
)
def verify(options: Options, out: Output) -> int:
    with open_volume(options.volume, read_only=True) as volume, out.progress("verifying") as meter:
        report = volume.verify(lambda done: meter.update(done.counts["blocks"] * volume.block_size), rate=options.rate)
    return emit_report(report, out, options.volume)


def _repair(options: Options, out: Output) -> int:
    from cowengine import Volume

    if split_store(options.volume) is None:
        return emit_report(Volume.repair(options.volume), out, options.volume)
    with open_volume(options.volume, read_only=False) as volume:
        return emit_report(volume.check(repair=True), out, options.volume)


def emit_report(report: Report, out: Output, what: str) -> int:
    """Print a report; the exit code says whether anything was found, or is left."""
    from cowengine.engine.repair import Repaired

    problems = [str(problem) for problem in report.problems]
    document = {"path": what, "ok": bool(report.ok), "problems": problems, "counts": dict(report.counts)}
    lines = [f"{shown(what)}: {'ok' if report.ok else f'{len(problems)} problems'}"]
    lines += [f"  problem: {shown(problem)}" for problem in problems]
    if isinstance(report, Repaired):
        document["repaired"] = report.repaired
        lines += [f"  repaired: {shown(one)}" for one in report.repaired]
    if report.counts:
        lines.append(table((f"  {name}", count) for name, count in report.counts.items()))
    out.emit(document, "\n".join(lines))
    return exits.OK if report.ok else exits.CORRUPT


@NOUN.verb(
    "map",
    "list the extents that hold data; everything else reads as zeros",
    argument("volume", metavar="VOLUME|SNAPSHOT", help="a volume, or VOLUME@NAME"),
    START,
    LENGTH,
    examples=("cowengine volume map disk.cow", "cowengine volume map disk.cow@monday --start 1G --length 64M --json"),
)
def map_(options: Options, out: Output) -> None:
    address, snapshot = options.volume, ""
    if "@" in address and not os.path.lexists(address):
        address, snapshot = split_snapshot(address)
    with open_volume(address, read_only=True) as volume:
        view = find_snapshot(volume, snapshot) if snapshot else volume
        emit_extents(out, {"volume": address, "snapshot": snapshot or None}, view.allocated_extents, view.size, options)


@NOUN.verb(
    "changes",
    "list the extents that changed since a snapshot",
    VOLUME,
    argument("--since", required=True, metavar="NAME", help="the base: a snapshot's name, #ID or change id"),
    argument("--until", metavar="NAME", help="up to this snapshot (default: the live volume)"),
    START,
    LENGTH,
    argument("--exit-code", action="store_true", help="exit with 3 if anything changed"),
    examples=(
        "cowengine volume changes disk.cow --since monday",
        "cowengine volume changes /srv/store:mail --since monday --until tuesday --json",
        "cowengine volume changes disk.cow --since monday --exit-code >/dev/null || echo changed",
    ),
)
def changes(options: Options, out: Output) -> int:
    with open_volume(options.volume, read_only=True) as volume:
        view = find_snapshot(volume, options.until) if options.until else volume
        # A change id is uuid/epoch/tag, and no name has a slash; what it must match is the engine's to decide.
        base = options.since if "/" in options.since else find_snapshot(volume, options.since)

        def extents(**limits: Any) -> Any:
            return view.changed_extents(base, **limits)

        document = {"volume": options.volume, "since": options.since, "until": options.until}
        count = emit_extents(out, document, extents, view.size, options)
    return exits.DIFFERS if options.exit_code and count else exits.OK


def emit_extents(out: Output, document: Document, extents: Callable[..., Any], limit: int, options: Options) -> int:
    """Stream extents, a page at a time; returns how many there were. Prints nothing where there is no answer."""
    count = 0
    end = limit if options.length is None else options.start + options.length

    def page(start: int) -> Any:
        return extents(start=start, length=end - start, max_results=EXTENTS_PER_CALL).tolist() if start < end else []

    first = page(options.start)

    def rows() -> Iterator[Document]:
        nonlocal count
        found = first
        while found:
            for offset, length in found:
                count += 1
                yield {"offset": offset, "length": length}
            found = page(offset + length) if len(found) == EXTENTS_PER_CALL else []

    def line(row: Document) -> str:
        return f"{row['offset']:>20}  {row['length']:>16}"

    out.emit(document, rows=Rows("extents", rows(), line, f"{'offset':>20}  {'length':>16}"))
    return count


@NOUN.verb(
    "heads",
    "list the live volume and the clones",
    VOLUME,
    examples=("cowengine volume heads disk.cow", "cowengine volume heads /srv/store:mail --json"),
)
def heads(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=True) as volume:
        rows = ({"name": name} for name in volume.heads())
        out.emit({"volume": options.volume}, rows=Rows("heads", rows, lambda row: shown(row["name"])))


@NOUN.verb(
    "delete-head",
    "delete a clone and give its space back; its snapshots stay",
    VOLUME,
    argument("head", metavar="NAME", help="the clone's name"),
    DRY_RUN,
    examples=("cowengine volume delete-head disk.cow trial", "cowengine volume delete-head disk.cow trial --dry-run"),
)
def delete_head(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=options.dry_run) as volume:
        if options.dry_run:
            volume.open_head(options.head).close()
        else:
            volume.delete_head(options.head)
    did = "would delete" if options.dry_run else "deleted"
    document = {"volume": options.volume, "head": options.head, "deleted": not options.dry_run}
    out.emit(document, f"{did} {shown(options.head)}")


@NOUN.verb(
    "du",
    "show the space that the live volume and each snapshot take alone, and what they share",
    VOLUME,
    examples=("cowengine volume du disk.cow", "cowengine volume du /srv/store:mail --json"),
)
def du(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=True) as volume:
        space = asdict(volume.du())

        def rows() -> Iterator[Document]:
            for snapshot in volume.snapshots():
                yield {"id": snapshot.id, "name": snapshot.name, **asdict(snapshot.space())}

        def line(row: Document) -> str:
            exclusive, freed = shown_size(row["exclusive_bytes"]), shown_size(row["freed_by_delete_bytes"])
            return f"{exclusive:>12}  {freed:>12}  {shown(row['name'])}"

        heading = f"\n{'exclusive':>12}  {'delete frees':>12}  snapshot"
        text = table((name.removesuffix("_bytes"), shown_size(count)) for name, count in space.items())
        out.emit({"volume": options.volume, **space}, text, Rows("snapshots", rows(), line, heading))
