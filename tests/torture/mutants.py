"""Mutants of what decides, all of cowengine.engine and cowengine.format: does any test notice a small change of it?

    python -P tests/torture/mutants.py --seconds 600 --seed 1             # some of all, in the order of the seed
    python -P tests/torture/mutants.py --only 'Allocator._pick: dropped'  # those that have this in their names
    python -P tests/torture/mutants.py --changed origin/main              # those in lines changed since a revision
    python -P tests/torture/mutants.py --quick --lots 1                   # as the scoreboard does

A process collects the tests once. For each mutant (mutation.py has the kinds) it forks a child that gives one
function its changed code, where all that refer to it see that, and runs the tests that execute the changed line:
those first that killed it or others of the function before, then by turns the fastest and those that execute little
else; then, as last resorts, histories of the state machines and the crash explorer. A mutant is *killed* by the first
that fails, hangs or dies; that one has to pass without the mutant. Tests that mount are left out.

Which test executes which line is measured first, and kept in build/. `--quick` does without: it goes by
mutants_killers.json, in which `--learn` keeps what killed each mutant, and which has the first of the lots in which
mutants are drawn.

Counted are the mutants killed. Each that *survived* is named. mutants_reviewed.json has those that do no harm, and
why, and (`open:`) those for which a test is still to be written: they are not played, unless named with `--only`. If
less than 95 of 100 are killed, each survivor is a violation.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("torture", "crash", "model", "faults", "readers")]

import line_tests  # noqa: E402
import pytest  # noqa: E402
from line_tests import LineTests  # noqa: E402
from mutation import Mutant, Source  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402

REVIEWED, KILLERS = HERE / "mutants_reviewed.json", HERE / "mutants_killers.json"
PARTS = ("cowengine.engine", "cowengine.format")
TESTS = (
    "tests/adopt/test_adopt.py",
    "tests/adopt/test_cli.py",
    "tests/adopt/test_every_call_fails.py",
    "tests/adopt/test_flatten.py",
    "tests/adopt/test_settled.py",
    "tests/anchors",
    "tests/bad_input",
    "tests/check",
    "tests/clones",
    "tests/compaction",
    "tests/faults",
    "tests/format",
    "tests/full_disk",
    "tests/golden",
    "tests/hostile/test_impossible_events.py",
    "tests/names",
    "tests/one_barrier",
    "tests/readers",
    "tests/regressions",
    "tests/repair",
    "tests/resize",
    "tests/seals",
    "tests/security",
    "tests/size",
    "tests/space",
    "tests/store",
    "tests/threads",
    "tests/usage",
)
RATE = 0.95
LOTS = 32  # of like size; a mutant's name says in which it is
TESTS_SECONDS = 2.0  # CPU time of the tests that are tried on a mutant, as measured without it
SLOW_TEST_SECONDS = 3.0  # these are tried on none
HANGS_TIMES, HANGS_SECONDS, STANDS_SECONDS = 10, 3.0, 20.0  # beyond its time: CPU time; time by the clock
MEMORY_BYTES = 2 << 30  # beyond what the process has
KILLERS_FIRST, KILLERS_MOST = 5, 60
UNKNOWN_SECONDS = 1.0  # of what was not measured, at most
PYTEST = ["-p", "no:cacheprovider", "-p", "no:terminal", "-o", "addopts=--import-mode=importlib", "-o", "timeout=0"]
Test = int  # its place in the list of all that can be run


# -- last resorts -----------------------------------------------------------------------------------------------------
def play_machine(name: str) -> None:
    """A few histories of a state machine against its model."""
    import hypothesis
    import play
    from hypothesis.stateful import run_state_machine_as_test

    machine = play.counted(play.MACHINES[name], play.Tally(late=float("inf")), 10)
    limits = hypothesis.settings(hypothesis.settings(), max_examples=8, stateful_step_count=30)
    run_state_machine_as_test(hypothesis.seed(1)(machine), settings=limits)


def explore(task: str) -> None:
    """One task of the crash explorer."""
    import explorer

    explorer.shrink()
    logging.disable(logging.WARNING)
    assert not explorer.run_task(task).violations


MACHINES = ("memory", "clones", "faults")
CRASH_TASKS = ("random:2", "random:6", "random:7", "random:8", "adopt:2", "repair:2")
Resort = tuple[str, Callable[[], None]]
LAST_RESORTS: list[Resort] = [
    *((f"state machine {name}", partial(play_machine, name)) for name in MACHINES),
    *((f"crash task {name}", partial(explore, name)) for name in CRASH_TASKS),
]


# -- in a child -------------------------------------------------------------------------------------------------------
class Failures:
    """For pytest: whether the test that runs has failed."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed


