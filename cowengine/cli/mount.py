"""The commands that mount volumes and snapshots, and unmount them. They stand without a noun, as mount(8) does."""

from __future__ import annotations

from cowengine.cli import exits
from cowengine.cli.address import snapshot_id, split_store
from cowengine.cli.image import split_view
from cowengine.cli.output import Document, Output, Rows, shown
from cowengine.cli.verb import Noun, Options, argument
from cowengine.errors import OutOfRangeError

NOUN = Noun("", "")


def describe_mount(row: Document) -> str:
    """A mount as a line for a person."""
    what = row["volume"] if row["snapshot"] is None else f"{row['volume']}@{row['snapshot']}"
    place = row["directory"] or row["device"] or row["block_file"]
    notes = [
        *(["read-only"] if row["read_only"] else []), *(["writes are thrown away"] if row["overlay"] else []),
        *([row["state"]] if row["state"] != "ready" else []),
    ]  # fmt: skip
    return f"{shown(str(place))}: {shown(str(what))}{' (' + ', '.join(notes) + ')' if notes else ''}"


@NOUN.verb(
    "mount",
    "mount a volume or a snapshot, or make it a block file; without arguments list what is mounted",
    argument("volume", metavar="VOLUME|SNAPSHOT", nargs="?", help="a volume, or VOLUME@NAME"),
    argument("directory", metavar="DIRECTORY", nargs="?", help="an empty directory (needs root)"),
    argument("--device", action="store_true", help="no mount: only a block file, whose path is printed"),
    argument("--loop", action="store_true", help="no mount: a block file and a loop device on it (needs root)"),
    argument("--read-only", action="store_true", help="write nothing; snapshots are read-only anyway"),
    argument("--writable", action="store_true", help="a snapshot: allow writes, which are thrown away in the end"),
    argument("--options", "-o", default="", metavar="OPTIONS", help="passed on to mount(8)"),
    argument("--type", default="", metavar="TYPE", help="the file system's type (default: mount(8) finds out)"),
    examples=(
        "cowengine mount /srv/store:mail /mnt/mail",
        "cowengine mount disk.cow@monday /mnt/monday",
        "cowengine mount disk.cow@monday /mnt/trial --writable -o noatime",
        "cowengine mount disk.cow --device",
        "cowengine mount --json",
    ),
)
def mount(options: Options, out: Output) -> None:
    from cowengine.mount import describe, mount_volume, mounted

    if options.volume is None:
        out.emit({}, rows=Rows("mounts", map(describe, mounted()), describe_mount))
        return
    if (options.directory is None) != (options.device or options.loop):
        raise OutOfRangeError("name a directory, or add --device or --loop: one of the two")
    address, name = split_view(options.volume)
    number = snapshot_id(name)
    store, volume = split_store(address) or (None, address)
    record = mount_volume(
        volume,
        options.directory,
        store=store,
        snapshot=number if number is not None else name or None,
        read_only=options.read_only,
        writable=options.writable,
        kind=options.type,
        options=options.options,
        loop=options.loop,
    )
    document = describe(record)
    text = describe_mount(document)
    out.emit(document, text if options.directory else shown(str(document["device" if options.loop else "block_file"])))


@NOUN.verb(
    "umount",
    "unmount what `cowengine mount` mounted, however much of it is still there",
    argument("target", metavar="DIRECTORY", nargs="?", help="the directory, or the block file, loop device or id"),
    argument("--all", action="store_true", help="all that is mounted; exit code 5 if some of it is in use and stays"),
    argument("--force", action="store_true", help="kill its programs first, as if power had failed"),
    examples=("cowengine umount /mnt/mail", "cowengine umount --all", "cowengine umount /mnt/mail --force"),
)
def umount(options: Options, out: Output) -> int:
    from cowengine.mount import describe, unmount, unmount_all

    if (options.target is None) != options.all:
        raise OutOfRangeError("name what is to be unmounted, or add --all: one of the two")
    if not options.all:
        document = describe(unmount(options.target, force=options.force))
        out.emit(document, f"unmounted {describe_mount(document)}")
        return exits.OK
    done, left = unmount_all(force=options.force)
    rows = Rows("unmounted", map(describe, done), lambda row: f"unmounted {describe_mount(row)}")
    out.emit({"left": [describe(record) for record, _ in left]}, rows=rows)
    for record, error in left:
        out.log("error", f"{describe_mount(describe(record))}: {error}")
    return max([exits.OK, *(exits.exit_code(error) for _, error in left)])
