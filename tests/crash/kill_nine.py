"""Kills a process that works on a real volume file, with signal 9 at a random moment, reopens the file and compares.

The child announces each step on a pipe before it calls the engine and acknowledges it after; the parent replays these
lines into the crash oracle, opens what the child left, checks it, and sends the next child on the same file. kill -9
leaves the page cache, so a missing barrier is not seen here (the explorer sees it); what is seen is real files, real
timing, background threads and real locks.

    python tests/crash/kill_nine.py --kills 1000 --seed 1 --folder FOLDER
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "model")]

from crash_oracle import Oracle, Violation, verify  # noqa: E402
from crash_workload import GEOMETRIES, Geometry, Runner, Step, random_steps  # noqa: E402
from memory_disk import MemoryDisk  # noqa: E402

from cowengine import Volume  # noqa: E402

STEPS = 400  # more than a child lives to do
KILLS_PER_FILE = 25


@dataclass
class Score:
    kills: int = 0
    acknowledged: int = 0
    in_flight: int = 0
    in_recovery: int = 0
    files: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills:,} kills on {self.files} files, {self.acknowledged:,} steps acknowledged, {self.in_flight:,} "
            f"kills within a step, {self.in_recovery:,} while opening, {len(self.violations)} violations"
        )


class FileRunner(Runner):
    """The runner on a file of the kernel's; as a child it tells `pipe` what it does."""

    def __init__(self, path: str, geometry: Geometry) -> None:
        super().__init__(MemoryDisk(), geometry)
        self.path = path
        self.background = False

    def create(self) -> None:
        geometry = self.geometry
        Volume.create(self.path, geometry.size, block_size=geometry.block_size, log_size=geometry.log_size).close()

    def open(self) -> None:
        self.volume = Volume.open(self.path, background=self.background)

    def work(self, steps: tuple[Step, ...], pipe: int) -> None:
        """The child's life."""
        self.open()
        os.write(pipe, b"O\n")
        for step in steps:
            operation = self.operation(step)
            if operation is None:
                continue
            self.oracle.begin(operation)
            os.write(pipe, b"B\n")
            result = self.call(operation)
            self.oracle.acknowledge(result)
            os.write(pipe, f"A {result.name} {result.change_id}\n".encode() if result is not None else b"A\n")

    def replay(self, steps: tuple[Step, ...], told: list[str], score: Score) -> None:
        """Brings the parent's oracle to what the child told."""
        lines = iter(told[1:])
        for step in steps:
            operation = self.operation(step)
            if operation is None:
                continue
            if next(lines, None) is None:
                return
            self.oracle.begin(operation)
            answer = next(lines, None)
            if answer is None:
                score.in_flight += 1
                return
            _, *named = answer.split(" ")
            self.oracle.acknowledge(SimpleNamespace(name=named[0], change_id=named[1]) if named else None)
            score.acknowledged += 1


def run_and_kill(runner: FileRunner, steps: tuple[Step, ...], delay: float, while_opening: bool) -> list[str]:
    """The complete lines that a child told before it was killed: `delay` seconds after its start, or after its open."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            runner.work(steps, writer)
            status = 0
        except BaseException as error:
            os.write(writer, f"\nE {error!r}\n".encode())
        finally:
            os._exit(status)
    os.close(writer)
    if not while_opening:
        select.select([reader], [], [], 30)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    with open(reader, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    lines = told.split("\n")[:-1]
    if any(line.startswith("E") for line in lines):
        raise Violation(f"the child failed: {lines[-1]}")
    return lines


def kills_on_one_file(folder: str, seed: int, kills: int, score: Score) -> None:
    rng = random.Random(seed)
    runner = FileRunner(os.path.join(folder, f"volume-{seed}"), rng.choice(GEOMETRIES))
    runner.create()
    score.files += 1
    for number in range(kills):
        steps = random_steps(rng, STEPS)
        runner.background = rng.random() < 0.5
        while_opening = rng.random() < 0.2
        try:
            told = run_and_kill(runner, steps, rng.random() * 0.01, while_opening)
            score.kills += 1
            score.in_recovery += not told
            runner.replay(steps, told, score)
            look(runner)
        except Exception as error:
            score.violations.append(f"seed {seed}, kill {number}: {error!r}")
            return
    os.unlink(runner.path)


def look(runner: FileRunner) -> None:
    """Opens what the child left, compares it, and resumes the oracle there."""
    expected = runner.oracle.expectation()
    volume: Any = Volume.open(runner.path, background=False)
    with volume:
        found = verify(volume, expected)
        report = volume.check()
        if not report.ok:
            raise Violation(f"check: {report.problems[:3]}")
        runner.oracle = Oracle.resume(expected, found)


def kill_many(folder: str, kills: int, seed: int) -> Score:
    score = Score()
    while score.kills < kills and not score.violations:
        kills_on_one_file(folder, seed + score.files, min(KILLS_PER_FILE, kills - score.kills), score)
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills a working process again and again.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where the volume files go; default: a temporary folder")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        score = kill_many(folder, arguments.kills, arguments.seed)
    elapsed = time.monotonic() - started
    print(*score.violations, sep="\n")
    print(f"seed {arguments.seed}: {score}, {elapsed:.0f} s, {score.kills / elapsed:.0f} kills/s")
    return 1 if score.violations else 0


if __name__ == "__main__":
    sys.exit(main())