def limit(seconds: float) -> None:
    """From now on the process may take so much CPU time and not much more by the clock; else it dies."""
    signal.setitimer(signal.ITIMER_PROF, HANGS_TIMES * seconds + HANGS_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, HANGS_TIMES * seconds + STANDS_SECONDS)


def isolate(folder: Path, config: pytest.Config) -> None:
    """Whatever happens in this process from now on stays in its folder and its group."""
    os.setsid()
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    config._tmp_path_factory._basetemp = folder / "tests"  # type: ignore[attr-defined]
    (folder / "tests").mkdir()
    tempfile.tempdir = str(folder)


# -- the game ---------------------------------------------------------------------------------------------------------
@dataclass
class Child:
    """A process that plays a mutant, or tests without one."""

    pid: int
    watched: int  # a descriptor that is readable when it has ended
    folder: Path
    mutant: Mutant | None
    tests: list[Test]


@dataclass
class Verdict:
    """What came of a child."""

    passed: list[Test]
    failed: Test | None
    how: str = ""


def _mounts(item: pytest.Item) -> bool:
    """Whether a test would leave a mount behind if it were killed."""
    return any(marker.args for marker in item.iter_markers("privileged"))


class Warm:
    """A process with all tests collected, and what it takes to fork from it."""

    def __init__(
        self, session: pytest.Session, folder: Path, measured: LineTests | None, resorts: list[Resort]
    ) -> None:
        self.items = session.items
        self.config = session.config
        self.folder = folder
        self.measured = measured
        self.failures = Failures()
        self.config.pluginmanager.register(self.failures)
        self.resorts = resorts
        self.number = {item.nodeid: place for place, item in enumerate(self.items) if not _mounts(item)}
        for place, (name, _) in enumerate(resorts, len(self.items)):
            self.number[name] = place
        known = measured.seconds if measured is not None else {}
        self.unmeasured = [place for name, place in self.number.items() if name not in known] if known else []
        self._forks = 0

    def name(self, test: Test) -> str:
        """What people call a test or last resort."""
        return self.items[test].nodeid if test < len(self.items) else self.resorts[test - len(self.items)][0]

    def seconds(self, test: Test) -> float:
        """How long it takes without a mutant."""
        known = self.measured.seconds if self.measured is not None else {}
        return known.get(self.name(test), UNKNOWN_SECONDS)

    def run(self, test: Test, following: Test | None) -> bool:
        """Runs a test or last resort in this process; whether it passed."""
        if test >= len(self.items):
            try:
                self.resorts[test - len(self.items)][1]()
            except BaseException:  # whatever ends it has noticed the mutant
                return False
            return True
        item = self.items[test]
        after = self.items[following] if following is not None and following < len(self.items) else None
        self.failures.failed = False
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return not self.failures.failed

    def fork(self, mutant: Mutant | None, tests: list[Test], functions: Functions) -> Child:
        """Starts a child that runs tests until one fails."""
        self._forks += 1
        folder = self.folder / str(self._forks)
        folder.mkdir(mode=0o711)
        pid = os.fork()
        if pid == 0:
            try:
                self._play(mutant, tests, functions, folder)
            finally:
                os._exit(0)
        return Child(pid, os.pidfd_open(pid), folder, mutant, tests)

    def _play(self, mutant: Mutant | None, tests: list[Test], functions: Functions, folder: Path) -> None:
        with open(folder / "said", "w", buffering=1) as said:
            isolate(folder, self.config)
            if mutant is not None:
                functions.change(mutant)
            for test, following in zip(tests, [*tests[1:], None], strict=True):
                said.write(f"{test} begins\n")
                limit(self.seconds(test))
                if not self.run(test, following):
                    said.write(f"{test} failed\n")
                    return
                said.write(f"{test} passed\n")

    def end(self, child: Child) -> Verdict:
        """Ends a child and all that it started."""
        os.kill(child.pid, signal.SIGKILL)
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it never had a group
        _, status = os.waitpid(child.pid, 0)
        os.close(child.watched)
        said = [line.split() for line in (child.folder / "said").read_text().splitlines()]
        shutil.rmtree(child.folder, ignore_errors=True)
        passed = [int(test) for test, what in said if what == "passed"]
        if not said or said[-1][1] == "passed":
            return Verdict(passed, None)
        died = os.WIFSIGNALED(status) and signal.Signals(os.WTERMSIG(status)).name
        hangs = died in ("SIGPROF", "SIGALRM")
        how = "fails" if said[-1][1] == "failed" else "hangs" if hangs else f"dies of {died or 'itself'}"
        return Verdict(passed, int(said[-1][0]), how)


