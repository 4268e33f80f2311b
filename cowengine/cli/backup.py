"""The verbs of a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowengine.cli import exits
from cowengine.cli.output import Document, Output, Rows, shown, shown_time, table
from cowengine.cli.sizes import shown_size
from cowengine.cli.store import STORE
from cowengine.cli.verb import DRY_RUN, PROGRESS, Noun, Options, argument
from cowengine.cli.volume import emit_report
from cowengine.cli.writer import PROVIDER, WRITERS
from cowengine.errors import NotFoundError

if TYPE_CHECKING:
    from cowengine import Backup, Store, Writer

NOUN = Noun("backup", "write, list, verify, restore, copy and delete backups")

TARGET = argument("target", metavar="TARGET", help="the directory that backups are written to")
TARGET_OR_STREAM = argument("target", metavar="TARGET", help="a directory of backups, or - for a stream on stdin")
BACKUP = argument("backup", metavar="BACKUP", help="the backup's id")
CHAIN = argument("--chain", default="default", metavar="NAME", help="the chain of backups (default: default)")
KINDS = ("full", "incremental", "differential", "copy")


def describe_backup(backup: Backup) -> Document:
    """What every verb says about a backup."""
    return {
        "id": backup.id,
        "kind": backup.kind,
        "base": backup.base,
        "chain": backup.chain,
        "created": backup.created,
        "volumes": list(backup.volumes),
        "bytes_written": int(backup.bytes_written),
    }


@NOUN.verb(
    "create",
    "freeze the writers, snapshot, thaw, and back the snapshot up",
    STORE,
    argument("volumes", metavar="NAME", nargs="*", help="volumes of the store (default: all)"),
    argument("--target", required=True, metavar="DIR|-", help="a directory, or - for a stream on stdout"),
    argument("--set", default=None, metavar="SET", help="back up this snapshot set instead of a new one"),
    argument("--kind", choices=KINDS, default="full", help="how much (default full)"),
    CHAIN,
    WRITERS,
    PROVIDER,
    PROGRESS,
    examples=(
        "cowengine backup create /srv/store --target /mnt/backup",
        "cowengine backup create /srv/store mail --target /mnt/backup --kind incremental --chain nightly",
        "cowengine backup create /srv/store --target - --writer sqlite | ssh tape 'cat > /dev/nst0'",
    ),
)
def create(options: Options, out: Output) -> None:
    from cowengine import Requestor, connect

    if options.target == "-":
        out.data()
    with connect(options.store) as store, out.progress("backup") as progress:
        backup = Requestor(store, writers=options.writer, provider=options.provider).backup(
            options.target,
            kind=options.kind,
            snapshot_set=options.set,
            volumes=options.volumes or None,
            chain=options.chain,
            progress=progress.update,
        )
    document = describe_backup(backup)
    out.emit(document, f"{document['id']}: {document['kind']}, {shown_size(document['bytes_written'])} written")


@NOUN.verb(
    "list",
    "list the backups in a target, oldest first (exit code 4 if a manifest is damaged)",
    TARGET,
    argument("--chain", default=None, metavar="NAME", help="only this chain (default: all)"),
    examples=("cowengine backup list /mnt/backup", "cowengine backup list /mnt/backup --json"),
)
def list_(options: Options, out: Output) -> int:
    from cowengine import list_backups

    def line(row: Document) -> str:
        base = f"on {row['base']}" if row["base"] else ""
        written = f"{row['kind']:<12} {shown_size(row['bytes_written']):>10}"
        return f"{row['id']}  {shown_time(row['created'])}  {written}  chain {shown(row['chain'])}  {base}".rstrip()

    damaged: list[str] = []
    backups = list_backups(options.target, options.chain, problems=damaged)
    out.emit({"target": options.target}, rows=Rows("backups", map(describe_backup, backups), line))
    for problem in damaged:
        out.log("error", problem)
    return exits.CORRUPT if damaged else exits.OK


@NOUN.verb(
    "show",
    "show one backup with its manifest",
    TARGET,
    BACKUP,
    examples=("cowengine backup show /mnt/backup ID --json",),
)
def show(options: Options, out: Output) -> None:
    from cowengine.backup import get_backup

    backup = get_backup(options.target, options.backup)
    document = {**describe_backup(backup), "manifest": backup.manifest}
    text = [
        ("id", document["id"]),
        ("kind", document["kind"]),
        ("base", document["base"] or "-"),
        ("chain", document["chain"]),
        ("created", shown_time(document["created"])),
        ("volumes", ", ".join(document["volumes"])),
        ("written", shown_size(document["bytes_written"])),
    ]
    out.emit(document, table(text))


@NOUN.verb(
    "verify",
    "read a backup, or all of a target, and trust nothing in it (exit code 4 if damaged)",
    TARGET_OR_STREAM,
    argument("backup", metavar="BACKUP", nargs="?", help="the backup's id (default: all)"),
    PROGRESS,
    examples=("cowengine backup verify /mnt/backup", "ssh tape 'cat /dev/nst0' | cowengine backup verify -"),
)
def verify(options: Options, out: Output) -> int:
    from cowengine import verify_backup

    with out.progress("verify") as progress:
        report = verify_backup(options.target, options.backup, progress=progress.update)
    return emit_report(report, out, options.target)


@NOUN.verb(
    "restore",
    "bring a backup back: into a store as new volumes, or as raw files",
    TARGET_OR_STREAM,
    argument("destination", metavar="DESTINATION", help="a store; with --raw a directory"),
    argument("--raw", action="store_true", help="write plain files NAME.raw into the directory DESTINATION"),
    argument("--backup", metavar="BACKUP", default=None, help="the backup's id (default: the newest of the chain)"),
    CHAIN,
    argument("--volume", action="append", default=[], metavar="NAME", help="only this volume; repeatable"),
    WRITERS,
    PROGRESS,
    examples=(
        "cowengine backup restore /mnt/backup /srv/store2",
        "cowengine backup restore /mnt/backup files --raw --backup ID --volume mail",
        "ssh tape 'cat /dev/nst0' | cowengine backup restore - /srv/store2",
    ),
)
def restore(options: Options, out: Output) -> None:
    from cowengine import connect

    backup_id = options.backup
    if backup_id is None and options.target != "-":
        backup_id = _newest(options.target, options.chain)
    if options.raw:
        places = _restore_into(options.destination, backup_id, options, out, [])
    else:
        with connect(options.destination) as store:
            places = _restore_into(store, backup_id, options, out, _loaded(options.writer, store))
    text = "\n".join(f"{shown(name)}: {shown(place)}" for name, place in places.items())
    out.emit({"backup": backup_id, "destination": options.destination, "restored": places}, text)


def _newest(target: str, chain: str) -> str:
    from cowengine.backup import last_backup

    backup = last_backup(target, chain)
    if backup is None:
        raise NotFoundError(f"no backup of chain {chain!r} in {target}; `cowengine backup list` shows what there is")
    return backup.id


def _loaded(names: list[str], store: Store) -> list[Writer]:
    from cowengine.vss import load_writers

    return [writer for name in names for writer in load_writers(name, store)]


def _restore_into(
    destination: Store | str, backup_id: str | None, options: Options, out: Output, writers: list[Writer]
) -> dict[str, str]:
    from cowengine import restore as restore_backup

    with out.progress("restore") as progress:
        return restore_backup(
            options.target,
            backup_id,
            destination,
            volumes=options.volume or None,
            writers=writers,
            progress=progress.update,
        )


@NOUN.verb(
    "copy",
    "make a second copy of a backup in another target, and verify it",
    TARGET,
    BACKUP,
    argument("other", metavar="OTHER", help="the other target's directory"),
    PROGRESS,
    examples=("cowengine backup copy /mnt/backup ID /mnt/second",),
)
def copy(options: Options, out: Output) -> None:
    from cowengine import copy_backup

    with out.progress("copy") as progress:
        copy_backup(options.target, options.backup, options.other, progress=progress.update)
    document = {"backup": options.backup, "target": options.target, "other": options.other}
    out.emit(document, f"copied {shown(options.backup)} to {shown(options.other)}")


@NOUN.verb(
    "delete",
    "delete a backup; refused if another one stands on it",
    TARGET,
    BACKUP,
    DRY_RUN,
    examples=("cowengine backup delete /mnt/backup ID --dry-run", "cowengine backup delete /mnt/backup ID"),
)
def delete(options: Options, out: Output) -> None:
    from cowengine.backup import delete_backup, get_backup

    document = {**describe_backup(get_backup(options.target, options.backup)), "deleted": not options.dry_run}
    document["removed"] = [str(path) for path in delete_backup(options.target, options.backup, dry_run=options.dry_run)]
    did = "would delete" if options.dry_run else "deleted"
    out.emit(document, f"{did} {shown(options.backup)}: {shown_size(document['bytes_written'])}")
