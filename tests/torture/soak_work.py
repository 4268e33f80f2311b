"""What the soak does, turn after turn: small commits, snapshots that come and go, and all that stands around them.

One volume is worked on and never closed; another one, and a store with two, live many short lives. Every block has a
stamp, so that what a snapshot shows can be compared when it goes.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cowengine import Snapshot, Volume
from cowengine.core.iotable import IOTable
from cowengine.store import Store

BLOCK = 4096
BLOCKS = 8192
LOG_BYTES = 1 << 20
CACHE_BYTES = 4 << 20  # so that it is soon full
GROWN = 64  # blocks that the volume has more at times
COMMITS_A_TURN = 10
SNAPSHOTS_MAX, ANCHORS_MAX = 8, 3
LIFE_EVERY, SET_EVERY = 100, 500  # turns
MEMBERS = ("one", "two")
SEEN_BLOCKS = 3  # of a snapshot, compared before it goes
Stamps = array  # of 64 bits, by block


class WrongBytes(Exception):
    """A snapshot does not show what was there when it was taken."""


class CountingTable(IOTable):
    """Counts the bytes that are read through it."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self.bytes_read += length
        return super().pread(fd, length, offset)

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        self.bytes_read += memoryview(buffer).nbytes
        return super().pread_into(fd, buffer, offset)


