"""Switches planted bugs on, one at a time, and shows that a harness catches them: the harness, the seed, the trace.

A harness that finds no planted bug proves nothing. Each bug comes with the harness that has to find it and a workload
small enough for a moment. Histories are played until one breaks a promise; the same history, just as far, is then
played without the bug, and must break none.

    python tests/torture/planted.py --list
    python tests/torture/planted.py --bug no-barrier-record --seed 7      # caught, and the steps that it takes
    python tests/torture/planted.py --row --seconds 60 --seed 7           # all of them; the last line is JSON
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

TESTS = Path(__file__).parent.parent
FOLDERS = ("torture", "crash", "model", "faults", "full_disk", "hostile", "readers")
sys.path[:0] = [str(TESTS / folder) for folder in FOLDERS]

from planted_bugs import BUGS, Bug, Played, Trace  # noqa: E402
from planted_machines import Machine  # noqa: E402

HISTORIES_MAX = 400
SECONDS_MAX = 60.0  # for one bug; then it counts as not caught
HISTORIES_OF_A_SEED = 1 << 20
SMALLER_SECONDS = 60.0


@dataclass(frozen=True)
class Caught:
    """A history that shows a bug."""

    name: str
    history: int  # its number, which follows from the seed
    tried: int
    trace: Trace
    played: Played
    seconds: float


@dataclass(frozen=True)
class Missed:
    """A bug that was not caught, or a history that fails without it."""

    name: str
    why: str


def hunt(one: Bug, seed: int) -> Caught | Missed:
    """Plays histories until one breaks a promise; that one must break none without the bug."""
    started = time.monotonic()
    for tried in range(1, HISTORIES_MAX + 1):
        history = seed * HISTORIES_OF_A_SEED + tried
        trace = one.hunt.trace(history)
        played = planted(one, history, trace)
        if played.violation is not None:
            control = one.hunt.play(history, trace, None, played.effort).violation
            if control is not None:
                return Missed(one.name, f"history {history} fails without the bug: {control}")
            return Caught(one.name, history, tried, trace, played, time.monotonic() - started)
        if time.monotonic() - started > SECONDS_MAX:
            break
    return Missed(one.name, f"not caught by the {one.hunt.harness} in {tried} histories of seed {seed}")


def planted(one: Bug, history: int, trace: Trace) -> Played:
    """The history, or what is left of it, on an engine with the bug."""
    with one.planted():
        return one.hunt.play(history, trace, one.keeps)


def smaller(caught: Caught) -> Caught:
    """The same with as few steps as still show it: drops halves, quarters, and so on until no single one can go."""
    one, trace, played, started = BUGS[caught.name], caught.trace, caught.played, time.monotonic()
    if isinstance(one.hunt, Machine):
        one = replace(one, hunt=replace(one.hunt, shrinks=True))
        return replace(caught, played=planted(one, caught.history, trace))
    size, at = max(1, len(trace) // 2), 0
    while trace and time.monotonic() - started < SMALLER_SECONDS:
        shorter = trace[:at] + trace[at + size :]
        found = planted(one, caught.history, shorter)
        if found.violation is not None:
            trace, played = shorter, found
            at, size = 0, min(size, max(1, len(trace)))  # what was needed before may not be any more
        else:
            at += size
        if at >= len(trace):
            if size == 1:
                break
            size, at = size // 2, 0
    return replace(caught, trace=trace, played=played)


# -- telling -----------------------------------------------------------------------------------------------------------
def show(one: Bug, seed: int) -> int:
    """Hunts one bug and says what caught it."""
    print(f"{one.name} ({one.rule}): {one.what}")
    found = hunt(one, seed)
    if isinstance(found, Missed):
        print(f"NOT CAUGHT: {found.why}")
        return 1
    least = smaller(found)
    print(f"caught by the {one.hunt.harness}, seed {seed}, history {found.history}, the {found.tried}. one tried")
    if found.trace:
        print(f"{len(least.trace)} of its {len(found.trace)} steps are enough:")
    for step in least.trace:
        print(f"  {step}")
    print(least.played.violation)
    print("without the bug the same history, as far, breaks nothing")
    return 0


def hunt_named(arguments: tuple[str, int]) -> Caught | Missed:
    """`hunt`, for a pool."""
    name, seed = arguments
    logging.disable(logging.WARNING)
    return hunt(BUGS[name], seed)


def hunt_all(names: Sequence[str], seed: int, workers: int) -> list[Caught | Missed]:
    """Each of them once, told as they are found."""
    found: list[Caught | Missed] = []
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for each in pool.imap(hunt_named, [(name, seed) for name in names]):
            found.append(each)
            if isinstance(each, Missed):
                again = f"python tests/torture/planted.py --bug {each.name} --seed {seed}"
                print(f"NOT CAUGHT {each.name}: {each.why}\n  {again}")
            else:
                harness = BUGS[each.name].hunt.harness
                print(f"{each.name:44} {harness:26} {each.tried:4} tried {each.seconds:6.2f} s", flush=True)
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="names, rules and what is wrong")
    parser.add_argument("--bug", choices=sorted(BUGS), metavar="NAME", help="this one, with the fewest steps")
    parser.add_argument("--row", action="store_true", help="all of them, and JSON on the last line")
    parser.add_argument("--seconds", type=float, default=60.0, help="further seeds as long as there is time for them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # every torn superblock is worth a warning
    if chosen.list:
        for one in BUGS.values():
            print(f"{one.name:44} {one.hunt.harness:26} {one.rule:8} {one.what}")
        return 0
    if chosen.bug:
        return show(BUGS[chosen.bug], chosen.seed)
    started, seed, rounds = time.monotonic(), chosen.seed, 0
    caught, missed = set(BUGS), list[Missed]()
    while True:
        found = hunt_all(list(BUGS), seed, chosen.workers)
        missed += [each for each in found if isinstance(each, Missed)]
        caught -= {each.name for each in missed}
        seed, rounds = seed + 1, rounds + 1
        used = time.monotonic() - started
        if used + used / rounds > chosen.seconds:
            break
    print(f"{len(caught)} of {len(BUGS)} planted bugs caught, seeds {chosen.seed} to {seed - 1}, {used:.0f} s")
    if chosen.row:
        print(json.dumps({"count": len(caught), "violations": len(missed), "seed": chosen.seed, "skipped": ""}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
