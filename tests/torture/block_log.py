"""What reaches the disk under a mounted file system is written down, and mounted again as of any instant.

nbdkit serves the disk and logs each write and flush; nbdfuse, a loop device, and ext4 or XFS stand on it. A volume, a
store with snapshot sets or a target of backups is worked on; next to each acknowledgement stands how long the log was.
Then states that a power cut could have left are built: all that came before a flush, and of what came behind it a
prefix, or any subset. Each is mounted, opened, checked, and compared with what had been acknowledged when the log was
that long. So the file systems' own part of the promise is tested, too: what they send to the disk for an fdatasync, and
in which order.

    python -P tests/torture/block_log.py --seconds 30 --seed 1
    python -P tests/torture/block_log.py --seconds 30 --seed 1 --planted    # no barrier behind a record
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("crash", "model", "torture")]

from barriers import UnsyncedRecords  # noqa: E402
from crash_workload import shrink  # noqa: E402
from mounted import EXT4, XFS, Disk, FileSystem, disk, lacking, run_harness  # noqa: E402
from nbd_disk import ENTRY, FLUSH, PAGE, WRITE, Pages, served  # noqa: E402
from row import Tally  # noqa: E402
from told import Notes, a_runner, look  # noqa: E402

from cowengine.core.iotable import KERNEL, IOTable  # noqa: E402

FILE_SYSTEMS = (EXT4, XFS)
STEPS = 25
STATES_PER_HISTORY = 100


@dataclass(frozen=True)
class Entry:
    """Something that reached the disk; `end` is how long the log is with it."""

    kind: bytes
    offset: int
    length: int
    data: bytes
    end: int

    def apply(self, pages: Pages) -> None:
        if self.kind == WRITE:
            pages.write(self.data, self.offset)
        elif self.kind != FLUSH:
            pages.zero(self.offset, self.length)


class LoggedNotes(Notes):
    """Notes what may be found, with the length of the log at that time."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.noted: list[tuple[int, Any]] = []

    def note(self, expected: Any) -> None:
        self.noted.append((self.log.stat().st_size, expected))

    def at(self, length: int) -> Any:
        """What may be found when the log is that long; None before anything was promised."""
        return next((expected for size, expected in reversed(self.noted) if size <= length), None)


def read_log(path: Path) -> list[Entry]:
    raw, entries, at = path.read_bytes(), [], 0
    while at < len(raw):
        kind, offset, length = ENTRY.unpack_from(raw, at)
        at += ENTRY.size
        data = raw[at : at + length] if kind == WRITE else b""
        at += len(data)
        entries.append(Entry(kind, offset, length, data, at))
    return entries


@dataclass(frozen=True)
class State:
    """What a power cut left: all entries before `flushed`, and of those behind it the `arrived`, in order."""

    flushed: int
    arrived: tuple[int, ...]
    length: int  # of the log at the power cut


class Recording:
    """One history: what reached the disk, and who says what may be found there."""

    def __init__(self, seed: int, folder: Path, file_system: FileSystem, io: IOTable) -> None:
        rng = random.Random(seed)
        with served(folder, f"{file_system.name}-{seed}", file_system.size, logged=True) as source:
            self.notes = LoggedNotes(source.log)
            with disk(folder, file_system, source.image) as at:
                at.mount()
                runner = a_runner(seed, at.place, self.notes, io)
                try:
                    runner.create()
                    runner.run(runner.random_steps(rng, STEPS))
                finally:
                    runner.close()
                at.unmount()
        self.runner = runner
        self.entries = read_log(source.log)
        source.log.unlink()

    def states(self, rng: random.Random, count: int) -> Iterator[State]:
        """So many since something was promised, in the order of the log: prefixes, and subsets."""
        since = self.notes.noted[0][0]
        first = next(number for number, entry in enumerate(self.entries) if entry.end > since)
        flushed = 0
        for instant in sorted(rng.randrange(first, len(self.entries)) + 1 for _ in range(count)):
            flushed = max([flushed, *(n + 1 for n in range(flushed, instant) if self.entries[n].kind == FLUSH)])
            share = rng.choice((1, 1, 0.2, 0.5, 0.9))
            arrived = tuple(n for n in range(flushed, instant) if share == 1 or rng.random() < share)
            yield State(flushed, arrived, self.entries[instant - 1].end)


class Replay:
    """Builds the states of a recording in an image, one after the other, and looks at each."""

    def __init__(self, at: Disk, recording: Recording) -> None:
        self.at = at
        self.recording = recording
        self.durable = Pages()
        self.applied = 0

    def build(self, state: State) -> None:
        entries = self.recording.entries
        for entry in entries[self.applied : state.flushed]:
            entry.apply(self.durable)
        self.applied = state.flushed
        with self.at.image.open("r+b", buffering=0) as image:
            image.truncate(0)
            image.truncate(self.at.file_system.size)
            for number, page in self.durable.pages.items():
                os.pwrite(image.fileno(), page, number * PAGE)
            for number in state.arrived:
                entry = entries[number]
                data = entry.data if entry.kind == WRITE else bytes(entry.length)
                os.pwrite(image.fileno(), data, entry.offset)

    def look(self, state: State, extents: bool) -> None:
        self.build(state)
        self.at.mount()
        try:
            look(self.recording.runner, self.recording.notes.at(state.length), extents)
        finally:
            self.at.unmount()


def work(folder: Path, seed: int, seconds: float, planted: bool) -> Tally:
    tally = Tally(skipped=lacking(folder, FILE_SYSTEMS, "nbdkit", "nbdfuse"))
    if tally.skipped:
        return tally
    shrink()
    late = time.monotonic() + seconds
    entries = flushes = 0
    while time.monotonic() < late and not tally.violations:
        rng, file_system = random.Random(seed), FILE_SYSTEMS[seed % len(FILE_SYSTEMS)]
        try:
            recording = Recording(seed, folder, file_system, UnsyncedRecords() if planted else KERNEL)
        except OSError as error:
            tally.skipped = str(error)
            break
        entries += len(recording.entries)
        flushes += sum(entry.kind == FLUSH for entry in recording.entries)
        with disk(folder, file_system, made=True) as at:
            replay = Replay(at, recording)
            for state in recording.states(rng, STATES_PER_HISTORY):
                if time.monotonic() > late:
                    break
                try:
                    replay.look(state, extents=tally.count % 4 == 0)
                except Exception as error:
                    tally.violation(f"seed {seed}, {file_system.name}, {state}: {error!r}")
                    break
                tally.count += 1
        seed += 1
    tally.more = f"of {entries:,} log entries, {flushes:,} of them flushes"
    return tally


if __name__ == "__main__":
    sys.exit(run_harness(work, "Mounts what a power cut could have left of a disk.", 30, "states mounted"))
