"""The verbs of a provider."""

from __future__ import annotations

from cowengine.cli.output import Output, Rows, shown
from cowengine.cli.verb import Noun, Options

NOUN = Noun("provider", "list what can make snapshots")


@NOUN.verb(
    "list",
    "list the providers that installed packages offer",
    examples=("cowengine provider list", "cowengine provider list --json"),
)
def list_(options: Options, out: Output) -> None:
    from cowengine.vss import provider_names

    rows = ({"name": name} for name in sorted(provider_names()))
    out.emit({}, rows=Rows("providers", rows, lambda row: shown(row["name"])))
