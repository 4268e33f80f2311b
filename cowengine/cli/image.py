"""The verbs of a volume that have to do with images of other formats: adopt, flatten, import, export."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from cowengine.cli import exits
from cowengine.cli.address import find_snapshot, open_volume, snapshot_id, split_snapshot, split_store, volume_file
from cowengine.cli.output import Document, Output, shown, table
from cowengine.cli.sizes import shown_size, size
from cowengine.cli.verb import Options, argument
from cowengine.cli.volume import NOUN, describe_volume
from cowengine.errors import OutOfRangeError

if TYPE_CHECKING:
    from cowengine import Salvaged, Snapshot, Volume

__all__ = ["NOUN"]

BLOCK_SIZE = argument("--block-size", type=size, default=4096, metavar="SIZE", help="4K to 1M (default 4K)")
FORMAT = argument("--format", required=True, metavar="FORMAT", help="qcow2, vhdx or vmdk; never guessed")
VOLUME_OR_SNAPSHOT = argument("volume", metavar="VOLUME|SNAPSHOT", help="a volume, or VOLUME@NAME")


@NOUN.verb(
    "adopt",
    "make a raw image a volume where it lies, without copying it",
    argument("image", metavar="IMAGE", help="a raw image: a file that nobody else has open"),
    argument("volume", metavar="VOLUME", nargs="?", help="its new name, or STORE:NAME (default: it keeps its name)"),
    BLOCK_SIZE,
    argument("--yes-it-is-raw", action="store_true", help="also if it looks like an image of another format"),
    argument("--undo", action="store_true", help="only end one that was interrupted: IMAGE is the raw image again"),
    examples=(
        "cowengine volume adopt disk.img",
        "cowengine volume adopt disk.img /srv/store:disk",
        "cowengine volume adopt disk.img --undo",
    ),
)
def adopt(options: Options, out: Output) -> None:
    from cowengine import Volume, connect

    if options.undo:
        Volume.undo_adoption(options.image)
        out.emit({"image": options.image}, f"{shown(options.image)}: the raw image again")
        return
    settings = {"block_size": options.block_size, "raw": options.yes_it_is_raw}
    in_store = split_store(options.volume or "")
    if in_store is None:
        with Volume.adopt(options.image, options.volume, **settings) as volume:
            document = describe_volume(volume)
    else:
        with connect(in_store[0]) as store:
            document = describe_volume(store.adopt_volume(in_store[1], options.image, **settings))
    out.emit(document, f"{shown(options.volume or options.image)}: {shown_size(document['size'])}")


@NOUN.verb(
    "flatten",
    "give a plain raw image back: a new file, or with --in-place the volume file itself",
    VOLUME_OR_SNAPSHOT,
    argument("image", metavar="IMAGE", nargs="?", help="the new raw image"),
    argument(
        "--in-place", action="store_true", help="an adopted volume without snapshots is the raw image again, uncopied"
    ),
    examples=(
        "cowengine volume flatten disk.cow disk.img",
        "cowengine volume flatten disk.cow@monday monday.img",
        "cowengine volume flatten disk.cow --in-place",
    ),
)
def flatten(options: Options, out: Output) -> None:
    if bool(options.image) == options.in_place:
        raise OutOfRangeError("name the new raw image, or add --in-place: one of the two")
    if options.in_place:
        with open_volume(options.volume, read_only=False) as volume:
            document: Document = {"image": str(volume.path), "size": int(volume.size)}
            volume.flatten(in_place=True)
    else:
        document = with_view(options.volume, lambda view: view.flatten(options.image))
        document["image"] = options.image
    out.emit(document, f"{shown(document['image'])}: a raw image of {shown_size(document['size'])}")


def split_view(address: str) -> tuple[str, str]:
    """(VOLUME, snapshot name) of VOLUME or VOLUME@NAME; no name for the volume itself."""
    if "@" in address and not os.path.lexists(address):
        return split_snapshot(address)
    return address, ""


def with_view(address: str, work: Callable[[Volume | Snapshot], object]) -> Document:
    """Does something with a volume, opened read-only, or a snapshot of it; says which, and its size."""
    name, snapshot = split_view(address)
    with open_volume(name, read_only=True) as volume:
        view = find_snapshot(volume, snapshot) if snapshot else volume
        work(view)
        return {"volume": name, "snapshot": snapshot or None, "size": int(view.size)}


@NOUN.verb(
    "import",
    "make a new volume of an image in another format (needs qemu-img)",
    argument("image", metavar="FILE", help="the image; it stays as it is"),
    argument("volume", metavar="VOLUME", help="the new volume's path, or STORE:NAME"),
    FORMAT,
    BLOCK_SIZE,
    examples=(
        "cowengine volume import disk.qcow2 disk.cow --format qcow2",
        "cowengine volume import disk.vmdk /srv/store:disk --format vmdk",
    ),
)
def import_(options: Options, out: Output) -> None:
    from contextlib import ExitStack

    from cowengine import connect, import_image

    with ExitStack() as stack:
        store_path, name = split_store(options.volume) or (None, options.volume)
        store = None if store_path is None else stack.enter_context(connect(store_path))
        volume = import_image(options.image, name, format=options.format, block_size=options.block_size, store=store)
        document = describe_volume(stack.enter_context(volume))
    out.emit(document, f"{shown(options.volume)}: {shown_size(document['size'])}")


@NOUN.verb(
    "export",
    "write a volume or snapshot into a new image in another format (needs qemu-img), or what is left of a damaged one",
    VOLUME_OR_SNAPSHOT,
    argument("image", metavar="FILE", help="the new image"),
    argument("--format", default=None, metavar="FORMAT", help="qcow2, vhdx or vmdk; never guessed"),
    argument(
        "--salvage",
        action="store_true",
        help="a raw image of all that can be read, holes for the rest, and a list of it (exit code 4 if there is any); "
        "also of a volume that does not open any more",
    ),
    argument(
        "--doubtful", action="store_true", help="with --salvage: also what was perhaps overwritten, as records are lost"
    ),
    examples=(
        "cowengine volume export disk.cow disk.qcow2 --format qcow2",
        "cowengine volume export /srv/store:disk@monday monday.vhdx --format vhdx",
        "cowengine volume export damaged.cow rescued.img --salvage",
        "cowengine volume export damaged.cow@monday monday.img --salvage --json",
    ),
)
def export(options: Options, out: Output) -> int:
    from cowengine import export_image

    if bool(options.format) == options.salvage or (options.doubtful and not options.salvage):
        raise OutOfRangeError("add --format FORMAT, or --salvage for a raw image: one of the two")
    if options.salvage:
        return _salvage(options, out)
    document = with_view(options.volume, lambda view: export_image(view, options.image, format=options.format))
    document["image"] = options.image
    out.emit(document, f"{shown(options.image)}: {shown_size(document['size'])} as {options.format}")
    return exits.OK


def _salvage(options: Options, out: Output) -> int:
    from cowengine import Volume

    name, snapshot = split_view(options.volume)
    if _is_served(name):
        with open_volume(name, read_only=True) as volume:
            view = find_snapshot(volume, snapshot) if snapshot else volume
            report = cast("Salvaged", view.export(options.image, salvage=True, doubtful=options.doubtful))
    else:
        number = snapshot_id(snapshot)
        wanted = number if number is not None else snapshot or None
        report = Volume.salvage(volume_file(name), options.image, snapshot=wanted, doubtful=options.doubtful)
    document = {
        "volume": name, "snapshot": snapshot or None, "image": options.image, "state": report.state, "ok": report.ok,
        "problems": report.problems, "counts": report.counts,
        "lost": [{"offset": offset, "length": length, "why": why} for offset, length, why in report.lost],
    }  # fmt: skip
    lines = [f"{shown(options.image)}: {shown(report.state)}, {'all of it' if report.ok else 'not all of it'}"]
    lines += [f"  problem: {shown(problem)}" for problem in report.problems]
    lines.append(table((f"  {name}", count) for name, count in report.counts.items()))
    out.emit(document, "\n".join(lines))
    return exits.OK if report.ok else exits.CORRUPT


def _is_served(address: str) -> bool:
    """Whether it is a volume of a store that another process serves, which then does what the file is needed for."""
    from cowengine.control.sockets import answers, control_path

    in_store = split_store(address)
    return in_store is not None and answers(control_path(os.path.abspath(in_store[0])))
