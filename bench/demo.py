"""make demo: a live bank on cowengine volumes, snapshotted, backed up, lost, restored and checked.

    python bench/demo.py [--quick] [--keep] [--folder FOLDER]

1. A store with two SQLite databases: the bank, and an audit log that every transfer is noted in after its commit.
Several
   threads move money all the time, each with its own connections, in durable transactions.
2. Snapshot sets of both, through requestor, writers and the engine as provider; every few sets a backup: one full, the
others
   incremental. The content of each snapshot is hashed.
3. The load stops, the snapshots are hashed again, and the store is deleted.
4. Every backup of the chain is restored, compared with those hashes, and opened with the plain sqlite3 module.

Prints a table of what was measured and exits with 1 if any check failed. Uses a temporary folder and removes it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cowengine
from cowengine.sqlite import VFS, SQLiteWriter, extract

BANK = "bank.db"
AUDIT = "audit.db"
BALANCE = 1000
BLOCK = 4096
MIB = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    accounts: int = 20_000
    threads: int = 3
    sets: int = 30
    sets_per_backup: int = 5
    pause_seconds: float = 0.9


QUICK = Scale(accounts=500, threads=2, sets=6, sets_per_backup=1, pause_seconds=0.05)


@dataclass
class Figures:
    """What is measured on the way."""

    freeze_seconds: list[float] = field(default_factory=list)
    hold_seconds: list[float] = field(default_factory=list)
    barrier_seconds: list[float] = field(default_factory=list)
    increments: list[tuple[int, int]] = field(default_factory=list)  # bytes in the backup, bytes that changed
    full_bytes: int = 0
    load_seconds: float = 0.0
    restored_bytes: int = 0
    restore_seconds: float = 0.0


class CheckFailed(Exception):
    """Something that must hold does not."""


def check(holds: bool, what: str) -> None:
    """Raise CheckFailed unless it holds."""
    if not holds:
        raise CheckFailed(what)


# The load.


class Bank:
    """The databases and the threads that move money in them."""

    def __init__(self, vfs: VFS, scale: Scale) -> None:
        self.scale = scale
        self._vfs = vfs
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(scale.threads)]
        # Of each thread: transfers whose COMMIT in the bank has returned.
        self.acknowledged = [0] * scale.threads

    def create(self) -> None:
        """Every account gets the same balance; every thread a row that counts its transfers."""
        randomness = random.Random(1)
        rows = [(number, BALANCE, randomness.randbytes(60).hex()) for number in range(self.scale.accounts)]
        for name in (BANK, AUDIT):
            connection = self._vfs.connect(name)
            with connection:
                connection.execute("CREATE TABLE done (thread INTEGER PRIMARY KEY, transfers INTEGER)")
                connection.executemany("INSERT INTO done VALUES (?, 0)", [(n,) for n in range(self.scale.threads)])
                if name == BANK:
                    connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, owner TEXT)")
                    connection.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
            connection.close()

    def start(self) -> None:
        """All threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """All threads, after their current transfer. Raises what went wrong in one of them."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._failures:
            raise self._failures[0]

    def _run(self, number: int) -> None:
        try:
            with (
                closing(self._vfs.connect(BANK, busy_timeout=60)) as bank,
                closing(self._vfs.connect(AUDIT, busy_timeout=60)) as audit,
            ):
                self._transfer(number, bank, audit)
        except BaseException as failure:
            self._failures.append(failure)

    def _transfer(self, number: int, bank: Any, audit: Any) -> None:
        randomness = random.Random(number)
        while not self._stop.is_set():
            payer, payee = randomness.sample(range(self.scale.accounts), 2)
            amount = randomness.randint(1, 100)
            bank.execute("BEGIN IMMEDIATE")
            bank.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, payer))
            bank.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, payee))
            bank.execute("UPDATE done SET transfers = transfers + 1 WHERE thread = ?", (number,))
            bank.execute("COMMIT")
            self.acknowledged[number] += 1
            audit.execute("UPDATE done SET transfers = transfers + 1 WHERE thread = ?", (number,))


# Hashes of content: over the blocks that are not all zeros, each with its offset.


def hash_blocks(pieces: Iterator[tuple[int, bytes]]) -> str:
    """The hash of (offset, bytes) pieces of whole blocks, in ascending order."""
    digest = hashlib.blake2b(digest_size=16)
    zeros = bytes(BLOCK)
    for offset, piece in pieces:
        for first in range(0, len(piece), BLOCK):
            block = piece[first : first + BLOCK]
            if block != zeros:
                digest.update((offset + first).to_bytes(8, "little"))
                digest.update(block)
    return digest.hexdigest()


def snapshot_pieces(snapshot: Any) -> Iterator[tuple[int, bytes]]:
    """Everything that is allocated in a snapshot."""
    for offset, length in snapshot.allocated_extents().tolist():
        for first in range(offset, offset + length, MIB):
            yield first, snapshot.pread(min(MIB, offset + length - first), first)


def file_pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """Everything that is no hole in a sparse file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        position = 0
        while position < size:
            try:
                first = os.lseek(fd, position, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:  # nothing but a hole up to the end
                return
            position = os.lseek(fd, first, os.SEEK_HOLE)
            position += -position % BLOCK
            for offset in range(first, position, MIB):
                yield offset, os.pread(fd, min(MIB, position - offset), offset)
    finally:
        os.close(fd)


# The four acts.


@dataclass
class Point:
    """One snapshot set: what it must hold, and the backup of it, if there is one."""

    taken: Any
    least: list[int]
    most: list[int]
    hashes: dict[str, str]
    backup: Any = None


def take_sets(bank: Bank, requestor: Any, target: Path, figures: Figures, progress: Progress) -> list[Point]:
    """The snapshot sets and the backups, under load."""
    points: list[Point] = []
    scale = bank.scale
    for number in range(scale.sets):
        time.sleep(scale.pause_seconds)
        least = list(bank.acknowledged)
        taken = requestor.snapshot([BANK, AUDIT], f"set-{number:02}")
        most = [count + 1 for count in bank.acknowledged]
        figures.freeze_seconds.append(taken.ledger["freeze_window_seconds"])
        figures.hold_seconds.append(taken.ledger["hold_window_seconds"])
        hashes = {name: hash_blocks(snapshot_pieces(snapshot)) for name, snapshot in taken.snapshots.items()}
        points.append(Point(taken, least, most, hashes))
        if number % scale.sets_per_backup == scale.sets_per_backup - 1:
            back_up(requestor, target, points, figures)
        progress.say(f"{number + 1} of {scale.sets} sets, {sum(bank.acknowledged):,} transfers")
    return points


def back_up(requestor: Any, target: Path, points: list[Point], figures: Figures) -> None:
    """The newest set: full if there is no backup yet, else incremental."""
    earlier = [point for point in points if point.backup is not None]
    point = points[-1]
    kind = "incremental" if earlier else "full"
    point.backup = requestor.backup(str(target), kind=kind, snapshot_set=point.taken)
    if not earlier:
        figures.full_bytes = point.backup.bytes_written
        return
    changed = 0
    for name, snapshot in point.taken.snapshots.items():
        changed += int(snapshot.changed_extents(earlier[-1].taken.snapshots[name])[:, 1].sum())
    figures.increments.append((point.backup.bytes_written, changed))


def check_origin(store: Any, points: list[Point]) -> None:
    """Every volume is sound, and no snapshot has changed since, whatever was written, backed up and taken after it."""
    for name in (BANK, AUDIT):
        problems = store.open_volume(name).check().problems
        check(not problems, f"volume {name}: {problems}")
    for point in points:
        for name, snapshot in point.taken.snapshots.items():
            same = hash_blocks(snapshot_pieces(snapshot)) == point.hashes[name]
            check(same, f"snapshot {point.taken.name} of {name} is not what it was when it was taken")


def restore_and_check(point: Point, target: Path, folder: Path, scale: Scale, figures: Figures) -> None:
    """One backup, without the store it came from."""
    began = time.perf_counter()
    cowengine.restore(str(target), point.backup.id, str(folder))
    figures.restore_seconds += time.perf_counter() - began
    for name in (BANK, AUDIT):
        raw = folder / f"{name}.raw"
        figures.restored_bytes += sum(len(piece) for _, piece in file_pieces(raw))
        same = hash_blocks(file_pieces(raw)) == point.hashes[name]
        check(same, f"restored {name} of {point.taken.name} is not byte-identical to its snapshot")
        extract(raw, folder / name)
    check_databases(point, folder, scale)


def check_databases(point: Point, folder: Path, scale: Scale) -> None:
    """With Python's sqlite3: sound, no money lost or made, no acknowledged transfer missing, both of one instant."""
    where = f"set {point.taken.name}"
    done: dict[str, list[int]] = {}
    for name in (BANK, AUDIT):
        connection = sqlite3.connect(folder / name)
        found = connection.execute("PRAGMA integrity_check").fetchone()[0]
        check(found == "ok", f"{where}: integrity_check of {name}: {found}")
        done[name] = [count for (count,) in connection.execute("SELECT transfers FROM done ORDER BY thread")]
        if name == BANK:
            total = connection.execute("SELECT sum(balance) FROM account").fetchone()[0]
            check(total == scale.accounts * BALANCE, f"{where}: all balances together are {total}")
        connection.close()
    for thread, (moved, noted) in enumerate(zip(done[BANK], done[AUDIT], strict=True)):
        low, high = point.least[thread], point.most[thread]
        check(low <= moved <= high, f"{where}: thread {thread} made {low} to {high} transfers, the bank has {moved}")
        check(noted <= moved <= noted + 1, f"{where}: not one instant: {moved} transfers and {noted} audit notes")


def measure_barrier(folder: Path) -> list[float]:
    """Overwriting 4 KiB of a raw file durably, here and now: what any durable snapshot costs at least."""
    path = folder / "barrier"
    samples = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for number in range(60):
            began = time.perf_counter()
            os.pwrite(fd, os.urandom(BLOCK), 0)
            os.fdatasync(fd)
            if number >= 10:
                samples.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        path.unlink()
    return samples


# The whole.


class Progress:
    """A line that is rewritten on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Replace the line."""
        if self._shows:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def run(folder: Path, scale: Scale) -> tuple[Figures, int]:
    """Everything, in `folder`; returns the figures and the number of transfers. Raises CheckFailed."""
    figures, progress = Figures(), Progress()
    origin, target = folder / "origin", folder / "backups"
    figures.barrier_seconds = measure_barrier(folder)
    with ExitStack() as stack:
        store = stack.enter_context(cowengine.Store.create(str(origin)))
        vfs = stack.enter_context(VFS(store, capacity=1 << 30))
        bank = Bank(vfs, scale)
        bank.create()
        stack.callback(bank.stop)
        requestor = cowengine.Requestor(store, writers=[SQLiteWriter(vfs, BANK), SQLiteWriter(vfs, AUDIT)])
        began = time.perf_counter()
        bank.start()
        points = take_sets(bank, requestor, target, figures, progress)
        bank.stop()
        figures.load_seconds = time.perf_counter() - began
        progress.say("comparing every snapshot with what it was")
        check_origin(store, points)
    shutil.rmtree(origin)
    saved = [point for point in points if point.backup is not None]
    for number, point in enumerate(saved):
        progress.say(f"restoring {number + 1} of {len(saved)}")
        restore_and_check(point, target, folder / f"restored-{number}", scale, figures)
    progress.say("")
    return figures, sum(bank.acknowledged)


def print_table(figures: Figures, transfers: int, scale: Scale) -> None:
    """What was measured."""
    written = [increment for increment, _ in figures.increments]
    changed = [change for _, change in figures.increments]
    rows = [
        ("transfers (4 barriers each, twice)", f"{transfers:,}", f"{transfers / figures.load_seconds:,.0f} a second"),
        ("one barrier on a raw file, p50 / p99", *_quantiles(figures.barrier_seconds)),
        (f"snapshot (hold) of {scale.sets} sets, p50 / p99", *_quantiles(figures.hold_seconds)),
        ("freeze window, p50 / p99", *_quantiles(figures.freeze_seconds)),
        ("full backup", f"{figures.full_bytes:,} B", ""),
        (f"{len(written)} incrementals: written / changed", f"{sum(written):,} B", f"{sum(changed):,} B"),
        ("restored", f"{figures.restored_bytes:,} B", _rate(figures.restored_bytes, figures.restore_seconds)),
    ]
    for name, first, second in rows:
        print(f"  {name:<40} {first:>16} {second:>18}")


def _quantiles(seconds: list[float]) -> tuple[str, str]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{cuts[49] * 1e3:.2f} ms", f"{cuts[98] * 1e3:.2f} ms"


def _rate(count: int, seconds: float) -> str:
    return f"{count / MIB / seconds:,.0f} MiB/s" if seconds > 0 else ""


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 if a check failed, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything: does it still run?")
    parser.add_argument("--keep", action="store_true", help="leave the folder behind and print its path")
    parser.add_argument("--folder", help="where the temporary folder is made (default: the system's)")
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else Scale()
    folder = Path(tempfile.mkdtemp(prefix="cowengine-demo-", dir=options.folder))
    began = time.perf_counter()
    try:
        figures, transfers = run(folder, scale)
    except CheckFailed as failure:
        print(f"\ndemo: FAILED: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    finally:
        if options.keep:
            print(f"demo: left in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print_table(figures, transfers, scale)
    backups = scale.sets // scale.sets_per_backup
    print(f"  all checks passed: {scale.sets} sets, {backups} backups, in {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
