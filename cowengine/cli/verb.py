"""Nouns and verbs as data: a noun's file declares its verbs, and parser, help and completion are built from that.

Importing a noun's file must import nothing heavy; a verb imports the engine when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from cowengine.cli.output import Output
from cowengine.cli.sizes import size

Options = argparse.Namespace
Run = Callable[[Options, Output], "int | None"]


class Argument(NamedTuple):
    """One argument of a verb, as argparse takes it."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


def argument(*flags: str, **settings: Any) -> Argument:
    """Declare an argument of a verb; the words are those of argparse's add_argument."""
    return Argument(flags, settings)


class Verb(NamedTuple):
    """What can be done with a noun: `run` returns the exit code, None meaning 0."""

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    examples: tuple[str, ...]
    run: Run


class Noun:
    """What the command line is about; `verbs` by name in the order of declaration.

    The verbs of a noun without a name are commands of their own: `cowengine VERB`.
    """

    def __init__(self, name: str, summary: str) -> None:
        self.name = name
        self.summary = summary
        self.verbs: dict[str, Verb] = {}

    def verb(self, name: str, summary: str, *arguments: Argument, examples: tuple[str, ...]) -> Callable[[Run], Run]:
        """Declare the decorated function to be a verb of this noun."""

        def declare(run: Run) -> Run:
            self.verbs[name] = Verb(name, summary, arguments, examples, run)
            return run

        return declare


DRY_RUN = argument("--dry-run", action="store_true", help="only say what would be destroyed")
RATE = argument("--rate", type=size, metavar="SIZE", help="at most so many bytes a second")
PROGRESS = argument(
    "--progress",
    choices=("auto", "json", "none"),
    default="auto",
    help="auto: a bar on a terminal, else JSON lines; json; none",
)
