"""Shell completion, written from the parser itself, so that it can't differ from it.

The scripts are static: completing a word starts no Python. Values of options with choices are completed, everything
else as file names.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from typing import NamedTuple

from cowengine.cli.output import Output
from cowengine.cli.verb import Noun, Options

NOUN = Noun("completion", "print a shell completion script")


class Command(NamedTuple):
    """One verb as a shell sees it: its words, its summary, its options and the choices of those that have some.

    A command without a noun has its own word as `noun` and no `verb`.
    """

    noun: str
    verb: str
    summary: str
    options: dict[str, str]
    choices: dict[str, tuple[str, ...]]


def commands(parser: argparse.ArgumentParser) -> list[Command]:
    """All verbs of the parser tree."""
    return [
        _command(noun, verb, summary, of_verb)
        for noun, noun_summary, of_noun in _children(parser)
        for verb, summary, of_verb in _children(of_noun) or [("", noun_summary, of_noun)]
    ]


def _alone(every: list[Command]) -> str:
    """A shell pattern of the commands without a noun; there is none such as the last."""
    return "|".join([*(command.noun for command in every if not command.verb), "''"])


def nouns(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """(noun, summary) of the parser tree, commands without a noun among them."""
    return [(noun, summary) for noun, summary, _ in _children(parser)]


def _children(parser: argparse.ArgumentParser) -> list[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return [(name, summaries[name], child) for name, child in action.choices.items()]
    return []


def _command(noun: str, verb: str, summary: str, parser: argparse.ArgumentParser) -> Command:
    options = {}
    choices = {}
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                options[flag] = (action.help or "").replace("%%", "%")
                if action.choices is not None:
                    choices[flag] = tuple(str(choice) for choice in action.choices)
    return Command(noun, verb, summary, options, choices)


def _emit(script: str, shell: str, out: Output) -> None:
    out.emit({"shell": shell, "script": script}, script.rstrip("\n"))


@NOUN.verb(
    "bash",
    "completion for bash",
    examples=("cowengine completion bash > ~/.local/share/bash-completion/completions/cowengine",),
)
def bash(options: Options, out: Output) -> None:
    from cowengine.cli.parser import build_parser

    parser = build_parser()
    every = commands(parser)
    with_verbs = dict.fromkeys(c.noun for c in every if c.verb)
    verbs = [f"        {name}) words={_words(c.verb for c in every if c.noun == name)} ;;" for name in with_verbs]
    flags = [f"        {_quoted(c)}) words={_words(c.options)} ;;" for c in every]
    values = [
        f"        {_quoted(c, flag)}) words={_words(choices)} ;;" for c in every for flag, choices in c.choices.items()
    ]
    script = f"""\
# bash completion for cowengine
_cowengine() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    local noun="${{COMP_WORDS[1]}}" verb="${{COMP_WORDS[2]}}" place="$COMP_CWORD"
    COMPREPLY=()
    case "$noun" in
        {_alone(every)}) verb="" place=3 ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={_words([*(name for name, _ in nouns(parser)), "--help", "--version"])}
    elif [ "$place" -eq 2 ]; then
        case "$noun" in
{chr(10).join(verbs)}
        esac
    elif [[ "$word" == -* ]]; then
        case "$noun $verb" in
{chr(10).join(flags)}
        esac
    else
        case "$noun $verb $before" in
{chr(10).join(values)}
        esac
        if [ -z "$words" ]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _cowengine cowengine
"""
    _emit(script, "bash", out)


def _words(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _quoted(command: Command, *more: str) -> str:
    return shlex.quote(" ".join((command.noun, command.verb, *more)))


@NOUN.verb(
    "zsh",
    "completion for zsh",
    examples=("cowengine completion zsh > ~/.zfunc/_cowengine    # a directory in $fpath",),
)
def zsh(options: Options, out: Output) -> None:
    from cowengine.cli.parser import build_parser

    parser = build_parser()
    every = commands(parser)
    lines = ["#compdef cowengine", "# zsh completion for cowengine", "_cowengine() {", "    local -a candidates"]
    lines += ['    local verb="${words[3]}" place="$CURRENT"', '    case "${words[2]}" in']
    lines += [f'        {_alone(every)}) verb="" place=4 ;;', "    esac"]
    lines += ["    if (( CURRENT == 2 )); then", f"        candidates=({_described(nouns(parser))})"]
    lines += ["        _describe noun candidates", "    elif (( place == 3 )); then", '        case "${words[2]}" in']
    for noun in dict.fromkeys(command.noun for command in every if command.verb):
        verbs = _described([(c.verb, c.summary) for c in every if c.noun == noun])
        lines.append(f"            {noun}) candidates=({verbs}) ;;")
    lines += ["        esac", "        _describe verb candidates", "    else"]
    lines += ['        case "${words[2]} $verb" in']
    lines += [f"            {_quoted(command)}) _arguments {_zsh_arguments(command)} ;;" for command in every]
    lines += ["        esac", "    fi", "}", '_cowengine "$@"']
    _emit("\n".join(lines) + "\n", "zsh", out)


def _described(pairs: list[tuple[str, str]]) -> str:
    return " ".join(shlex.quote(f"{name}:{summary.replace(':', chr(92) + ':')}") for name, summary in pairs)


def _zsh_arguments(command: Command) -> str:
    arguments = []
    for flag, summary in command.options.items():
        text = summary.translate(str.maketrans("[]:", "();"))
        values = f":value:({' '.join(command.choices[flag])})" if flag in command.choices else ""
        arguments.append(shlex.quote(f"{flag}[{text}]{values}"))
    return " ".join([*arguments, shlex.quote("*:file:_files")])


@NOUN.verb(
    "fish",
    "completion for fish",
    examples=("cowengine completion fish > ~/.config/fish/completions/cowengine.fish",),
)
def fish(options: Options, out: Output) -> None:
    from cowengine.cli.parser import build_parser

    parser = build_parser()
    lines = ["# fish completion for cowengine"]
    for noun, summary in nouns(parser):
        lines.append(f"complete -c cowengine -n __fish_use_subcommand -f -a {noun} -d {_fish(summary)}")
    for command in commands(parser):
        inside = f"__fish_seen_subcommand_from {command.noun}"
        if command.verb:
            before = f"{inside}; and not __fish_seen_subcommand_from {command.verb}"
            lines.append(f"complete -c cowengine -n {_fish(before)} -f -a {command.verb} -d {_fish(command.summary)}")
            inside += f"; and __fish_seen_subcommand_from {command.verb}"
        for flag, summary in command.options.items():
            values = f" -x -a {_fish(' '.join(command.choices[flag]))}" if flag in command.choices else ""
            lines.append(f"complete -c cowengine -n {_fish(inside)} -l {flag[2:]}{values} -d {_fish(summary)}")
    _emit("\n".join(lines) + "\n", "fish", out)


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
