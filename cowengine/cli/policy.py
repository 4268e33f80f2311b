"""The verbs of a volume about what may be given back, and when: policy, given-up, accept-clock."""

from __future__ import annotations

from cowengine.cli.address import open_volume
from cowengine.cli.image import NOUN
from cowengine.cli.output import Document, Output, Rows, shown, shown_time, table
from cowengine.cli.sizes import shown_size, size
from cowengine.cli.verb import Options, argument
from cowengine.cli.volume import VOLUME, describe_volume

__all__ = ["NOUN"]

WHEN_FULL = ("fail", "give-up")


@NOUN.verb(
    "policy",
    "show or change what happens when space runs out",
    VOLUME,
    argument(
        "--when-full", choices=WHEN_FULL, help="fail the write, or give up the oldest snapshots that nobody holds"
    ),
    argument("--keep-newest", type=int, metavar="N", help="never give up the N newest snapshots"),
    argument("--snapshot-bytes-max", type=size, metavar="SIZE", help="what snapshots alone may hold (0: no limit)"),
    examples=(
        "cowengine volume policy disk.cow",
        "cowengine volume policy disk.cow --when-full give-up --keep-newest 3",
        "cowengine volume policy /srv/store:mail --snapshot-bytes-max 50G --json",
    ),
)
def policy(options: Options, out: Output) -> None:
    names = ("when_full", "keep_newest", "snapshot_bytes_max")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    with open_volume(options.volume, read_only=not changes) as volume:
        found = volume.policy(**changes)
    limit = shown_size(found.snapshot_bytes_max) if found.snapshot_bytes_max else "no limit"
    text = table([("when full", found.when_full), ("keep newest", found.keep_newest), ("snapshots may hold", limit)])
    out.emit({"volume": options.volume, **found._asdict()}, text)


@NOUN.verb(
    "given-up",
    "list the snapshots that were given up because space ran out, oldest loss first",
    VOLUME,
    examples=("cowengine volume given-up disk.cow", "cowengine volume given-up /srv/store:mail --json"),
)
def given_up(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=True) as volume:
        losses = volume.given_up()
        count = volume.stats()["snapshots_given_up"]

    def line(row: Document) -> str:
        return f"{shown_time(row['given_up'])}  {row['id']:>8}  {shown(row['name'])}"

    document = {"volume": options.volume, "snapshots_given_up": count}
    out.emit(document, rows=Rows("given_up", (loss._asdict() for loss in losses), line))


@NOUN.verb(
    "accept-clock",
    "say that the system's clock is right, however far it is ahead of the volume's, by which retentions end",
    VOLUME,
    examples=("cowengine volume accept-clock disk.cow",),
)
def accept_clock(options: Options, out: Output) -> None:
    with open_volume(options.volume, read_only=False) as volume:
        volume.accept_clock()
        document = describe_volume(volume)
    out.emit(document, f"{shown(options.volume)} goes by the system's time")
