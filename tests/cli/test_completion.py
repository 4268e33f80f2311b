"""The completion scripts: the shell accepts them, and bash completes with them."""

from __future__ import annotations

import subprocess

import pytest

from cowengine.cli.parser import NOUNS


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    quoted = " ".join(f"'{word}'" for word in words)
    state = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}"
    ask = f"{script}\n{state}; _cowengine; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.split("\n")[:-1]


@pytest.fixture
def bash_script(run):
    return run("completion", "bash").out


def test_bash_accepts_its_script(bash_script):
    subprocess.run(["bash", "-n"], input=bash_script, text=True, check=True, timeout=10)


def test_bash_completes_nouns_verbs_options_and_choices(bash_script):
    assert complete(bash_script, "cowengine", "vol") == ["volume"]
    assert complete(bash_script, "cowengine", "snapshot", "") == list(NOUNS[1].verbs)
    assert complete(bash_script, "cowengine", "snapshot", "delete", "--d") == ["--dry-run", "--debug"]
    assert complete(bash_script, "cowengine", "backup", "create", "store", "--kind", "i") == ["incremental"]


def test_bash_completes_files_elsewhere(bash_script, tmp_path, monkeypatch):
    (tmp_path / "disk one.cow").touch()
    monkeypatch.chdir(tmp_path)
    assert complete(bash_script, "cowengine", "volume", "info", "di") == ["disk one.cow"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_verb_and_option_is_in_the_script(shell, run):
    script = run("completion", shell).out
    assert run("completion", shell, "--json").document == {"shell": shell, "script": script}
    for noun in NOUNS:
        assert noun.name in script
        for verb in noun.verbs.values():
            assert verb.name in script
            for argument in verb.arguments:
                if argument.flags[0].startswith("--"):
                    assert argument.flags[0].removeprefix("--") in script
