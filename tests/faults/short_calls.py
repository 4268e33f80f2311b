"""Below the I/O table: real calls that do less than they were asked to, that are interrupted, and that fail.

A library in front of libc (short_calls.c) cuts reads, writes and copies short, lets them be interrupted, and lets
closing, unlocking and dropping the cache fail, where the engine's files are concerned. A process that runs under it
plays random histories on a volume, a store or a target of backups, and one with large reads and writes: every byte,
list and answer has to be that of the model, as if nothing had happened.

    python -P tests/faults/short_calls.py --seeds 5 --seed 1
    python -P tests/faults/short_calls.py --seeds 1 --seed 1 --lies 25    # one write in so many is half done
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("faults", "crash", "model", "torture")]

from crash_workload import shrink  # noqa: E402
from told import Notes, a_runner, look  # noqa: E402

from cowengine import Volume  # noqa: E402
from cowengine.backup import last_backup, restore, verify_backup, write_backup  # noqa: E402

STEPS = 60
SOURCE = Path(__file__).with_name("short_calls.c")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no barrier waits for a disk
LARGE = 3 << 20


class Wrong(Exception):
    """Other bytes than were written, or another answer."""


def require(good: bool, what: str) -> None:
    if not good:
        raise Wrong(what)


# -- under it ----------------------------------------------------------------------------------------------------------
def a_history(seed: int, folder: Path) -> None:
    """What the model says is there in the end, also for who opens it anew."""
    rng = random.Random(seed)
    runner = a_runner(seed, folder, Notes())
    runner.create()
    runner.run(runner.random_steps(rng, STEPS))
    expected = runner.expectation()
    runner.close()
    look(runner, expected)


def large_pieces(seed: int, folder: Path) -> None:
    """Reads and writes of mebibytes, and all that copies."""
    rng = random.Random(seed)
    path, raw = folder / "large", folder / "raw"
    first, second = bytearray(LARGE), bytearray(LARGE)
    with Volume.create(path, LARGE, block_size=16384) as volume:
        fill(rng, volume, first, 2 << 20)
        snapshot = volume.snapshot("first")
        second[:] = first
        fill(rng, volume, second, 1 << 20)
        volume.seal()
        volume.snapshot("second")
        require(volume.verify().ok and volume.check().ok, "the volume is not sound")
        snapshot.export(raw)
        require(raw.read_bytes() == first, "an export has other bytes")
        for kind, name in (("full", "first"), ("incremental", "second")):
            write_backup(folder / "target", {"v": volume.get_snapshot(name)}, kind=kind)
        require(verify_backup(folder / "target").ok, "backups are damaged")
        snapshot.delete()
        volume.compact()
    with Volume.open(path) as volume:
        require(volume.pread(LARGE, 0) == second, "the live volume has other bytes")
        require(volume.get_snapshot("second").pread(LARGE, 0) == second, "the snapshot has other bytes")
    newest = last_backup(folder / "target")
    assert newest is not None
    (folder / "out").mkdir()
    restore(folder / "target", newest.id, folder / "out")
    require((folder / "out" / "v.raw").read_bytes() == second, "what is restored has other bytes")
    with Volume.adopt(raw, raw=True) as volume:
        fill(rng, volume, first, 1 << 20)
        require(volume.pread(LARGE, 0) == first, "an adopted image has other bytes")
        volume.flatten()
    require(raw.read_bytes() == first, "a flattened image has other bytes")


def fill(rng: random.Random, volume: Volume, content: bytearray, length: int) -> None:
    at, data = rng.randrange(LARGE - length), rng.randbytes(length)
    volume.pwrite(data, at)
    content[at : at + length] = data


def under_it(seed: int, folder: Path) -> int:
    """The child's work."""
    shrink()
    for work in (a_history, large_pieces):
        try:
            work(seed, folder)
        except Exception as error:
            print(f"{work.__name__}: {type(error).__name__}: {error}")
            return 1
    return 0


# -- around it ---------------------------------------------------------------------------------------------------------
@dataclass
class Told:
    """What was done to the calls of one process, and what it found wrong."""

    cut: int
    interrupted: int
    failed: int
    wrong: str


def built(folder: Path) -> Path:
    """The library. Raises CalledProcessError if it does not compile."""
    library = folder / "short_calls.so"
    compiler = [os.environ.get("CC", "gcc"), "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def play(library: Path, seed: int, lies: int = 0) -> Told:
    """A process of that seed."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        folder, told = Path(place) / "files", Path(place) / "told"
        folder.mkdir()
        environment = {
            **os.environ, "SHORT_SEED": str(seed), "SHORT_FOLDER": os.path.realpath(folder), "SHORT_TOLD": str(told),
            "LD_PRELOAD": " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library)))),
        }  # fmt: skip
        if lies:
            environment["SHORT_LIES"] = str(lies)
        command = [sys.executable, "-P", __file__, "--child", str(folder), "--seed", str(seed)]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        wrong = run.stdout.strip() or f"it ended with {run.returncode}" if run.returncode else ""
        return Told(*map(int, told.read_text().split()), wrong)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Histories on files whose calls are cut short, interrupted, fail.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from that one on")
    parser.add_argument("--lies", type=int, default=0, help="one write in so many is half done, and nobody is told")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        return under_it(arguments.seed, arguments.child)
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        library = built(Path(place))
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            told = play(library, seed, arguments.lies)
            bad += bool(told.wrong)
            print(f"seed {seed}: {told.cut:,} cut short, {told.interrupted:,} interrupted, {told.failed:,} failed; "
                  f"{told.wrong or 'nothing wrong'}")  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