class Functions:
    """All functions of the parts, by what tells them apart."""

    def __init__(self, sources: Sequence[Source]) -> None:
        paths = {source.path for source in sources}
        self._found: dict[tuple[str, str, int], list[FunctionType]] = {}
        for function in gc.get_objects():
            if isinstance(function, FunctionType) and function.__code__.co_filename in paths:
                self._found.setdefault(self._key(function.__code__), []).append(function)

    @staticmethod
    def _key(code: CodeType) -> tuple[str, str, int]:
        return code.co_filename, code.co_qualname, code.co_firstlineno

    def change(self, mutant: Mutant) -> None:
        """Gives a function its changed code, for the life of this process."""
        code = mutant.code()
        for function in self._found.get(mutant.key, ()):
            function.__code__ = code

    def changeable(self, mutant: Mutant) -> bool:
        """Whether the code that comes of a mutant fits its function: both have the same variables of others."""
        try:
            code = mutant.code()
        except SyntaxError:
            return False
        return all(len(each.__code__.co_freevars) == len(code.co_freevars) for each in self._found.get(mutant.key, ()))


@dataclass
class Game:
    """Plays mutants until the time is up."""

    warm: Warm
    functions: Functions
    mutants: Iterator[Mutant]
    late: float
    workers: int
    budget: float
    loud: bool
    killed: int = 0
    survivors: list[str] = field(default_factory=list)
    sound: set[Test] = field(default_factory=set)  # have passed in a child
    unsound: set[Test] = field(default_factory=set)  # fail without a mutant, too
    killers: dict[str, list[Test]] = field(default_factory=dict)  # of mutants, functions, files: the last first

    def tests(self, mutant: Mutant) -> list[Test]:
        """What is tried on a mutant, in this order."""
        warm, measured = self.warm, self.warm.measured
        before = [*self.killers.get(mutant.name, []), *self.killers.get(function_of(mutant), [])[:KILLERS_FIRST]]
        chosen = dict.fromkeys([*before, *self.killers.get(mutant.source.name, [])[:KILLERS_FIRST]])
        if measured is None:
            chosen |= dict.fromkeys(self.killers.get(mutant.source.name, [])[:KILLERS_MOST])
        else:
            names = (name for name in self._measured(mutant) if name in warm.number)
            found = {warm.number[name]: measured.seconds[name] for name in names}
            chosen = {test: None for test in chosen if test in found or test in self.warm.unmeasured}
            left = self.budget
            for test, seconds in found.items():
                left -= seconds
                if left < 0:
                    break
                chosen[test] = None
            chosen |= dict.fromkeys(self.warm.unmeasured)
            chosen |= dict.fromkeys(range(len(warm.items), len(warm.items) + len(warm.resorts)))
        return [test for test in chosen if test not in self.unsound]

    def _measured(self, mutant: Mutant) -> list[str]:
        """The tests that execute the line of a mutant, or else its statement, or else anything of its function."""
        measured, function = self.warm.measured, mutant.function
        assert measured is not None
        lines = [mutant.line, *mutant.lines, *range(function.line, (function.node.end_lineno or function.line) + 1)]
        names = next(filter(None, (measured.of(mutant.source.name, line) for line in lines)), [])
        return [name for name in names if measured.seconds[name] <= SLOW_TEST_SECONDS]

    def run(self) -> None:
        """Plays until the mutants or the time are at an end."""
        running: dict[int, Child] = {}
        try:
            while True:
                while len(running) < self.workers and (child := self._next()) is not None:
                    running[child.watched] = child
                if not running:
                    return
                ready, _, _ = select.select(list(running), [], [], max(0.0, self.late - time.monotonic()))
                if not ready:
                    return
                for watched in ready:
                    again = self._ended(running.pop(watched))
                    if again is not None:
                        running[again.watched] = again
        finally:
            for child in running.values():
                self.warm.end(child)

    def _next(self) -> Child | None:
        while time.monotonic() < self.late and (mutant := next(self.mutants, None)) is not None:
            if self.functions.changeable(mutant):
                return self.warm.fork(mutant, self.tests(mutant), self.functions)
        return None

    def _ended(self, child: Child) -> Child | None:
        """Looks at what a child has said. Returns another that has to run because of it."""
        verdict = self.warm.end(child)
        if child.tests and not verdict.passed and verdict.failed is None:
            raise RuntimeError("a child ended before its first test")
        self.sound.update(verdict.passed)
        assert child.mutant is not None, "one without a mutant is waited for by `_is_sound`"
        if verdict.failed is None:
            self._survived(child.mutant, child.tests)
        elif self._is_sound(verdict.failed):
            self.killed += 1
            self.learn(child.mutant, verdict.failed)
            if self.loud:
                print(f"killed: {child.mutant.name}: {self.warm.name(verdict.failed)} {verdict.how}", flush=True)
        else:
            return self.warm.fork(child.mutant, self.tests(child.mutant), self.functions)
        return None

    def _is_sound(self, test: Test) -> bool:
        """Whether a test passes in a child without a mutant."""
        if test not in self.sound | self.unsound:
            child = self.warm.fork(None, [test], self.functions)
            select.select([child.watched], [], [])
            (self.sound if self.warm.end(child).failed is None else self.unsound).add(test)
            if test in self.unsound:
                print(f"not used, as it fails without a mutant: {self.warm.name(test)}", flush=True)
        return test in self.sound

    def learn(self, mutant: Mutant, killer: Test) -> None:
        """This test is tried early on mutants that are near this one."""
        self.killers[mutant.name] = [killer]
        for near in (function_of(mutant), mutant.source.name):
            first = self.killers.setdefault(near, [])
            if killer in first:
                first.remove(killer)
            first.insert(0, killer)

    def _survived(self, mutant: Mutant, tests: list[Test]) -> None:
        self.survivors.append(f"survived {len(tests)} tests: {mutant.source.name}:{mutant.line}\n  {mutant.name}")
        if self.loud:
            print(self.survivors[-1], flush=True)


