"""Several threads on one volume: rows 4 and 17. Python's lock is held alike beside both, and released in every call."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, pairwise

import pytest
from race import Lane
from workload import BLOCK, MiB

ASKED_EVERY = 0.01  # seconds


class Writers:
    """Two threads that write at full speed while a third asks for something, 100 times a second."""

    def __init__(self, pool, pwrite, ask, plans):
        """`plans()` is where each thread writes in the next round."""
        self.pool, self.pwrite, self.ask, self.plans = pool, pwrite, ask, plans
        self.next = plans()
        self.slowest: list[float] = []  # by round: seconds of the write that one in a thousand is slower than
        self.asked = 0

    def lane(self, prepare):
        def both() -> None:
            prepare()
            self.next = self.plans()

        return Lane(self.run, both, sum(map(len, self.next)))

    def run(self):
        done = threading.Event()
        asking = self.pool.submit(self.go_on_asking, done)
        stamps = list(self.pool.map(self.write, self.next))
        done.set()
        asking.result()
        took = sorted(after - before for one in stamps for before, after in pairwise(one))
        self.slowest.append(took[-1 - len(took) // 1000] / 1e9)

    def write(self, offsets):
        """Returns when it began, and when each write ended."""
        pwrite, now, block = self.pwrite, time.perf_counter_ns, bytes(BLOCK)
        stamps = [now()]
        for offset in offsets:
            pwrite(block, offset)
            stamps.append(now())
        return stamps

    def go_on_asking(self, done):
        due = time.monotonic()
        while not done.wait(max(0.0, due - time.monotonic())):
            self.ask()
            self.asked += 1
            due = max(due + ASKED_EVERY, time.monotonic())


@pytest.fixture
def pool():
    with ThreadPoolExecutor(max_workers=8) as made:
        list(made.map(time.sleep, [0.01] * 8))  # so many threads are there
        yield made


def test_writes_while_snapshots_are_taken(race, scale, pool):
    """Row 4: random 4 KiB writes, snapshots 100 times a second; raw: in place, fdatasync 100 times a second."""
    size, each = scale(256, 8, quick=64) * MiB, scale(20_000, 100, quick=5000)
    writers = {}

    def entered(name, disk, workload, pwrite, ask, prepare):
        workload.fill(disk.pwrite, size, BLOCK)
        disk.flush()
        writers[name] = Writers(pool, pwrite, ask, lambda: [workload.offsets(size, each) for _ in range(2)])
        return writers[name].lane(prepare)

    def of_raw(raw, workload):
        return entered("raw", raw, workload, partial(os.pwrite, raw.fd), raw.flush, raw.flush)

    def of_volume(disk, workload):
        names = map(str, count())

        def delete_all() -> None:
            for old in disk.volume.snapshots():
                old.delete()

        return entered("cow", disk, workload, disk.pwrite, lambda: disk.snapshot(next(names)), delete_all)

    race.against(of_raw, size)
    race.enter(of_volume, size, goal=1.0, among=[race.subject("cowengine")])
    what = "two threads write, snapshots 100 times a second"
    race.run("4", what, rounds=20, rate=True)
    slowest = list(zip(writers["cow"].slowest, writers["raw"].slowest, strict=True))[-len(race.rounds()) :]
    race.beside(slowest, "p99.9 of one write", goal=1.0)
    asked = [writers[name].asked for name in ("cow", "raw")]
    race.figure("4", what, asked[0] / max(asked[1], 1), "x", variant="snapshots taken, per fdatasync beside them")


@pytest.mark.parametrize("what", ["reads", "writes"])
def test_threads(race, scale, pool, what):
    """Row 17: random 4 KiB reads, or writes in place, by 1, 2 and 4 threads; each does as much as one alone."""
    size, each = scale(256, 8, quick=64) * MiB, scale(20_000, 100, quick=5000)
    disk, raw = race.disk(race.subject("cowengine"), size), race.raw(size)
    for one in (disk, raw):
        race.workload.again().fill(one.pwrite, size, BLOCK)
        one.flush()
    work, raw_work = (reader(disk), raw_reader(raw)) if what == "reads" else (writer(disk), raw_writer(raw))
    for threads in (1, 2, 4):
        plans = [race.workload.offsets(size, each) for _ in range(threads)]
        race.against(in_threads(pool, raw_work, plans))
        race.enter_lane(in_threads(pool, work, plans), named(threads))
    race.run("17", f"random 4 KiB {what}", rounds=30)
    one = race.rounds(named(1))
    for threads in (2, 4):
        many = race.rounds(named(threads))
        # By how much an operation's time shrinks with the threads, here and beside.
        pairs = [(many[n][0] / one[n][0], many[n][1] / one[n][1]) for n in many.keys() & one.keys()]
        race.beside(pairs, f"scaling from 1 to {threads} threads", unit="x", goal=0.9, rate=True)


def named(threads):
    return f"{threads} thread{'s' if threads > 1 else ''}"


def in_threads(pool, work, plans):
    """A lane in which each plan is done by a thread of its own."""
    return Lane(lambda: list(pool.map(work, plans)), operations=sum(map(len, plans)))


def reader(disk):
    def read(offsets) -> None:
        buffer, pread_into = bytearray(BLOCK), disk.pread_into
        for offset in offsets:
            pread_into(buffer, offset)

    return read


def raw_reader(raw):
    def read(offsets) -> None:
        buffers, preadv, fd = [bytearray(BLOCK)], os.preadv, raw.fd
        for offset in offsets:
            preadv(fd, buffers, offset)

    return read


def writer(disk):
    def write(offsets) -> None:
        block, pwrite = bytes(BLOCK), disk.pwrite
        for offset in offsets:
            pwrite(block, offset)

    return write


def raw_writer(raw):
    def write(offsets) -> None:
        block, pwrite, fd = bytes(BLOCK), os.pwrite, raw.fd
        for offset in offsets:
            pwrite(fd, block, offset)

    return write
