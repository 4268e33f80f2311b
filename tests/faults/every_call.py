"""Every call of the I/O table fails, in every way, once and for ever, in everything that is done to what is durable.

A *case* is something that is done; tests/faults/fault_cases.py says what has to hold then. Each is played once to learn
the calls it makes, and then once for each (call, way to fail, once or for ever). The list is played to its end whatever
the time, and is the same for every seed. Behind it some histories are played on real files, of which the calls below
the table do less than they were asked to (short_calls.py).

    python -P tests/faults/every_call.py
    python -P tests/faults/every_call.py --list                                   # the cases, and what they cost
    python -P tests/faults/every_call.py --only busy:delete-0                     # these cases, a regular expression
    python -P tests/faults/every_call.py --only busy:delete-0 --fault 3/pwrite/EIO/once
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("faults", "crash", "model", "torture")]

import short_calls  # noqa: E402
from crash_memo import remembered  # noqa: E402
from crash_workload import shrink  # noqa: E402
from fault_applications import application_cases  # noqa: E402
from fault_background import background_cases  # noqa: E402
from fault_backups import backup_cases  # noqa: E402
from fault_cases import Case  # noqa: E402
from fault_files import file_cases  # noqa: E402
from fault_moves import move_cases  # noqa: E402
from fault_states import StateCase  # noqa: E402
from fault_stores import SetCase, set_cases, store_cases  # noqa: E402
from fault_volumes import volume_cases  # noqa: E402
from faulty_disk import Fault, faults_of  # noqa: E402
from memory_disk import MemoryDisk  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402

from cowengine.engine.engine import _engines  # noqa: E402

HISTORIES = 6  # on real files
BRIEF = (SetCase, StateCase)  # several files, each of which has cases of its own in full


def all_cases() -> Iterator[Case]:
    """Everything that is done."""
    yield from volume_cases()
    yield from background_cases()
    yield from file_cases()
    yield from set_cases()
    yield from store_cases()
    yield from move_cases()
    yield from backup_cases()
    yield from application_cases()


def faults_in(case: Case) -> list[Fault]:
    """All ways in which a call of the case can fail. Plays it without any; Violation if that breaks a promise."""
    return faults_of(case.play(None), briefly=isinstance(case, BRIEF))


def violation(case: Case, fault: Fault) -> str | None:
    """What the case breaks with the fault."""
    try:
        case.play(fault)
    except Exception as error:  # whatever comes out of it is a violation
        abandon()
        again = f"--only '{re.escape(case.name)}$' --fault {fault}"
        return f"{case.name}, {fault}: {type(error).__name__}: {error}\n  python -P tests/faults/every_call.py {again}"
    return None


def abandon() -> None:
    """The end of a process: nobody closes what it had open."""
    for engine in list(_engines):
        if isinstance(engine.io, MemoryDisk):
            engine.closed = True


def play(case: Case, only: str, tally: Tally) -> int:
    """All faults of a case, or only one; how many there were."""
    try:
        faults = [fault for fault in faults_in(case) if only in ("", str(fault))]
    except Exception as error:
        tally.violation(f"{case.name}, without a fault: {type(error).__name__}: {error}")
        return 0
    for fault in faults:
        problem = violation(case, fault)
        if problem is not None:
            tally.violation(problem)
    return len(faults)


def below_the_table(tally: Tally, seed: int) -> str:
    """Histories under calls that are cut short; what was done to them."""
    if shutil.which("gcc") is None:
        return "nothing below the table: gcc is missing"
    with TemporaryDirectory() as place:
        library = short_calls.built(Path(place))
        found = {number: short_calls.play(library, number) for number in range(seed, seed + HISTORIES)}
    for number, told in found.items():
        if told.wrong:
            tally.violation(f"{told.wrong}\n  python -P tests/faults/short_calls.py --seeds 1 --seed {number}")
    cut, interrupted = sum(told.cut for told in found.values()), sum(told.interrupted for told in found.values())
    return f"below the table {cut:,} cut short and {interrupted:,} interrupted"


def main() -> int:
    """The command line."""
    parser = harness_parser("Lets every call fail, in every way, once and for ever.", seconds=60)
    parser.add_argument("--only", default="", help="cases by name: a regular expression that fits its beginning")
    parser.add_argument("--fault", default="", help="this fault alone")
    parser.add_argument("--list", action="store_true", help="say what each case came to")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what is injected is no news
    shrink()
    tally, cases, started = Tally(), 0, time.monotonic()
    with remembered():
        for case in all_cases():
            if not re.match(arguments.only, case.name):
                continue
            before, broken = time.process_time(), len(tally.violations)
            count = play(case, arguments.fault, tally)
            tally.count, cases = tally.count + count, cases + 1
            if arguments.list:
                took, found = time.process_time() - before, len(tally.violations) - broken
                print(f"{case.name:44} {count:5} faults {found:5} violations {took:6.2f} s", flush=True)
    tally.more = f"{cases} cases"
    if not arguments.only:
        tally.more += f"; {below_the_table(tally, arguments.seed)}"
    used = time.monotonic() - started
    if used > arguments.seconds:
        tally.more += f"; {arguments.seconds:g} s are too short for the list, which took {used:.0f} s"
    return tell(tally, arguments, "calls failed")


if __name__ == "__main__":
    sys.exit(main())