class Work:
    """All of it follows from a seed, but what background threads do meanwhile."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.turns = self.commits = self.rounds = self.deleted = 0
        self.stamps = array("Q", range(BLOCKS))
        self.kept: list[tuple[Snapshot, Stamps]] = []
        self.anchors: list[Snapshot] = []
        self.volume = Volume.create(
            folder / "volume", BLOCKS * BLOCK, log_size=LOG_BYTES, cache_size=CACHE_BYTES
        )  # fmt: skip
        for at, stamp in enumerate(self.stamps):
            self.volume.pwrite(stamp.to_bytes(8, "little") * (BLOCK // 8), at * BLOCK)
        Volume.create(folder / "short", 64 * BLOCK).close()
        with Store.create(folder / "store", log_size=1 << 16) as store:
            for name in MEMBERS:
                store.create_volume(name, 64 * BLOCK, log_size=1 << 16).close()
        self.bytes_of_open = self.bytes_of_look = 0
        self.now_and_then: tuple[Callable[[], None], ...] = (
            self.hold, self.clone, self.anchor, self.changes, self.read_beside, self.roll_back, self.resize,
            self.discard, self.seal,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        return self.commits + self.rounds

    def turn(self, *, commits: bool = True, round_: bool = True) -> None:
        """Some small commits, and a round: a snapshot, something with it, and the end of another one."""
        self.turns += 1
        if commits:
            for _ in range(COMMITS_A_TURN):
                self.write(self.volume)
                self.volume.flush()
            self.commits += COMMITS_A_TURN
        if not round_:
            return
        self.take(self.volume.snapshot(f"snapshot {self.rounds}"))
        self.rounds += 1
        if self.turns % 4 == 0:
            self.rng.choice(self.now_and_then)()
        while len(self.kept) > SNAPSHOTS_MAX:
            self.end_one()
        if self.turns % LIFE_EVERY == 0:
            self.short_life()
        if self.turns % SET_EVERY == 0:
            self.life_of_a_store()

    # -- the volume ---------------------------------------------------------------------------------------------------
    def write(self, head: Volume) -> None:
        """One to three blocks, mostly where others were written of late."""
        count = self.rng.randrange(1, 4)
        at = min(int(self.rng.random() ** 2 * BLOCKS), BLOCKS - count)
        stamp = self.rng.getrandbits(63)
        head.pwrite(stamp.to_bytes(8, "little") * (BLOCK // 8 * count), at * BLOCK)
        if head is self.volume:
            self.stamps[at : at + count] = array("Q", [stamp] * count)

    def take(self, snapshot: Snapshot) -> None:
        self.kept.append((snapshot, self.stamps[:]))

    def end_one(self) -> None:
        """Any of them but the newest is compared in some places and deleted."""
        snapshot, stamps = self.kept.pop(self.rng.randrange(len(self.kept) - 1))
        self.compare(snapshot, stamps)
        snapshot.delete()
        self.deleted += 1

    def compare(self, shown: Snapshot | Volume, stamps: Stamps) -> None:
        for _ in range(SEEN_BLOCKS):
            at = self.rng.randrange(BLOCKS)
            if shown.pread(BLOCK, at * BLOCK) != stamps[at].to_bytes(8, "little") * (BLOCK // 8):
                raise WrongBytes(f"{shown!r}, block {at}")

    def some(self) -> tuple[Snapshot, Stamps]:
        return self.rng.choice(self.kept)

    def hold(self) -> None:
        snapshot, _ = self.some()
        snapshot.hold("soak")
        snapshot.release()

    def clone(self) -> None:
        """Of a snapshot: written to, opened twice, with a snapshot of its own, and deleted."""
        snapshot, stamps = self.some()
        with snapshot.clone("clone") as clone:
            self.compare(clone, stamps)
            self.write(clone)
            own = clone.snapshot("of the clone")
        with self.volume.open_head("clone") as clone:
            self.write(clone)
        own.delete()
        self.volume.delete_head("clone")

    def anchor(self) -> None:
        snapshot, stamps = self.kept.pop(0)
        self.compare(snapshot, stamps)
        snapshot.to_anchor()
        self.anchors.append(snapshot)
        while len(self.anchors) > ANCHORS_MAX:
            self.anchors.pop(0).delete()
            self.deleted += 1

    def changes(self) -> None:
        snapshot, _ = self.some()
        self.volume.changed_extents(snapshot)
        snapshot.space()
        self.volume.du()

    def read_beside(self) -> None:
        """As another process would, while this one owns the volume."""
        snapshot, stamps = self.some()
        table = CountingTable()
        with Volume.open(self.folder / "volume", read_only=True, io=table) as reader:
            self.bytes_of_look = table.bytes_read
            self.compare(reader.get_snapshot(snapshot.name), stamps)

    def roll_back(self) -> None:
        target, stamps = self.some()
        self.take(self.volume.rollback(target))
        self.stamps = stamps[:]

    def resize(self) -> None:
        """By some blocks more, and back: what was there is compared no more."""
        self.volume.resize((BLOCKS + GROWN) * BLOCK)
        self.volume.pwrite(bytes(BLOCK), BLOCKS * BLOCK)
        self.volume.resize(BLOCKS * BLOCK)

    def discard(self) -> None:
        at = self.rng.randrange(BLOCKS - 8)
        self.volume.discard(at * BLOCK, 8 * BLOCK)
        self.stamps[at : at + 8] = array("Q", [0] * 8)

    def seal(self) -> None:
        self.volume.seal()

    # -- short lives --------------------------------------------------------------------------------------------------
    def short_life(self) -> None:
        """Another volume is opened, written, snapshotted and closed."""
        table = CountingTable()
        with Volume.open(self.folder / "short", io=table) as volume:
            self.bytes_of_open = table.bytes_read
            for snapshot in volume.snapshots():
                snapshot.delete()
            volume.pwrite(self.rng.randbytes(BLOCK), self.rng.randrange(64) * BLOCK)
            volume.snapshot(f"life {self.turns}")

    def life_of_a_store(self) -> None:
        with Store.open(self.folder / "store") as store:
            for each in store.snapshot_sets():
                each.delete()
            for name in MEMBERS:
                store.open_volume(name).pwrite(self.rng.randbytes(BLOCK), self.rng.randrange(64) * BLOCK)
            store.snapshot(MEMBERS, f"set {self.turns}")

    # -- the end ------------------------------------------------------------------------------------------------------
    def delete_all(self) -> None:
        """Every snapshot and anchor goes."""
        for snapshot, stamps in self.kept:
            self.compare(snapshot, stamps)
        for snapshot in self.volume.snapshots():
            snapshot.delete()
            self.deleted += 1
        self.kept, self.anchors = [], []
        self.volume.reclaim()
        self.volume.flush()
