"""The verbs of a snapshot set: snapshots of several volumes, taken at one point in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowengine.cli.ledger import ledger_lines
from cowengine.cli.output import Document, Output, Rows, shown, shown_time
from cowengine.cli.snapshot import describe_snapshot
from cowengine.cli.store import STORE
from cowengine.cli.verb import DRY_RUN, Noun, Options, argument
from cowengine.cli.writer import PROVIDER, WRITERS

if TYPE_CHECKING:
    from cowengine import SnapshotSet

NOUN = Noun("set", "take, list and delete snapshot sets: several volumes at one point in time")

SET = argument("set", metavar="SET", help="the set's name or id")


def describe_set(snapshot_set: SnapshotSet) -> Document:
    """What every verb says about a set."""
    return {
        "id": snapshot_set.id,
        "name": snapshot_set.name,
        "created": snapshot_set.created,
        "volumes": list(snapshot_set.volumes),
        "missing": list(snapshot_set.missing),
    }


@NOUN.verb(
    "create",
    "take a snapshot set, with the named writers frozen meanwhile",
    STORE,
    argument("name", metavar="NAME", help="the new set's name"),
    argument("volumes", metavar="NAME", nargs="*", help="volumes of the store (default: all)"),
    WRITERS,
    PROVIDER,
    examples=(
        "cowengine set create /srv/store monday",
        "cowengine set create /srv/store monday mail index",
        "cowengine set create /srv/store monday --writer sqlite",
    ),
)
def create(options: Options, out: Output) -> None:
    from cowengine import Requestor, connect

    with connect(options.store) as store:
        requestor = Requestor(store, writers=options.writer, provider=options.provider)
        snapshot_set = requestor.snapshot(options.volumes or None, options.name)
        document = {**describe_set(snapshot_set), "ledger": snapshot_set.ledger}
    out.emit(document, f"{shown(options.name)}: id {document['id']}, {len(document['volumes'])} volumes")


@NOUN.verb(
    "list",
    "list the snapshot sets of a store, oldest first",
    STORE,
    examples=("cowengine set list /srv/store", "cowengine set list /srv/store --json"),
)
def list_(options: Options, out: Output) -> None:
    from cowengine import connect

    def line(row: Document) -> str:
        return f"{row['id']!s:>8}  {shown_time(row['created'])}  {len(row['volumes']):>4} volumes  {shown(row['name'])}"

    with connect(options.store, read_only=True) as store:
        out.emit({"store": options.store}, rows=Rows("sets", map(describe_set, store.snapshot_sets()), line))


@NOUN.verb(
    "show",
    "show one snapshot set, its snapshots and its freeze ledger",
    STORE,
    SET,
    examples=("cowengine set show /srv/store monday", "cowengine set show /srv/store monday --json"),
)
def show(options: Options, out: Output) -> None:
    from cowengine import connect

    with connect(options.store, read_only=True) as store:
        snapshot_set = store.get_snapshot_set(options.set)
        document = describe_set(snapshot_set)
        document["snapshots"] = {
            name: describe_snapshot(snapshot) for name, snapshot in sorted(snapshot_set.snapshots.items())
        }
        document["ledger"] = snapshot_set.ledger
    lines = [f"{shown(document['name'])}: id {document['id']}, {shown_time(document['created'])}"]
    lines += [f"  {shown(name)}@#{snapshot['id']}" for name, snapshot in document["snapshots"].items()]
    lines += ledger_lines(document["ledger"])
    out.emit(document, "\n".join(lines))


@NOUN.verb(
    "delete",
    "delete a snapshot set with its snapshots",
    STORE,
    SET,
    DRY_RUN,
    examples=("cowengine set delete /srv/store monday --dry-run", "cowengine set delete /srv/store monday"),
)
def delete(options: Options, out: Output) -> None:
    from cowengine import connect

    with connect(options.store, read_only=options.dry_run) as store:
        snapshot_set = store.get_snapshot_set(options.set)
        document = {**describe_set(snapshot_set), "deleted": not options.dry_run}
        if not options.dry_run:
            snapshot_set.delete()
    did = "would delete" if options.dry_run else "deleted"
    out.emit(document, f"{did} {shown(options.set)} with {len(document['volumes'])} snapshots")