def function_of(mutant: Mutant) -> str:
    """The full name of its function."""
    return f"{mutant.source.module}:{mutant.function.name}"


class Player:
    """For pytest: plays mutants where it would run the tests it has collected."""

    def __init__(
        self, arguments: Namespace, mutants: list[Mutant], sources: list[Source], measured: LineTests | None
    ) -> None:
        self._arguments = arguments
        self._mutants = mutants
        self._sources = sources
        self._measured = measured
        self.game: Game | None = None

    def pytest_collection(self) -> None:
        """Every test of Hypothesis is the same each time, and ends with its first failure."""
        import hypothesis

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "mutants", deadline=None, derandomize=True, database=None, phases=phases,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("not all tests could be collected")
        arguments, resorts = self._arguments, LAST_RESORTS if is_usual(self._arguments) else []
        if resorts:
            import explorer  # noqa: F401  no child has to load it
            import play  # noqa: F401
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            os.chmod(folder, 0o711)  # some tests give up being root
            warm = Warm(session, Path(folder), self._measured, resorts)
            functions = Functions(self._sources)
            gc.collect()
            gc.freeze()  # what is there now stays, and no child has to look at it
            self.game = Game(
                warm, functions, iter(self._mutants), time.monotonic() + arguments.seconds, arguments.workers,
                arguments.budget, not arguments.row,
            )  # fmt: skip
            known = read(KILLERS)
            for mutant in (mutant for source in self._sources for mutant in source.mutants()):
                if known.get(mutant.name) in warm.number:
                    self.game.learn(mutant, warm.number[known[mutant.name]])
            self.game.run()
            if arguments.learn:
                self._keep(known, self.game)
        return True

    def _keep(self, known: dict[str, str], game: Game) -> None:
        """Keeps what killed each mutant, of those that there still are."""
        names = {mutant.name for source in self._sources for mutant in source.mutants()}
        known |= {name: game.warm.name(game.killers[name][0]) for name in names & game.killers.keys()}
        known = {name: known[name] for name in sorted(names & known.keys())}
        KILLERS.write_text(json.dumps(known, indent=1) + "\n")


def read(path: Path) -> dict[str, str]:
    """What is known of mutants, by their names."""
    known: dict[str, str] = json.loads(path.read_text())
    return known


