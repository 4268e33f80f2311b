"""Model: threads inside the calls. Writers, readers, discards, fences, flushes, sets, rollbacks, shrinks and reclaims
of two volumes take turns in small steps.

A step is what happens under a volume's mutex, or one read or write of half a block; between any two steps any other
thread may run. So writes smaller than a block are here, and two of them may meet in one block. A thread is a
generator: it yields where it gives way, and what it yields says when it may go on. If nobody may, that is a fault
too.

Promises  A snapshot, also one of a set over both volumes, is a consistent cut: what returned before it is in it,
          and if a write is, so is all that had returned when that write began. A read sees what was there at some
          moment between its begin and its end. When a flush returns, what had returned before it is durable, in map
          and data. A record names no data that is not durable. No write is lost. In the end no slot has leaked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from exploring import Choose, Rule, Steps, Violation, pick, take_turns

BLOCKS, HALVES = 2, 2
READ_STEPS = 8
FOREVER = 1 << 60

Place = tuple[int, int]  # block, half


@dataclass(frozen=True)
class Entry:
    """Where a block is and since when; a hole has the value it was discarded with."""

    slot: int = 0
    birth: int = 0
    hole: int = 0


@dataclass(eq=False)
class Write:
    """What the oracle knows of a write or discard of half a block: its value, and when it began and returned."""

    value: int
    begin: int
    end: int = FOREVER


@dataclass(eq=False)
class Flight:
    """A write under way."""

    blocks: range
    epoch: int
    old: list[Entry]
    new: list[Entry]

    @property
    def places_anew(self) -> bool:
        return self.old != self.new


@dataclass(eq=False)
class Batch:
    """What one record makes durable, taken in one step; `whole`: the map was kept, and all its data must be there."""

    map: list[Entry]
    freed: list[int]
    writes: int
    serial: int
    whole: bool = False


@dataclass(eq=False)
class Snapshot:
    """A map that was kept."""

    parent: Snapshot | None
    map: list[Entry]
    size: int
    epoch: int
    image: dict[Place, int]
    cursor: int = 0
    deleted: bool = False


@dataclass(eq=False)
class Volume:
    """The shared state of one volume, all of it under its mutex but for the bytes."""

    map: list[Entry] = field(default_factory=lambda: [Entry() for _ in range(BLOCKS)])
    size: int = BLOCKS
    epoch: int = 1
    frozen: int = 0
    fencing: bool = False
    paused: bool = False
    locked: bool = False  # the commit lock
    flights: list[Flight] = field(default_factory=list)
    parent: Snapshot | None = None
    snapshots: list[Snapshot] = field(default_factory=list)
    limit_epoch: int = 0  # the free rule: what is younger is the head's alone
    reclaiming: Snapshot | None = None
    data: dict[Place, int] = field(default_factory=dict)  # by slot and half
    pending: list[tuple[int, Place]] = field(default_factory=list)  # data not yet durable: number of the write, place
    data_durable: dict[Place, int] = field(default_factory=dict)
    map_durable: list[Entry] = field(default_factory=lambda: [Entry() for _ in range(BLOCKS)])
    slots: int = 0
    free: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    freed: list[int] = field(default_factory=list)  # by the open batch
    waiting: list[tuple[int, int]] = field(default_factory=list)  # era, slot
    era: int = 0
    readers: dict[int, int] = field(default_factory=dict)
    writes: int = 0
    synced: int = 0
    takes: int = 0
    takes_done: int = 0
    log: dict[Place, list[Write]] = field(
        default_factory=lambda: {(b, h): [Write(0, 0, 0)] for b in range(BLOCKS) for h in range(HALVES)}
    )


class Threads:
    """The calls, step by step."""

    def __init__(self, choose: Choose, dropped: str) -> None:
        self.choose, self.dropped = choose, dropped
        self.volumes = [Volume(), Volume()]
        self.clock = self.serial = 0

    def tick(self) -> None:
        """A step begins."""
        self.clock += 1

    # -- writing (I1, I2, I3, I6) --------------------------------------------------------------------------------------
    def write(self, v: Volume) -> Steps:
        """Half a block, a whole one, or the second half of the first block and the first half of the second."""
        first = self.choose(BLOCKS)
        shape = self.choose(4)
        places = [(first, shape)] if shape < 2 else [(first, 0), (first, 1)] if shape == 2 else [(0, 1), (1, 0)]
        blocks = range(places[0][0], places[-1][0] + 1)
        begin, self.serial = self.clock, self.serial + 1
        value = self.serial
        rest: dict[Place, int] = {}
        if self.dropped == "rest_copied_before_the_wait":
            rest = {(b, h): self.current(v, v.map[b], h) for b in blocks for h in range(HALVES)}
            yield None
        if blocks.stop > v.size and self.dropped == "size_checked_before_the_wait":
            return
        yield lambda: not v.paused and not self.overlaps(v, blocks)
        if blocks.stop > v.size and self.dropped != "size_checked_before_the_wait":
            return  # out of range
        flight = self.place(v, blocks)
        if self.dropped == "epoch_read_before_registering":
            yield None
        v.flights.append(flight)
        writes = self.noted(v, places, value, begin)
        if self.dropped == "published_before_written":
            self.publish(v, flight)
            yield None
        yield from self.transfer(v, flight, places, value, rest)
        if self.dropped != "new_epoch_does_not_wait":
            yield lambda: not (v.fencing and flight.epoch == v.epoch and flight.places_anew)
        if self.dropped != "published_before_written":
            self.publish(v, flight)
        v.flights.remove(flight)
        v.writes += 1
        for write in writes:
            write.end = self.clock

    def overlaps(self, v: Volume, blocks: range) -> bool:
        """I2."""
        if self.dropped == "overlapping_writes_run":
            return False
        return any(set(flight.blocks) & set(blocks) for flight in v.flights)

    def place(self, v: Volume, blocks: range) -> Flight:
        """I1: in place what was born after the last frozen epoch, else in a slot that nobody uses."""
        old = [v.map[b] for b in blocks]
        new = [e if e.slot and e.birth > v.frozen else Entry(self.take_slot(v), v.epoch) for e in old]
        return Flight(blocks, v.epoch, old, new)

    def take_slot(self, v: Volume) -> int:
        if v.free:
            slot = v.free.pop(self.choose(len(v.free)))
            if any(entry.slot == slot for entry in v.map_durable):
                raise Violation("a slot is given out that the last durable map needs")
        else:
            v.slots += 1
            slot = v.slots
        v.used.add(slot)
        return slot

    def transfer(self, v: Volume, flight: Flight, places: list[Place], value: int, rest: dict[Place, int]) -> Steps:
        """The bytes, half a block at a time, with no lock held; what is not written is copied from where it was."""
        for block, old, new in zip(flight.blocks, flight.old, flight.new, strict=True):
            halves = {half: value for b, half in places if b == block}
            if new != old:
                for half in set(range(HALVES)) - set(halves):
                    halves[half] = rest.get((block, half), self.current(v, old, half))
                    yield None
            for half, written in halves.items():
                self.put(v, (new.slot, half), written)
                yield None

    def put(self, v: Volume, place: Place, value: int) -> None:
        self.serial += 1
        v.data[place] = value
        v.pending.append((self.serial, place))

    @staticmethod
    def current(v: Volume, entry: Entry, half: int) -> int:
        return v.data.get((entry.slot, half), 0) if entry.slot else entry.hole

    def publish(self, v: Volume, flight: Flight) -> None:
        for block, old, new in zip(flight.blocks, flight.old, flight.new, strict=True):
            if old != new:
                self.set_entry(v, block, new)

    def set_entry(self, v: Volume, block: int, entry: Entry) -> None:
        """I20: with it goes what it replaces, if no snapshot holds that."""
        old, v.map[block] = v.map[block], entry
        if old.slot and old.birth > self.limit(v, block):
            self.release(v, old.slot)

    def limit(self, v: Volume, block: int) -> int:
        above = v.parent
        if above is not None and above is v.reclaiming and block < above.cursor:
            return above.parent.epoch if above.parent else 0
        return v.limit_epoch

    def release(self, v: Volume, slot: int) -> None:
        if slot not in v.used:
            raise Violation("a slot was freed twice")
        if any(e.slot == slot for s in v.snapshots if not s.deleted for e in s.map):
            raise Violation("a slot was freed that a snapshot holds")
        v.used.discard(slot)
        (v.free if self.dropped == "freed_before_durable" else v.freed).append(slot)

    def noted(self, v: Volume, places: list[Place], value: int, begin: int, end: int = FOREVER) -> list[Write]:
        writes = [Write(value, begin, end) for _ in places]
        for place, write in zip(places, writes, strict=True):
            v.log[place].append(write)
        return writes

    def discard(self, v: Volume) -> Steps:
        """Under the mutex in one step, when no write of the block is under way."""
        block, begin = self.choose(BLOCKS), self.clock
        blocks = range(block, block + 1)
        if self.dropped != "discard_does_not_wait":
            yield lambda: not v.paused and not v.fencing and not self.overlaps(v, blocks)
        if block < v.size:
            self.punch(v, block, begin)

    def punch(self, v: Volume, block: int, begin: int) -> None:
        self.serial += 1
        self.noted(v, [(block, half) for half in range(HALVES)], self.serial, begin, self.clock)
        self.set_entry(v, block, Entry(0, v.epoch, self.serial))

    # -- reading (I5) --------------------------------------------------------------------------------------------------
    def read(self, v: Volume) -> Steps:
        """Half a block of the live volume: the slot is looked up under the mutex, and read later."""
        block, half, begin = self.choose(BLOCKS), self.choose(HALVES), self.clock
        yield None
        era, entry = v.era, v.map[block]
        v.readers[era] = v.readers.get(era, 0) + 1
        before = v.log[block, half]  # a rollback begins a new one
        for _ in range(READ_STEPS):
            yield None
            found = self.current(v, entry, half)
            if found not in self.visible(before, begin) | self.visible(v.log[block, half], begin):
                raise Violation("a read saw what was not there")
        v.readers[era] -= 1

    @staticmethod
    def visible(writes: list[Write], begin: int) -> set[int]:
        """What a call that began then may find."""
        returned = [n for n, write in enumerate(writes) if write.end < begin]
        return {write.value for write in writes[max(returned, default=0) :]}

    def read_snapshot(self, v: Volume) -> Steps:
        """Half a block of a snapshot, which may be deleted and reclaimed meanwhile."""
        yield None
        alive = [s for s in v.snapshots if not s.deleted]
        if not alive:
            return
        snap = alive[self.choose(len(alive))]
        block, half, era = self.choose(BLOCKS), self.choose(HALVES), v.era
        v.readers[era] = v.readers.get(era, 0) + 1
        for _ in range(READ_STEPS):
            yield None
            if self.current(v, snap.map[block], half) != snap.image[block, half]:
                raise Violation("a read of a snapshot saw what is not in it")
        v.readers[era] -= 1

    @staticmethod
    def turn_era(v: Volume) -> int:
        """Goes on when nobody reads since the era before."""
        if not v.readers.get(v.era - 1, 0):
            v.era += 1
        return v.era

    def retire(self, v: Volume, freed: list[int]) -> None:
        """I5, I7: a slot comes back two eras after the record that freed it."""
        since = self.turn_era(v) if freed else 0
        v.waiting += [(since, slot) for slot in freed]
        wait = {"slot_comes_back_at_once": 0, "slot_waits_one_era": 1}.get(self.dropped, 2)
        era = max(self.turn_era(v), self.turn_era(v))
        v.free += [slot for since, slot in v.waiting if since + wait <= era]
        v.waiting = [(since, slot) for since, slot in v.waiting if since + wait > era]

    # -- commit (I3, I4, I8) -------------------------------------------------------------------------------------------
    def lock(self, *volumes: Volume) -> Steps:
        for v in volumes:
            yield lambda v=v: not v.locked  # type: ignore[misc]
            v.locked = True

    def barrier(self, v: Volume) -> Steps:
        """Covers what was written before it began."""
        began = self.serial
        yield None
        for number, place in v.pending:
            if number <= began:
                v.data_durable[place] = v.data[place]
        v.pending = [(number, place) for number, place in v.pending if number > began]

    def take(self, v: Volume, *, whole: bool = False) -> Batch:
        batch = Batch(list(v.map), v.freed, v.writes, self.serial, whole)
        v.freed = []
        return batch

    def commit(self, v: Volume, batch: Batch | None = None) -> Steps:
        """Takes the batch; data barrier if there is new data; record; barrier; acknowledgement. The lock is held."""
        if batch is None:
            v.takes += 1
            batch = self.take(v)
        if batch.writes != v.synced and self.dropped != "record_before_data":
            yield from self.barrier(v)
            v.synced = batch.writes
        known = set() if batch.whole else set(v.map_durable)
        named = {entry.slot for entry in batch.map if entry not in known}
        if any(place[0] in named and number <= batch.serial for number, place in v.pending):
            raise Violation("a record names data that is not durable")
        yield from self.barrier(v)
        v.map_durable = batch.map
        if self.dropped == "synced_counts_from_return":
            v.synced = v.writes
        self.retire(v, batch.freed)
        v.takes_done = v.takes

    def flush(self, v: Volume) -> Steps:
        """A commit that began after the call will do."""
        begin = self.clock
        wanted = v.takes + (self.dropped != "flush_counts_the_running_commit")
        yield from self.lock(v)
        if v.takes_done < wanted:
            yield from self.commit(v)
        for (block, half), writes in v.log.items():
            entry = v.map_durable[block]
            found = v.data_durable.get((entry.slot, half), 0) if entry.slot else entry.hole
            if found not in self.visible(writes, begin):
                raise Violation("a flush returned and a write before it is not durable")
        v.locked = False

    # -- the fence (I6, I23) -------------------------------------------------------------------------------------------
    def fence(self, v: Volume) -> None:
        v.takes += 1
        v.frozen = v.epoch
        v.epoch += 1
        v.fencing = True

    def keep_root(self, v: Volume) -> Generator[Callable[[], bool] | None, None, tuple[Snapshot, Batch]]:
        """Waits for the writes of the epoch that ended; root, batch and free rule are of one step."""
        if self.dropped != "fence_does_not_wait":
            yield lambda: all(flight.epoch > v.frozen for flight in v.flights)
        places = [(b, h) for b in range(BLOCKS) for h in range(HALVES)]
        image = {(b, h): self.current(v, v.map[b], h) for b, h in places}
        snap = Snapshot(v.parent, list(v.map), v.size, v.frozen, image)
        v.snapshots.append(snap)
        v.parent = snap
        if self.dropped != "free_rule_moved_later":
            v.limit_epoch = v.frozen
        v.fencing = False
        return snap, self.take(v, whole=True)

    def snapshot(self, *volumes: Volume) -> Steps:
        """Of one volume, or as a set of both: one instant, then each on its own."""
        begin = self.clock
        yield from self.lock(*volumes)
        kept = []
        if self.dropped != "fenced_one_after_the_other":
            for v in volumes:
                self.fence(v)
        for v in volumes:
            if self.dropped == "fenced_one_after_the_other":
                self.fence(v)
            kept.append((v, *(yield from self.keep_root(v))))
            yield None
        self.check_cut([(v, snap.image) for v, snap, _ in kept], begin)
        for v, snap, batch in kept:
            yield from self.commit(v, batch)
            v.limit_epoch = snap.epoch
        for v in volumes:
            v.locked = False

    def set(self, _volume: Volume) -> Steps:
        yield from self.snapshot(*self.volumes)

    @staticmethod
    def check_cut(images: list[tuple[Volume, dict[Place, int]]], begin: int) -> None:
        """Is what the images hold closed under "had returned before it began"?"""
        inside: list[Write] = []
        outside: list[Write] = []
        for v, image in images:
            for place, writes in v.log.items():
                position = next((n for n, write in enumerate(writes) if write.value == image[place]), None)
                if position is None:
                    raise Violation("a snapshot holds what was never there")
                inside += writes[: position + 1]
                outside += writes[position + 1 :]
        latest = max([write.begin for write in inside] + [begin])
        if any(write.end < latest for write in outside):
            raise Violation("a snapshot lacks a write that something in it came after")

    # -- what stops the writers (M5) ----------------------------------------------------------------------------------
    def pause(self, v: Volume) -> Steps:
        v.paused = True
        yield lambda: not v.flights

    def rollback(self, v: Volume) -> Steps:
        """Back to the newest snapshot; what is replaced is kept as a snapshot, which is deleted here at once."""
        begin = self.clock
        yield from self.lock(v)
        target = v.parent
        if target is not None and not target.deleted:
            if self.dropped != "rollback_does_not_pause":
                yield from self.pause(v)
            self.fence(v)
            replaced, batch = yield from self.keep_root(v)
            v.map, v.size, v.parent, v.limit_epoch = list(target.map), target.size, target, target.epoch
            v.frozen, v.epoch = v.epoch, v.epoch + 1
            v.log = {place: [Write(target.image[place], begin, self.clock)] for place in v.log}
            batch.map = list(v.map)
            yield from self.commit(v, batch)
            replaced.deleted = True
            v.paused = False
        v.locked = False

    def shrink(self, v: Volume) -> Steps:
        """M1: to one block, or back to two."""
        begin = self.clock
        yield from self.lock(v)
        if v.size < BLOCKS:
            if v.map[1].slot:
                raise Violation("growing brought back what had been cut off")
            v.size = BLOCKS
        else:
            if self.dropped != "shrink_does_not_pause":
                yield from self.pause(v)
            v.size = 1
            self.punch(v, 1, begin)
        v.paused = False
        yield from self.commit(v)
        v.locked = False

    # -- giving back (I13) ---------------------------------------------------------------------------------------------
    def delete(self, v: Volume) -> Steps:
        """Deletes a snapshot and goes through its blocks; one commit a block."""
        yield from self.lock(v)
        alive = [s for s in v.snapshots if not s.deleted]
        if alive:
            alive[self.choose(len(alive))].deleted = True
            yield from self.commit(v)
        v.locked = False
        while (yield from self.reclaim_step(v)):
            pass

    def children(self, v: Volume, snap: Snapshot) -> list[list[Entry]]:
        """The maps of those that stand on a snapshot; the live one last."""
        maps = [s.map for s in v.snapshots if s.parent is snap]
        return [*maps, v.map] if v.parent is snap else maps

    def reclaim_step(self, v: Volume) -> Generator[Callable[[], bool] | None, None, bool]:
        yield from self.lock(v)
        if v.reclaiming is None:
            ready = [s for s in v.snapshots if s.deleted and len(self.children(v, s)) < 2]
            v.reclaiming = ready[0] if ready else None
        dead = v.reclaiming
        if dead is not None:
            block, found = dead.cursor, self.is_unshared(v, dead)
            if self.dropped == "compared_outside_the_mutex":
                yield None
            if found:
                self.release(v, dead.map[block].slot)
            dead.cursor += 1
            yield from self.commit(v)
            if dead.cursor == BLOCKS:
                self.drop(v, dead)
        v.locked = False
        return dead is not None

    def is_unshared(self, v: Volume, dead: Snapshot) -> bool:
        entry = dead.map[dead.cursor]
        above = dead.parent.epoch if dead.parent else 0
        shared = any(entries[dead.cursor].slot == entry.slot for entries in self.children(v, dead))
        return bool(entry.slot) and entry.birth > above and not shared

    @staticmethod
    def drop(v: Volume, dead: Snapshot) -> None:
        v.reclaiming = None
        v.snapshots.remove(dead)
        for snap in v.snapshots:
            if snap.parent is dead:
                snap.parent = dead.parent
        if v.parent is dead:
            v.parent = dead.parent
            v.limit_epoch = v.parent.epoch if v.parent else 0

    # -- the end -------------------------------------------------------------------------------------------------------
    def check_end(self) -> None:
        """All threads are done."""
        for v in self.volumes:
            for (block, half), writes in v.log.items():
                if self.current(v, v.map[block], half) != writes[-1].value:
                    raise Violation("a write is lost")
            held = {e.slot for entries in [v.map] + [s.map for s in v.snapshots] for e in entries if e.slot}
            if v.used != held:
                raise Violation("a slot has leaked" if v.used - held else "a slot in use is called free")


RULES = {
    "overlapping_writes_run": Rule("I2", "writes that touch one block never run at the same time"),
    "discard_does_not_wait": Rule("I2", "nor a write and a discard"),
    "rest_copied_before_the_wait": Rule("I2", "the rest of a block is copied when no other write of it runs"),
    "published_before_written": Rule("I3", "an entry is published after its block was written whole"),
    "record_before_data": Rule("I3", "what a record places is durable before it"),
    "synced_counts_from_return": Rule("I3", "a barrier covers what was written before it *began*"),
    "flush_counts_the_running_commit": Rule("I4", "a flush counts on commits that began after it only"),
    "freed_before_durable": Rule("I7", "what a batch frees comes back only when its record is durable"),
    "slot_comes_back_at_once": Rule("I5", "a freed slot waits for the reads that may need it"),
    "slot_waits_one_era": Rule("I5", "for two eras"),
    "fence_does_not_wait": Rule("I6", "a fence waits for the writes that began in the old epoch"),
    "epoch_read_before_registering": Rule("I6", "a write takes its epoch and is registered in one step"),
    "new_epoch_does_not_wait": Rule("I6", "a write of the new epoch is published after the root was kept"),
    "free_rule_moved_later": Rule("I6", "the free rule goes by the snapshot from the moment its root is kept"),
    "compared_outside_the_mutex": Rule("I13", "a reclaim compares, frees and moves its cursor in one step"),
    "fenced_one_after_the_other": Rule("I23", "all members of a set are fenced before the first root is kept"),
    "shrink_does_not_pause": Rule("M1", "a shrink waits for the writes under way"),
    "size_checked_before_the_wait": Rule("M1", "a write that waited looks at the size again"),
    "rollback_does_not_pause": Rule("M5", "a rollback waits for the writes under way"),
}


class ThreadsModel:
    """Calls of several threads on two volumes."""

    name = "threads"
    rules = RULES
    CALLS = "write write write write discard read read read_snapshot flush flush snapshot set rollback shrink delete"
    FEW = "write write read read read discard flush"

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """A few threads, each with a few calls."""
        threads = Threads(choose, dropped)
        kind = choose(3)
        some = (self.CALLS, " ".join(pick(choose, self.CALLS) for _ in range(5)), self.FEW)[kind].split()
        focus = choose(3)
        running: list[Steps] = []
        for number in range(2 + choose(4)):
            calls = [(some[choose(len(some))], choose(2) if focus == 0 else 0) for _ in range(1 + choose(4 + 3 * kind))]
            running.append(self._thread(threads, number, calls, trace))
        take_turns(choose, running, threads.tick)
        threads.check_end()

    @staticmethod
    def _thread(threads: Threads, number: int, calls: list[tuple[str, int]], trace: list[str]) -> Steps:
        for name, volume in calls:
            trace.append(f"{number}: {name} {volume}")
            yield from getattr(threads, name)(threads.volumes[volume])
            yield None
