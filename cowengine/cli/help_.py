"""`cowengine help TOPIC`: what no single verb's --help can say."""

from __future__ import annotations

from cowengine.cli import exits
from cowengine.cli.output import Output, Rows
from cowengine.cli.verb import Noun, Options

NOUN = Noun("help", "help on a topic: exit-codes")


@NOUN.verb(
    "exit-codes",
    "what each exit code means, and which errors lead to it",
    examples=("cowengine help exit-codes", "cowengine help exit-codes --json"),
)
def exit_codes(options: Options, out: Output) -> None:
    rows = [{"exit_code": code, "meaning": meaning, "errors": causes} for code, meaning, causes in exits.table()]
    out.emit({}, rows=Rows("exit_codes", rows, _line))


def _line(row: dict[str, object]) -> str:
    causes = f"\n     {row['errors']}" if row["errors"] else ""
    return f"{row['exit_code']!s:>3}  {row['meaning']}{causes}"
