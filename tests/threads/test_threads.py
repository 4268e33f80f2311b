"""Several threads on one volume: writes, snapshots, reads, deletes and flushes at the same time.

Blocks describe themselves: each 8-byte word of a write holds the writer and the number of its write, so that a torn
or misplaced block is seen in any version of the volume. The background thread of the engine runs.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.errors import FullBackupRequired, NotFoundError

BLOCK = 4096
BLOCKS = 96
WORD = struct.Struct("<II")

pytestmark = pytest.mark.timeout(60)  # a deadlock ends as a failure that shows every stack


def stamp(writer: int, number: int, length: int = BLOCK) -> bytes:
    return WORD.pack(writer, number) * (length // WORD.size)


def read_stamp(block: bytes) -> tuple[int, int]:
    """Writer and number of the write that a block holds; fails if it holds parts of two."""
    assert block == block[: WORD.size] * (len(block) // WORD.size), "a block holds parts of two writes"
    writer, number = WORD.unpack_from(block)
    return writer, number


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Any]:
    with Volume.create(str(tmp_path / "volume"), BLOCKS * BLOCK, log_size=1 << 16) as volume:
        yield volume
        report = volume.check()
        assert report.ok, report.problems


class Crowd:
    """Threads that run until one of them fails or all have ended; `stop` asks the endless ones to end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=self._run, args=(work, *arguments), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            self.errors.append(error)
            self.stop.set()


@contextmanager
def crowd() -> Iterator[Crowd]:
    """Joins on leaving; the first error of any thread is raised."""
    each = Crowd()
    try:
        yield each
    finally:
        each.stop.set()
        for thread in each.threads:
            thread.join()
    if each.errors:
        raise each.errors[0]


def write_blocks(volume: Any, stop: threading.Event, writer: int, blocks: range, rounds: int) -> None:
    """Round after round over its blocks, so that at any moment a prefix of them is one round ahead of the rest."""
    for number in range(1, rounds + 1):
        for block in blocks:
            if stop.is_set():
                return
            volume.pwrite(stamp(writer, number), block * BLOCK)


def test_writers_of_disjoint_blocks_do_not_disturb_each_other(volume: Any) -> None:
    with crowd() as threads:
        for writer in range(4):
            threads.start(write_blocks, volume, threads.stop, writer, range(writer, BLOCKS, 4), 40)
        for thread in threads.threads:
            thread.join()
    for block in range(BLOCKS):
        assert read_stamp(volume.pread(BLOCK, block * BLOCK)) == (block % 4, 40)


def test_a_snapshot_holds_a_prefix_of_each_writers_writes(volume: Any) -> None:
    """A write that depends on an earlier one is in no snapshot without it: whoever writes in order finds that order."""
    third = BLOCKS // 3
    with crowd() as threads:
        for writer in range(3):
            blocks = range(writer * third, (writer + 1) * third)
            threads.start(write_blocks, volume, threads.stop, writer + 1, blocks, 10**9)
        taken = [volume.snapshot(f"s{number}") for number in range(40)]
    for snapshot in taken:
        content = snapshot.pread(BLOCKS * BLOCK, 0)
        for writer in range(3):
            part = content[writer * third * BLOCK : (writer + 1) * third * BLOCK]
            numbers = [read_stamp(part[start : start + BLOCK])[1] for start in range(0, len(part), BLOCK)]
            assert numbers == sorted(numbers, reverse=True), "a later write is there without an earlier one"
            assert numbers[0] - numbers[-1] <= 1


def test_a_snapshot_has_what_was_written_before_it_and_nothing_written_after(volume: Any) -> None:
    """While others write elsewhere."""
    with crowd() as threads:
        for writer in range(2):
            threads.start(write_blocks, volume, threads.stop, writer, range(8 + writer, BLOCKS, 2), 10**9)
        for number in range(60):
            if threads.errors:
                break
            volume.pwrite(stamp(9, number, 8 * BLOCK), 0)
            snapshot = volume.snapshot(f"s{number}")
            volume.pwrite(stamp(9, number + 1000, 8 * BLOCK), 0)
            assert read_stamp(snapshot.pread(8 * BLOCK, 0)) == (9, number)
            assert read_stamp(volume.pread(8 * BLOCK, 0)) == (9, number + 1000)


def test_snapshots_stay_the_same_while_threads_write_and_delete(volume: Any) -> None:
    first: dict[str, bytes] = {}
    with crowd() as threads:
        for writer in range(2):
            threads.start(write_blocks, volume, threads.stop, writer, range(writer, BLOCKS, 2), 10**9)
        for number in range(80):
            if threads.errors:
                break
            snapshot = volume.snapshot(f"s{number}")
            first[snapshot.name] = snapshot.pread(BLOCKS * BLOCK, 0)
            if number % 3 == 2:
                name = sorted(first)[number % len(first)]
                volume.get_snapshot(name).delete()
                del first[name]
            for name, content in list(first.items())[-4:]:
                assert volume.get_snapshot(name).pread(BLOCKS * BLOCK, 0) == content, f"{name} changed"
    for name, content in first.items():
        assert volume.get_snapshot(name).pread(BLOCKS * BLOCK, 0) == content, f"{name} changed"
    volume.reclaim()


