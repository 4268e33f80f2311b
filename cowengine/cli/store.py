"""The verbs of a store."""

from __future__ import annotations

from dataclasses import asdict

from cowengine.cli.output import Output, shown, table
from cowengine.cli.sizes import shown_size
from cowengine.cli.verb import Noun, Options, argument
from cowengine.cli.volume import describe_volume, emit_report

NOUN = Noun("store", "create, inspect and check a store: a directory of volumes with one owner")

STORE = argument("store", metavar="STORE", help="the store's directory")


@NOUN.verb("create", "make a new, empty store", STORE, examples=("cowengine store create /srv/store",))
def create(options: Options, out: Output) -> None:
    from cowengine import Store

    with Store.create(options.store):
        pass
    out.emit({"store": options.store}, f"{shown(options.store)}: a new store")


@NOUN.verb(
    "info",
    "show a store's volumes and snapshot sets",
    STORE,
    examples=("cowengine store info /srv/store", "cowengine store info /srv/store --json"),
)
def info(options: Options, out: Output) -> None:
    from cowengine import connect

    volumes = []
    with connect(options.store, read_only=True) as store:
        for name in store.volumes():
            with store.open_volume(name) as volume:
                volumes.append({"name": name, "snapshot_count": len(volume.snapshots()), **describe_volume(volume)})
        set_count = len(store.snapshot_sets())
    total = sum(volume["size"] for volume in volumes)
    document = {"store": options.store, "volumes": volumes, "size": total, "snapshot_set_count": set_count}
    lines = [("store", options.store), ("volumes", len(volumes)), ("size", shown_size(total)), ("sets", set_count)]
    lines += [(f"  {shown(volume['name'])}", shown_size(volume["size"])) for volume in volumes]
    out.emit(document, table(lines))


@NOUN.verb(
    "check",
    "verify every volume of a store and its sets (exit code 4 if anything is damaged)",
    STORE,
    argument("--rebuild", action="store_true", help="first rebuild the catalogue, and say what could not be known"),
    examples=("cowengine store check /srv/store", "cowengine store check /srv/store --rebuild --json"),
)
def check(options: Options, out: Output) -> int:
    from cowengine import Store, connect

    if options.rebuild:
        rebuilt = Store.rebuild(options.store)
        out.log("info", f"the catalogue was rebuilt: {rebuilt.reason}", **rebuilt.counts)
        for unknown in rebuilt.unknown:
            out.log("warning", f"not known any more: {unknown}")
    with connect(options.store, read_only=True) as store:
        report = store.check()
    return emit_report(report, out, options.store)


@NOUN.verb(
    "attach",
    "move a volume file that stands alone into a store, with its snapshots",
    STORE,
    argument("file", metavar="FILE", help="the volume file; it must not be open, nor lie in another store"),
    argument("--name", help="what the volume is called in the store (default: as the file)"),
    argument("--without-store", action="store_true", help="even if it needs a store that was not closed cleanly"),
    examples=("cowengine store attach /srv/store old/detached/mail.cow --name mail",),
)
def attach(options: Options, out: Output) -> None:
    from cowengine import connect

    with connect(options.store) as store:
        volume = store.attach(options.file, options.name, without_store=options.without_store)
        document = describe_volume(volume)
    out.emit({"store": options.store, **document}, f"{shown(options.file)} is now {shown(document['path'])}")


@NOUN.verb(
    "detach",
    "move a volume out of its store, with its snapshots; it then stands alone",
    STORE,
    argument("name", metavar="NAME", help="the volume's name"),
    examples=("cowengine store detach /srv/store mail",),
)
def detach(options: Options, out: Output) -> None:
    from cowengine import connect

    with connect(options.store) as store:
        path = store.detach(options.name)
    out.emit({"store": options.store, "name": options.name, "path": path}, shown(path))


@NOUN.verb(
    "du",
    "show the space that the volumes of a store take: live, in snapshots, shared",
    STORE,
    examples=("cowengine store du /srv/store", "cowengine store du /srv/store --json"),
)
def du(options: Options, out: Output) -> None:
    from cowengine import connect

    with connect(options.store, read_only=True) as store:
        volumes = [{"name": name, **asdict(space)} for name, space in store.du().items()]
    total = sum(volume["used_bytes"] for volume in volumes)
    lines = []
    for volume in volumes:
        used, live, snapshots = (shown_size(volume[f"{what}_bytes"]) for what in ("used", "live", "snapshots"))
        lines.append((shown(volume["name"]), f"{used} used, {live} only live, {snapshots} only in one snapshot each"))
    lines.append(("in all", shown_size(total)))
    out.emit({"store": options.store, "used_bytes": total, "volumes": volumes}, table(lines))
