"""Whether the engine's own tests take every branch of the kernels that decide; gcc counts them, in a build of its own.

    make build/gcov-site
    python -P tests/torture/kernel_branches.py
    python -P tests/torture/kernel_branches.py --tests tests/space --kernels slotmap      # some tests, some kernels

KERNELS say which blocks changed, what is shared and freed, and where a block goes. TESTS are the folders and files that
come to it in the least time; the others would only add to what is counted.

Cython makes a C statement of each decision of a .pyx and writes above it which line it comes from; gcc counts how often
each went either way, with nothing folded (-O0). Counted are both ways of each `if`, `elif`, `while`, `for` and ternary,
of each `min` and `max`, and of each operand of `and` and `or` in such a condition; a call that fails and memory that
there is none of are such branches. What Cython adds is left out by one rule on the text of the C: a branch is the
source's if it stands in the body of one of its functions (`__pyx_f_`, `__pyx_pf_`) and names only variables and
temporaries (`__pyx_v_`, `__pyx_t_`, `__pyx_temp`) and constants. What Cython adds asks Python or marks the outcome
(`unlikely`). A release build has no assertions, and so they are not among the branches.

Counted are the branches taken; one that is not and a test that fails are violations.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

from branches import ROOT, failed_in  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402

SITE = ROOT / "build" / "gcov-site"
OBJECTS = ROOT / "build" / "gcov"
C_FILES = ROOT / "build" / "release" / "cython" / "cowengine" / "core"
KERNELS = (
    "batch", "blockmap", "compact", "datapath", "exclusive", "gather", "radix", "readpath", "reclaiming", "roots",
    "slotmap", "survey", "unconfirmed",
)  # fmt: skip
TESTS = (
    "tests/compaction/test_compaction.py",
    "tests/kernels",
    "tests/one_barrier",
    "tests/regressions/test_reclaim.py",
    "tests/resize/test_homes.py",
    "tests/seals/test_damage.py",
    "tests/seals/test_sealing.py",
)
Branch = tuple[str, int, int, str]  # file, line, number of the decision in its line, which way

ORIGIN = re.compile(r'\s*/\* "([^"]+)":(\d+)$')
SOURCE = re.compile(r"cowengine/core/\w+\.p(?:yx|xd)")
FUNCTION = re.compile(r"static .*\b__pyx_p?f_\w+\(.*\) \{$")
DECISION = re.compile(r"\s*(?:if|for|switch) \((.*)\) (?:\{|break;)$")
NAME = re.compile(r"(?<![\w.>])[A-Za-z_]\w*")  # but not a member's
OURS = re.compile(r"__pyx_(?:[tve]_\w+|temp)")
EARLY = re.compile(r"\s*goto (__pyx_L\d+_bool_binop_done);")
LOOKED_AT = 40  # lines behind a decision, to tell its ways apart
WHOLE = re.compile(r"\s*(__pyx_L\d+_bool_binop_done):;")


@dataclass(frozen=True)
class Decision:
    """One decision, where it stands in the source and in the C."""

    file: str
    line: int
    number: int  # in its line
    c_line: int
    negated: bool  # the C asks for the opposite of its variable, or whether a loop is over
    flipped: bool  # so does the source
    leads: bool  # what the C's condition is when it comes to `behind`
    behind: tuple[int, ...]  # lines of the C: the statements of one way, or of a loop behind the way out of it
    early: tuple[tuple[int, bool], ...]  # of a last operand: lines of the C that pass it by, with what they decide

    def ways(self, lines: dict[int, dict[str, Any]]) -> dict[str, int]:
        """How often each way was taken."""
        branches = lines[self.c_line]["branches"]
        counts = [branch["count"] for branch in branches]
        if not any(branch["fallthrough"] for branch in branches):  # a switch: comparisons with constants
            return {f"case {number}": count for number, count in enumerate(counts, 1)}
        # gcc does not say which way is which; the statement that one of them leads to does.
        first = next((lines[line]["count"] for line in self.behind if line in lines), counts[0])
        leading = counts.index(first) if first in counts else 0
        taken = {self.leads != self.negated: counts[leading], self.leads == self.negated: counts[1 - leading]}
        for c_line, decided in self.early:
            taken[decided] -= lines[c_line]["count"]
        return {"true": taken[not self.flipped], "false": taken[self.flipped]}


def statements(text: str) -> Iterator[tuple[int, str, tuple[str, int]]]:
    """The lines in the source's functions: (number, text, (file, line) that it comes from)."""
    origin, inside, comment = ("", 0), False, False
    for number, line in enumerate(text.split("\n"), 1):
        if found := ORIGIN.match(line):
            origin = found[1], int(found[2])
        comment = comment or (line.lstrip().startswith("/* ") and "*/" not in line)
        if inside and line.strip() and not comment:
            yield number, line, origin
        comment = comment and "*/" not in line
        inside = (inside or bool(FUNCTION.match(line))) and line != "}"


