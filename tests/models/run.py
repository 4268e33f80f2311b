"""Plays the models by hand: many histories of each, or the search for the histories that its mutants fail.

    python -P tests/models/run.py --histories 100000 --seed 1             every model, nothing dropped
    python -P tests/models/run.py --histories 100000 --model commit       one of them
    python -P tests/models/run.py --mutants --histories 100000            the table of docs/reliability.md

Ends with 1 if a history fails that should not, or a mutant that should is not found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from commit_model import CommitModel  # noqa: E402
from exploring import Model, explore  # noqa: E402
from lineage_model import LineageModel  # noqa: E402
from readers_model import ReadersModel  # noqa: E402
from sealed_model import SealedModel  # noqa: E402
from seals_model import SealsModel  # noqa: E402
from sets_model import SetsModel  # noqa: E402
from threads_model import ThreadsModel  # noqa: E402

MODELS: list[Model] = [
    LineageModel(),
    CommitModel("commit", vouches=False),
    CommitModel("one barrier", vouches=True),
    ThreadsModel(),
    SetsModel(),
    ReadersModel(),
    SealsModel(),
    SealedModel(),
]
FAULTS_OF_A_MUTANT = 20  # the shortest of so many goes into the table


def play(model: Model, seeds: range) -> bool:
    """Histories with nothing dropped; whether all went well."""
    began = time.monotonic()
    tally = explore(model, seeds, enough=1)
    took = time.monotonic() - began
    print(f"{model.name}: {tally.histories:,} histories, {tally.steps:,} steps, {took:.0f} s", flush=True)
    for fault in tally.faults:
        print(f"  seed {fault.seed}: {fault.what}: {', '.join(fault.trace)}", flush=True)
    return not tally.faults


def find_mutants(model: Model, seeds: range) -> bool:
    """A line of the table for each mutant; whether all were found."""
    complete = True
    for name, rule in model.rules.items():
        tally = explore(model, seeds, name, enough=FAULTS_OF_A_MUTANT)
        complete = complete and bool(tally.faults)
        where = f"{tally.shortest.seed} | {len(tally.shortest.trace)}" if tally.faults else "- | not found"
        print(f"| {model.name} | `{name}` | {rule.number}: {rule.text} | {where} |", flush=True)
    return complete


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Plays the executable models.")
    parser.add_argument("--histories", type=int, default=20000, help="of each model, or of each mutant at most")
    parser.add_argument("--seed", type=int, default=0, help="the first; the others follow")
    parser.add_argument("--model", action="append", choices=[model.name for model in MODELS], help="default: all")
    parser.add_argument("--mutants", action="store_true", help="find a history for each mutant")
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.seed, chosen.seed + chosen.histories)
    act = find_mutants if chosen.mutants else play
    results = [act(model, seeds) for model in MODELS if not chosen.model or model.name in chosen.model]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