def test_halves_of_one_block_written_by_two_threads_both_arrive(volume: Any) -> None:
    """Also when the block is shared with a snapshot and each write has to copy the other half."""
    half = BLOCK // 2

    def write_half(stop: threading.Event, side: int, gate: threading.Barrier) -> None:
        for number in range(200):
            gate.wait()
            if side == 2:
                volume.snapshot(f"s{number}")
            else:
                for block in range(4):
                    volume.pwrite(stamp(side, number, half), block * BLOCK + side * half)
            gate.wait()
            if side == 0:
                for block in range(4):
                    content = volume.pread(BLOCK, block * BLOCK)
                    assert read_stamp(content[:half]) == (0, number)
                    assert read_stamp(content[half:]) == (1, number), "half of a block was lost"
            gate.wait()

    gate = threading.Barrier(3)
    with crowd() as threads:
        for side in range(3):
            threads.start(broken_gates_end(write_half, gate), threads.stop, side, gate)
        for thread in threads.threads:
            thread.join()


def broken_gates_end(work: Callable[..., None], gate: threading.Barrier) -> Callable[..., None]:
    """One thread's failure ends the others that wait for it."""

    def guarded(*arguments: Any) -> None:
        try:
            work(*arguments)
        except threading.BrokenBarrierError:
            pass
        except BaseException:
            gate.abort()
            raise

    return guarded


def test_overlapping_writes_leave_each_block_whole(volume: Any) -> None:
    """Writes of whole blocks over the same range: each block is one of them, at any time and in any snapshot."""
    span = 6

    def overwrite(stop: threading.Event, writer: int) -> None:
        for number in range(250):
            if stop.is_set():
                return
            first = (writer * 7 + number * 5) % (16 - span)
            volume.pwrite(stamp(writer, number, span * BLOCK), first * BLOCK)

    with crowd() as threads:
        for writer in range(4):
            threads.start(overwrite, threads.stop, writer)
        for number in range(40):
            if threads.errors:
                break
            snapshot = volume.snapshot(f"s{number}")
            for version in (volume, snapshot):
                for block in range(16):
                    read_stamp(version.pread(BLOCK, block * BLOCK))
            snapshot.delete()
        for thread in threads.threads:
            thread.join()


def test_reads_go_on_while_what_they_read_is_given_up(volume: Any) -> None:
    """A reader of a snapshot that is deleted under it, or becomes an anchor, gets the right bytes or an error, never
    other bytes.
    """
    current: list[tuple[Any, bytes]] = []
    volume.pwrite(stamp(1, 0, BLOCKS * BLOCK), 0)
    current.append((volume.snapshot("first"), stamp(1, 0, BLOCKS * BLOCK)))
    reads = []

    def reader(stop: threading.Event) -> None:
        while not stop.is_set():
            snapshot, content = current[-1]
            try:
                found = snapshot.pread(BLOCKS * BLOCK, 0)
            except NotFoundError:
                continue
            assert found == content
            reads.append(1)

    with crowd() as threads:
        for _ in range(3):
            threads.start(reader, threads.stop)
        for number in range(1, 120):
            if threads.errors:
                break
            volume.pwrite(stamp(1, number, BLOCKS * BLOCK), 0)
            snapshot = volume.snapshot(f"s{number}")
            old, _ = current[-1]
            current.append((snapshot, stamp(1, number, BLOCKS * BLOCK)))
            old.to_anchor()
            if number % 2:
                old.delete()
            volume.reclaim()
    assert len(reads) > 20


def test_flushes_snapshots_and_checkpoints_share_the_log(volume: Any) -> None:
    """Everything at once; what matters is that it ends, and that the file is sound (the fixture checks)."""

    def flush(stop: threading.Event) -> None:
        while not stop.is_set():
            volume.flush()

    def discard(stop: threading.Event) -> None:
        while not stop.is_set():
            volume.discard(3 * BLOCK, 5 * BLOCK)
            volume.write_zeroes(1000, 9000)

    def look(stop: threading.Event) -> None:
        while not stop.is_set():
            snapshots = volume.snapshots()
            if snapshots:
                with suppress(NotFoundError, FullBackupRequired):  # it may just have been deleted
                    volume.changed_extents(snapshots[0])
                volume.allocated_extents()
            volume.stats()

    with crowd() as threads:
        for work in (flush, flush, discard, look):
            threads.start(work, threads.stop)
        threads.start(write_blocks, volume, threads.stop, 1, range(BLOCKS), 10**9)
        for number in range(60):
            if threads.errors:
                break
            volume.snapshot(f"s{number}")
            if number % 10 == 9:
                volume.engine.checkpoint()
            if number >= 10:
                volume.get_snapshot(f"s{number - 10}").delete()
