"""The argparse tree, built from the nouns' declarations."""

from __future__ import annotations

import argparse
from typing import NoReturn

from cowengine.cli import (
    backup,
    completion,
    help_,
    mount,
    nbd,
    policy,
    provider,
    serve,
    snapshot,
    snapshot_set,
    store,
    writer,
)
from cowengine.cli.verb import Noun, Verb

NOUNS: tuple[Noun, ...] = (
    policy.NOUN,  # the volumes', with all its verbs
    snapshot.NOUN,
    store.NOUN,
    snapshot_set.NOUN,
    backup.NOUN,
    writer.NOUN,
    provider.NOUN,
    serve.NOUN,
    mount.NOUN,
    nbd.NOUN,
    completion.NOUN,
    help_.NOUN,
)

ADDRESSES = """\
VOLUME is a volume file's path, or STORE:NAME; SNAPSHOT is VOLUME@NAME, or VOLUME@#ID.
SIZE takes a suffix: 4K, 1M, 10G, 1T (powers of 1024).
"""


class UsageError(Exception):
    """The command line can't be parsed: `usage` and `message` say how it should be and what is wrong."""

    def __init__(self, usage: str, message: str) -> None:
        super().__init__(message)
        self.usage = usage
        self.message = message


class _Parser(argparse.ArgumentParser):
    """Shows examples as written, and takes no abbreviated options: an option added later must break no script."""

    def __init__(self, **settings: object) -> None:
        settings["allow_abbrev"] = False
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Leave it to the caller how a usage error is shown."""
        raise UsageError(self.format_usage().rstrip(), f"{self.prog}: {message}")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as one parser; parsing leaves the verb's function in `run`."""
    from cowengine import __version__

    parser = _Parser(
        prog="cowengine",
        description="Snapshots, changed extents, backup and restore of volumes.\n\n" + ADDRESSES,
        epilog="exit codes: `cowengine help exit-codes`",
    )
    parser.add_argument("--version", action="version", version=f"cowengine {__version__}")
    nouns = parser.add_subparsers(title="nouns", metavar="NOUN", dest="noun", required=True)
    for noun in NOUNS:
        if not noun.name:
            for verb in noun.verbs.values():
                _add_verb(nouns, verb)
            continue
        of_noun = nouns.add_parser(noun.name, help=noun.summary, description=noun.summary)
        verbs = of_noun.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
        for verb in noun.verbs.values():
            _add_verb(verbs, verb)
    return parser


def _add_verb(verbs: argparse._SubParsersAction[_Parser], verb: Verb) -> None:
    examples = "\n".join(f"  {example}" for example in verb.examples)
    parser = verbs.add_parser(
        verb.name, help=verb.summary, description=f"{verb.summary}\n\n{ADDRESSES}", epilog=f"examples:\n{examples}\n"
    )
    for argument in verb.arguments:
        parser.add_argument(*argument.flags, **argument.settings)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, JSON lines on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=verb.run)