def decisions(text: str) -> Iterator[Decision]:
    """What is decided in a C file that Cython made, by the rule above."""
    numbers: Counter[tuple[str, int]] = Counter()
    passes: dict[str, list[tuple[int, bool]]] = {}
    passing, early = False, list[tuple[int, bool]]()
    lines = list(statements(text))
    for at, (c_line, line, origin) in enumerate(lines):
        if found := EARLY.match(line):
            passes.setdefault(found[1], []).append((c_line, passing))
        asks = DECISION.match(line)
        if asks and SOURCE.fullmatch(origin[0]) and all(map(OURS.fullmatch, NAME.findall(asks[1]))):
            numbers[origin] += 1
            ends, bang = line.endswith("break;"), asks[1].startswith("!")
            empty = not ends and lines[at + 1][1].strip() == "} else {"
            passing = bang
            inner = empty or "__pyx_temp" in asks[1]  # the loop over a list has a block of its own for its end
            yield Decision(
                *origin, numbers[origin], c_line, bang or ends, bang and not (ends or empty), not (ends or empty),
                tuple(within(lines[at + 1 + inner :], int(not ends))), tuple(early),
            )  # fmt: skip
        found = WHOLE.match(line)
        early = passes.pop(found[1], []) if found else []


def within(lines: list[tuple[int, str, tuple[str, int]]], depth: int) -> Iterator[int]:
    """The numbers of the first lines, until the block that they are in ends; not of what is in blocks in it."""
    level = depth
    for number, line, _ in lines[:LOOKED_AT]:
        level -= line.strip().startswith("}")
        if level < min(depth, 1):
            return
        if level == depth:
            yield number
        level += line.count("{") - line.count("}") + line.strip().startswith("}")


def notes_of(kernels: Sequence[str]) -> list[Path]:
    """What gcc noted of each kernel when it was built; none if one was not built, or since made anew."""
    folder = f"temp.*-{sys.implementation.cache_tag}/build/release/cython/cowengine/core"
    notes = [file for kernel in kernels for file in OBJECTS.glob(f"{folder}/{kernel}.gcno")]
    made = {file.stem: file.stat().st_mtime for file in notes}
    written = {file.stem: file.stat().st_mtime for file in C_FILES.glob("*.c")}
    is_new = all(kernel in written and made.get(kernel, 0) > written[kernel] for kernel in kernels)
    return notes if is_new and SITE.is_dir() else []


def counted(folder: Path, kernels: Sequence[str]) -> dict[str, dict[int, dict[str, Any]]]:
    """What gcov says of the kernels' C, whose notes and counts lie in a folder: lines by number, for each file."""
    notes = [f"{kernel}.gcno" for kernel in kernels]
    command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", *notes]
    said = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = {}
    for document in map(json.loads, said.splitlines()):
        for file in document["files"]:
            found[Path(file["file"]).name] = {line["line_number"]: line for line in file["lines"]}
    return found


def measure(tests: Sequence[str], kernels: Sequence[str], folder: Path) -> tuple[list[str], Counter[Branch]]:
    """Runs tests; which of them failed, and how often each branch of the kernels was taken."""
    notes = notes_of(kernels)
    for file in notes:
        shutil.copy2(file, folder)
    depth = len(notes[0].parent.parts) - 1  # of the place where a process would leave its counts
    environment = os.environ | {
        "PYTHONPATH": str(SITE), "GCOV_PREFIX": str(folder), "GCOV_PREFIX_STRIP": str(depth),
    }  # fmt: skip
    pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
    failed = failed_in([*pytest, *tests], environment)
    lines, taken = counted(folder, kernels), Counter[Branch]()
    for kernel in kernels:
        for decision in decisions((C_FILES / f"{kernel}.c").read_text()):
            if lines[f"{kernel}.c"].get(decision.c_line, {}).get("branches"):
                for way, count in decision.ways(lines[f"{kernel}.c"]).items():
                    taken[decision.file, decision.line, decision.number, way] += count
    return failed, taken


def main() -> int:
    parser = harness_parser("Counts the branches of kernels that tests take, and names those that they do not.", 0)
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="TEST", help="folders and files for pytest")
    parser.add_argument("--kernels", nargs="+", default=KERNELS, metavar="KERNEL", help="what is measured")
    arguments = parser.parse_args()
    tally = Tally()
    if not notes_of(arguments.kernels):
        tally.skipped = f"{SITE} is missing or old: make build/gcov-site"
        return tell(tally, arguments, "branches taken")
    with tempfile.TemporaryDirectory() as folder:
        failed, taken = measure(arguments.tests, arguments.kernels, Path(folder))
    for test in failed:
        tally.violation(f"failed: {test}")
    for (file, line, number, way), count in sorted(taken.items()):
        if count > 0:
            tally.count += 1
        else:
            source = (ROOT / file).read_text().splitlines()[line - 1].strip()
            tally.violation(f"{file}:{line}: decision {number} is never {way}: {source}")
    return tell(tally, arguments, "branches taken", shown=len(tally.violations))


if __name__ == "__main__":
    sys.exit(main())
