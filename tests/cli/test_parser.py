"""The parser: every verb has help with examples that parse, and usage errors say what is wrong."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cowengine.cli.parser import NOUNS, UsageError, build_parser

VERBS = [(noun.name, verb) for noun in NOUNS for verb in noun.verbs.values()]
EXAMPLES = [example for _, verb in VERBS for example in verb.examples]


def words_of(example: str) -> list[str]:
    """The words of the cowengine command in an example, without the shell around it."""
    command = example[example.index("cowengine ") :]
    for shell in (" | ", " > ", " >", " || ", "    #", " ] "):
        command = command.split(shell)[0]
    return shlex.split(command)[1:]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_parses(example):
    options = build_parser().parse_args(words_of(example))
    assert callable(options.run)


@pytest.mark.parametrize(("noun", "verb"), VERBS, ids=lambda value: getattr(value, "name", value))
def test_every_verb_shows_its_examples_and_takes_json(noun, verb, capsys):
    assert verb.examples
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([*noun.split(), verb.name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert all(example in shown for example in verb.examples)


@pytest.mark.parametrize(("noun", "verb"), [pair for pair in VERBS if pair[1].name in {"delete", "rollback"}])
def test_every_verb_that_destroys_has_a_dry_run(noun, verb):
    assert any("--dry-run" in argument.flags for argument in verb.arguments)


def test_the_verbs_are_those_of_this_release():
    offered: dict[str, str] = {}
    for noun in NOUNS:
        offered[noun.name] = " ".join([*offered.get(noun.name, "").split(), *noun.verbs])
    assert offered == {
        "volume": "create info list resize delete check compact seal verify map changes heads delete-head du adopt "
        "flatten import export policy given-up accept-clock",
        "snapshot": "create list show delete hold release retain anchor rollback verify clone cat",
        "store": "create info check attach detach du",
        "set": "create list show delete",
        "backup": "create list show verify restore copy delete",
        "writer": "list status rehearse",
        "provider": "list",
        "": "serve mount umount nbd",
        "completion": "bash zsh fish",
        "help": "exit-codes",
    }


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["volume"],
        ["volume", "resize", "x"],
        ["volume", "create", "x"],
        ["volume", "create", "x", "5Q"],
        ["volume", "create", "x", "-4K"],
        ["volume", "create", "x", "9" * 10_000],
        ["volume", "info", "x", "--js"],
        ["backup", "create", "s", "--target", "t", "--kind", "half"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_a_usage_error_exits_with_2_and_no_traceback(words, run):
    outcome = run(*words, expect=2)
    assert outcome.out == ""
    assert "usage:" in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err) < 2000
    with pytest.raises(UsageError):
        build_parser().parse_args(words)


def test_a_usage_error_with_json_is_a_json_line(run):
    (line,) = run("volume", "create", "x", "5Q", "--json", expect=2).log
    assert line["level"] == "error"
    assert line["exit_code"] == 2
    assert "5Q" in line["message"]


@pytest.mark.parametrize(("noun", "verb"), VERBS, ids=lambda value: getattr(value, "name", value))
def test_the_document_lists_every_verb(noun, verb):
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    heading = f"**`{noun}`**" if noun else "**Without a noun**"
    part = document[document.index(heading) + 4 :].split("\n**")[0]
    assert f"| `{verb.name}` | {verb.summary} |" in part
