"""The models as part of the tests: histories without a fault, and for each mutant one that it fails.

The table of docs/reliability.md names the seed of that history and its length; it is checked here, line by line.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commit_rules import SPARE
from exploring import Model, explore, history
from run import MODELS

DOCS = Path(__file__).parents[2] / "docs"
LINE = re.compile(r"^\| ([a-z ]+) \| `(\w+)` \| (\w+): (.+?) \| (\d+) \| (\d+) \|$", re.MULTILINE)
TABLE = LINE.findall((DOCS / "reliability.md").read_text())
BY_NAME = {model.name: model for model in MODELS}
HISTORIES = {"lineage": 2500, "commit": 1200, "one barrier": 1200, "sets": 800}
FEW = 2000


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_no_history_fails(model: Model) -> None:
    tally = explore(model, range(HISTORIES.get(model.name, FEW)))
    assert not tally.faults, tally.faults[0]


def test_the_table_lists_every_mutant_with_its_rule() -> None:
    listed = [(model, mutant, number, text) for model, mutant, number, text, _, _ in TABLE]
    rules = [(model.name, name, rule.number, rule.text) for model in MODELS for name, rule in model.rules.items()]
    assert sorted(listed) == sorted(rules)


@pytest.mark.parametrize("line", TABLE, ids=lambda line: f"{line[0]}: {line[1]}")
def test_every_mutant_fails(line: tuple[str, ...]) -> None:
    model, mutant, number, text, seed, steps = line
    trace, fault = history(BY_NAME[model], int(seed), mutant)
    assert fault is not None, f"{model}, {mutant}: without {number} ({text}) passes"
    assert len(trace) == int(steps)
    assert history(BY_NAME[model], int(seed))[1] is None, "it fails with nothing dropped, too"


@pytest.mark.parametrize("check", SPARE)
def test_spare_checks_are_spare(check: str) -> None:
    for name in ("commit", "one barrier"):
        tally = explore(BY_NAME[name], range(150), check)
        assert not tally.faults, "it is needed: list it among the rules"


def test_every_rule_is_in_the_document_of_invariants() -> None:
    numbers = set(re.findall(r"^\| (\w+) \|", (DOCS / "invariants.md").read_text(), re.MULTILINE))
    cited = {rule.number for model in MODELS for rule in model.rules.values()}
    assert cited <= numbers, cited - numbers
