"""Crash states by the hundred thousand: histories are made up, run and cut; crash_explorer.py says how.

They are random, on one volume (`random:N`), a store (`set:N`), an image that is adopted and flattened (`adopt:N`) or a
damaged volume that is repaired (`repair:N`); or they are every sequence of a few steps (`exhaustive:N`,
`exhaustive-set:N`), each of which is cut in its last step only: what comes before it is a shorter sequence.

    python tests/crash/explorer.py --seconds 200             # random ones, with the next seed nobody has had
    python tests/crash/explorer.py --depth 2                 # every sequence of at most two steps
    python tests/crash/explorer.py --depth 2 --seconds 200   # these, and random ones until the time is up
    python tests/crash/explorer.py --task random:1000017     # that history again, and its shortest form
    python tests/crash/explorer.py --totals                  # what all runs so far have seen

States are told apart by a hash of all files. Every random history has volumes with ids of its own, so their images are
told apart within a history, and the numbers added.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("crash", "model", "torture")]

from adopt_explorer import AdoptExplorer  # noqa: E402
from adopt_explorer import Score as AdoptScore  # noqa: E402
from crash_explorer import Explorer, Keeps, Plan, Tally, abandon  # noqa: E402
from crash_memo import remembered  # noqa: E402
from crash_workload import (  # noqa: E402
    ALPHABET,
    GEOMETRIES,
    PRELUDE,
    PRELUDE_OF_CLONES,
    WIDE,
    Runner,
    Step,
    determinism,
    random_steps,
    sequence,
    sequence_count,
    shrink,
)
from memory_disk import MemoryDisk  # noqa: E402
from repair_explorer import RepairExplorer  # noqa: E402
from repair_explorer import Score as RepairScore  # noqa: E402
from set_workload import SET_ALPHABET, SET_PRELUDE, StoreRunner, random_set_steps  # noqa: E402
from torture_ledger import LEDGER, Ledger  # noqa: E402

WIDE_ONE_IN = 16
# As many random histories on one volume for one on a store, of an image, or of repairs.
SETS_ONE_IN, ADOPT_ONE_IN, REPAIR_ONE_IN = 60, 40, 200
TASKS_A_SEED = 1_000_000
VIOLATIONS_MAX = 20  # a sweep ends with this many
MINIMAL_SECONDS = 60.0
STEP = Plan(images=64, nested=0.01, kills=0.05)  # of a single step: all subsets of five pending writes
SIMPLE = Plan(nested=0, kills=0, rot=0, enough=1)  # one crash, and nothing after it
STORE = Plan(nested=0.01, kills=0.02)  # the recovery of a store has many barriers, and opening it costs most
PLANS = {"exhaustive": STEP, "exhaustive-set": STORE, "set": STORE}
BEGINNINGS = ((PRELUDE, GEOMETRIES[0]), (PRELUDE_OF_CLONES, GEOMETRIES[4]))


# -- tasks ------------------------------------------------------------------------------------------------------------
def make_task(name: str) -> tuple[Runner | StoreRunner, tuple[Step, ...]]:
    """What runs what in a task on a volume or a store."""
    kind, number = name.split(":")[0], int(name.split(":")[1])
    rng = random.Random(number)
    if kind == "set":
        return StoreRunner(MemoryDisk()), random_set_steps(rng, rng.choice((6, 10, 16)))
    if kind == "exhaustive-set":
        return StoreRunner(MemoryDisk()), SET_PRELUDE + sequence(SET_ALPHABET, number)
    if kind == "exhaustive":
        number, which = divmod(number, len(BEGINNINGS))
        prelude, geometry = BEGINNINGS[which]
        return Runner(MemoryDisk(), geometry), prelude + sequence(ALPHABET, number)
    runner = Runner(MemoryDisk(), WIDE if number % WIDE_ONE_IN == 0 else rng.choice(GEOMETRIES))
    runner.intruder = random.Random(number) if number % 2 else None
    return runner, random_steps(rng, rng.choice((10, 20, 40)))


def run_task(
    name: str, plan: Plan | None = None, keeps: Keeps | None = None, steps: tuple[Step, ...] | None = None
) -> Tally:
    """Runs a history and explores it; `steps` replaces those of the task."""
    kind, number = name.split(":")[0], int(name.split(":")[1])
    exhaustive = kind.startswith("exhaustive")
    with determinism(0 if exhaustive else number), remembered():
        if kind == "adopt":
            return adopted(number)
        if kind == "repair":
            return repaired(number)
        runner, own = make_task(name)
        steps = own if steps is None else steps
        explorer = Explorer(number, plan or PLANS.get(kind, Plan()), f"task {name}, steps {steps}", keeps)
        since = 0

        def history() -> None:
            nonlocal since
            runner.create()
            runner.run(steps[:-1])
            if exhaustive and number >= len(BEGINNINGS):
                since = len(runner.disk.journal)
            runner.run(steps[-1:])

        if explorer.guard("", history):
            explorer.explore(runner, since=since)
        abandon(runner)
    return explorer.tally


def adopted(seed: int) -> Tally:
    """A task of the explorer of adopting and flattening."""
    score = AdoptScore()
    try:
        AdoptExplorer(seed, score).run()
    except Exception as error:  # whatever comes out of it is a violation
        score.violations.append(f"task adopt:{seed}, before any crash: {error!r}")
    return Tally(
        score.states, recoveries=score.volumes + score.images, barriers=score.barriers, failed_barriers=score.refused,
        violations=score.violations,
    )  # fmt: skip


def repaired(seed: int) -> Tally:
    """A task of the explorer of repairs."""
    score = RepairScore()
    try:
        RepairExplorer(seed, score).run()
    except Exception as error:  # whatever comes out of it is a violation
        score.violations.append(f"task repair:{seed}, before any crash: {error!r}")
    return Tally(
        score.states, recoveries=score.repaired + score.refused + score.looked, barriers=score.barriers,
        failed_barriers=score.failed, violations=score.violations,
    )  # fmt: skip


def random_tasks(seed: int) -> Iterator[str]:
    """Endless; no two seeds share a task."""
    for number in count(seed * TASKS_A_SEED + 1):
        yield f"random:{number}"
        if number % SETS_ONE_IN == 0:
            yield f"set:{number}"
        if number % ADOPT_ONE_IN == 0:
            yield f"adopt:{number}"
        if number % REPAIR_ONE_IN == 0:
            yield f"repair:{number}"


def exhaustive_tasks(depth: int) -> list[str]:
    """Every sequence of at most `depth` steps, on a volume with either beginning and on a store."""
    volumes, stores = len(BEGINNINGS) * sequence_count(ALPHABET, depth), sequence_count(SET_ALPHABET, depth)
    return [f"exhaustive:{n}" for n in range(volumes)] + [f"exhaustive-set:{n}" for n in range(stores)]


def shortest(name: str, seconds: float = MINIMAL_SECONDS) -> tuple[Step, ...]:
    """The steps of a task without those that its violation does not need, as far as the time allows."""
    steps, ends = make_task(name)[1], time.monotonic() + seconds
    plan = next((each for each in (SIMPLE, Plan(enough=1)) if run_task(name, each).violations), None)
    if plan is None:
        return steps  # it takes all that a task looks at
    place = len(steps) - 1
    while place >= 0 and time.monotonic() < ends:
        fewer = steps[:place] + steps[place + 1 :]
        if run_task(name, plan, steps=fewer).violations:
            steps = fewer
        place -= 1
    return steps


# -- many of them -----------------------------------------------------------------------------------------------------
class Sweep:
    """Runs tasks on several workers and adds up what they see."""

    def __init__(self) -> None:
        self.total = Tally()
        self.tasks = 0
        self.sequences = 0  # tasks that are one of all sequences of some length
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def run(self, tasks: Iterable[str], workers: int) -> Iterator[None]:
        """Yields behind each task that is over; whoever leaves the loop ends all others."""
        ahead = threading.Semaphore(4 * workers)  # the pool would take an endless list of tasks as fast as it can
        done = threading.Event()

        def feed() -> Iterator[str]:
            for name in tasks:
                ahead.acquire()
                if done.is_set():
                    return
                yield name

        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked at by each worker
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            try:
                for name, tally in pool.imap_unordered(worked, feed()):
                    ahead.release()
                    self.total.add(tally)
                    self.tasks += 1
                    self.sequences += name.startswith("exhaustive")
                    yield
                    if len(self.total.violations) >= VIOLATIONS_MAX:
                        return
            finally:
                done.set()
                ahead.release()
                pool.terminate()


def worked(name: str) -> tuple[str, Tally]:
    """In a worker: the tally of a task, with a number in the place of images that no other task can have."""
    tally = run_task(name)
    if not name.startswith("exhaustive"):
        tally.other_states, tally.states = len(tally.states), set()
    return name, tally


def sweep(tasks: Iterable[str], states: int, workers: int) -> Sweep:
    """Runs tasks until that many distinct states were seen."""
    running = Sweep()
    for _ in running.run(tasks, workers):
        if running.total.distinct >= states:
            break
    return running


def summary(tally: Tally, seconds: float) -> str:
    return (
        f"{tally.distinct:,} distinct states ({tally.recoveries:,} opened, {tally.same_states:,} known by what is "
        f"read of them), {tally.compared:,} compared as a whole, {tally.barriers:,} barriers; "
        f"{tally.nested_states:,} after another crash, {tally.recovery_states:,} within a recovery, "
        f"{tally.second_recovery_states:,} within the second in a row, {tally.killed_states:,} by power cut behind "
        f"{tally.kills:,} kills, {tally.failed_states:,} behind {tally.failed_barriers:,} failed barriers, "
        f"{tally.rotten:,} rotten superblocks; {len(tally.violations)} violations, {seconds:.0f} s, "
        f"{tally.distinct / max(seconds, 0.001):.0f} states/s"
    )


# -- the command line -------------------------------------------------------------------------------------------------
def main() -> int:
    parser = argparse.ArgumentParser(description="Explores crash states of the engine.")
    parser.add_argument("--seconds", type=float, help="ends then")
    parser.add_argument("--states", type=int, help="ends with so many distinct states")
    parser.add_argument("--seed", type=int, help="default: the first that the ledger does not have")
    parser.add_argument(
        "--depth", type=int, default=0,
        help="begins with every sequence of at most so many steps; with neither --seconds nor --states, ends with them",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--row", action="store_true", help="the last line is JSON")
    parser.add_argument("--ledger", default=str(LEDGER), help=f"file that keeps the counts; default {LEDGER}")
    parser.add_argument("--totals", action="store_true", help="prints the sums of the ledger")
    parser.add_argument("--task", help="runs this one task again, such as random:1000017")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # every torn superblock is worth a warning
    shrink()
    if arguments.totals:
        print(json.dumps(Ledger(arguments.ledger, "crash states").totals()))
        return 0
    if arguments.task:
        return one_task(arguments.task)
    return many_tasks(arguments)


def one_task(name: str) -> int:
    started = time.monotonic()
    tally = run_task(name)
    print(*tally.violations[:5], sep="\n\n")
    if tally.violations and not name.startswith(("adopt", "repair")):
        print(f"shortest form found: {shortest(name)}")
    print(f"{name}: {summary(tally, time.monotonic() - started)}")
    return 1 if tally.violations else 0


def many_tasks(arguments: argparse.Namespace) -> int:
    running, ledger = Sweep(), Ledger(arguments.ledger, "crash states")
    seed = ledger.begin(arguments.seed)
    sequences = exhaustive_tasks(arguments.depth) if arguments.depth else []
    is_over = arguments.depth and arguments.seconds is None and arguments.states is None
    tasks = chain(sequences, () if is_over else random_tasks(seed))
    told = 0.0
    for _ in running.run(tasks, arguments.workers):
        if running.seconds > told + 30:
            told = running.seconds
            ledger.note(**counts(running))
            print(summary(running.total, told), file=sys.stderr, flush=True)
        if arguments.seconds is not None and running.seconds > arguments.seconds:
            break
        if arguments.states is not None and running.total.distinct >= arguments.states:
            break
    found = counts(running)
    ledger.note(done=True, **found)
    report(running, seed)
    if arguments.row:
        left = len(sequences) - running.sequences
        skipped = f"{left} of {len(sequences)} sequences" if left else ""
        print(json.dumps({"seed": seed, "skipped": skipped, **found, "also": {"R2": running.sequences}}))
    return 1 if running.total.violations else 0


def counts(running: Sweep) -> dict[str, Any]:
    """What the ledger and the scoreboard are told."""
    tally = running.total
    found = {"count": tally.distinct, "violations": len(tally.violations), "seconds": round(running.seconds, 1)}
    names = (
        "recoveries",
        "same_states",
        "nested_states",
        "recovery_states",
        "second_recovery_states",
        "killed_states",
        "failed_states",
        "rotten",
    )
    found |= {"tasks": running.tasks, "sequences": running.sequences}
    return found | {name: getattr(tally, name) for name in names}


def report(running: Sweep, seed: int) -> None:
    for violation in running.total.violations[:5]:
        name = violation.split("task ")[-1].split(",")[0]
        print(violation, f"\n  again, alone: python tests/crash/explorer.py --task {name}\n")
    if running.total.violations and ":" in (name := running.total.violations[0].split("task ")[-1].split(",")[0]):
        print(f"shortest form found: {name if name.startswith(('adopt', 'repair')) else shortest(name)}")
    print(f"seed {seed}, {running.tasks:,} histories: {summary(running.total, running.seconds)}")


if __name__ == "__main__":
    sys.exit(main())
