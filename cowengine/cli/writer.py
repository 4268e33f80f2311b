"""The verbs of a writer. Writers come from entry points of installed packages, named as `list` shows; those that
need an argument are named NAME=ARGUMENT.
"""

from __future__ import annotations

from typing import Any

from cowengine.cli import exits
from cowengine.cli.ledger import ledger_lines
from cowengine.cli.output import Document, Output, Rows, shown
from cowengine.cli.sizes import shown_duration
from cowengine.cli.store import STORE
from cowengine.cli.verb import Noun, Options, argument

NOUN = Noun("writer", "list, inspect and rehearse the applications that freeze")

PROVIDER = argument("--provider", default=None, metavar="NAME", help="who makes the snapshots (default: the engine)")
WRITERS = argument(
    "--writer", action="append", default=[], metavar="NAME[=ARGUMENT]", help="use this writer; repeatable"
)


@NOUN.verb(
    "list",
    "list the writers that installed packages offer",
    examples=("cowengine writer list", "cowengine writer list --json"),
)
def list_(options: Options, out: Output) -> None:
    from cowengine.vss import configured_writer_names, writer_names

    names = [(name, False) for name in writer_names()] + [(name, True) for name in configured_writer_names()]
    rows = ({"name": name, "needs_argument": needs_argument} for name, needs_argument in sorted(names))
    out.emit({}, rows=Rows("writers", rows, _list_line))


def _list_line(row: Document) -> str:
    return shown(row["name"]) + ("=ARGUMENT" if row["needs_argument"] else "")


@NOUN.verb(
    "status",
    "ask writers who they are and whether they can be frozen",
    STORE,
    WRITERS,
    examples=("cowengine writer status /srv/store", "cowengine writer status /srv/store --writer sqlite --json"),
)
def status(options: Options, out: Output) -> int:
    from cowengine import Requestor, connect
    from cowengine.vss import writer_names

    with connect(options.store) as store:
        requestor = Requestor(store, writers=options.writer or sorted(writer_names()))
        rows: list[dict[str, Any]] = list(requestor.writer_status())
    out.emit({"store": options.store}, rows=Rows("writers", rows, _status_line))
    return exits.OK


def _status_line(row: Document) -> str:
    return "  ".join(f"{key}: {shown(str(value))}" for key, value in row.items())


@NOUN.verb(
    "rehearse",
    "prepare, freeze and thaw the writers without taking a snapshot, and say how long it took",
    STORE,
    argument("volumes", metavar="NAME", nargs="*", help="volumes of the store (default: all)"),
    WRITERS,
    examples=("cowengine writer rehearse /srv/store --writer sqlite",),
)
def rehearse(options: Options, out: Output) -> None:
    from cowengine import Requestor, connect
    from cowengine.vss import writer_names

    with connect(options.store) as store:
        requestor = Requestor(store, writers=options.writer or sorted(writer_names()))
        ledger = requestor.rehearse(options.volumes or None)
    predicted = shown_duration(float(ledger["predicted_freeze_seconds"]))
    out.emit(dict(ledger), "\n".join([f"a freeze would take about {predicted}", *ledger_lines(dict(ledger))]))