def changed_lines(revision: str) -> dict[str, set[int]]:
    """The lines of each file that differ from a revision, by its path from the root."""
    diff = ["git", "diff", "--unified=0", "--no-color", "--no-ext-diff", revision, "--", "cowengine"]
    found: dict[str, set[int]] = {}
    lines: set[int] = set()
    told = subprocess.run(diff, cwd=line_tests.ROOT, capture_output=True, text=True, check=True).stdout
    for text in told.splitlines():
        if text.startswith("+++ b/"):
            lines = found.setdefault(text.removeprefix("+++ b/"), set())
        elif text.startswith("@@"):
            start, _, count = text.split()[2].removeprefix("+").partition(",")
            lines.update(range(int(start), int(start) + int(count or 1)))
    return found


def choose(arguments: Namespace, sources: list[Source]) -> list[Mutant]:
    """The mutants to play, in the order of the seed."""
    mutants = [mutant for source in sources for mutant in source.mutants()]
    if arguments.changed:
        changed = changed_lines(arguments.changed)
        mutants = [each for each in mutants if not changed.get(each.source.name, set()).isdisjoint(each.lines)]
    if arguments.lots < LOTS:
        mutants = [each for each in mutants if each.lot % LOTS < arguments.lots]
    if arguments.only:
        mutants = [each for each in mutants if any(text in each.name for text in arguments.only)]
    else:
        harmless = read(REVIEWED)
        mutants = [each for each in mutants if each.name not in harmless]
    random.Random(arguments.seed).shuffle(mutants)
    return mutants


def is_usual(arguments: Namespace) -> bool:
    """Whether these are all parts, with the tests that are to notice a change of them."""
    return (tuple(arguments.tests), tuple(arguments.parts)) == (TESTS, PARTS)


@contextmanager
def measured(arguments: Namespace) -> Iterator[LineTests | None]:
    """Which test executes which line: as it was measured before, or is now; or nothing, for whoever is in a hurry."""
    if arguments.quick:
        yield None
    elif is_usual(arguments):
        yield LineTests(line_tests.kept(arguments.tests, arguments.parts))
    else:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            line_tests.measure(arguments.tests, arguments.parts, Path(folder))
            yield LineTests(Path(folder))


def play(arguments: Namespace, sources: list[Source], mutants: list[Mutant]) -> Game:
    """Plays mutants in this process."""
    killers = (name.split("::")[0] for name in read(KILLERS).values() if "::" in name)
    tests = sorted(set(killers)) if arguments.quick else arguments.tests
    with measured(arguments) as known:
        player = Player(arguments, mutants, sources, known)
        status = pytest.main([*PYTEST, *tests], plugins=[player])
    if player.game is None:
        raise SystemExit(f"pytest ended with status {status} before the first mutant")
    return player.game


def main() -> int:
    parser = harness_parser("Changes the engine a little, and looks whether a test notices.", seconds=60)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", type=float, default=TESTS_SECONDS, metavar="SECONDS", help="of tests for a mutant")
    parser.add_argument("--lots", type=int, default=LOTS, metavar="N", help=f"the first of {LOTS} lots; default all")
    parser.add_argument("--changed", metavar="REVISION", help="only mutants in lines changed since a git revision")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only mutants with one of these in their names")
    parser.add_argument("--list", action="store_true", help="print their names, and play none")
    parser.add_argument("--quick", action="store_true", help="measure nothing, and go by mutants_killers.json")
    parser.add_argument("--learn", action="store_true", help="keep there what killed each mutant")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="TEST", help="those that are to notice")
    parser.add_argument("--parts", nargs="+", default=PARTS, metavar="MODULE", help="what is changed")
    arguments = parser.parse_args()
    sources = [Source(path) for part in arguments.parts for path in line_tests.sources(part)]
    mutants = choose(arguments, sources)
    if arguments.list:
        print(*(mutant.name for mutant in mutants), sep="\n")
        return 0
    game = play(arguments, sources, mutants)
    played = game.killed + len(game.survivors)
    rate = game.killed / max(1, played)
    tally = Tally(game.killed, more=f"{rate:.1%} of {played:,} played, of {len(mutants):,}")
    if rate < RATE:
        for survivor in game.survivors:
            tally.violation(survivor)
    elif arguments.row:
        print(*game.survivors, sep="\n")
    return tell(tally, arguments, "mutants killed", shown=len(tally.violations))


if __name__ == "__main__":
    sys.exit(main())
