"""Model: commit, checkpoint and recovery of one tiny volume, under power cuts, kills, failing barriers and rot.

Two blocks, six slots, a log of five positions that checkpoints recycle, three node areas, two superblocks. A commit
goes on in steps, and writes come between them, as from other threads. Two protocols: a commit takes *two barriers*
(one for the data, a record, one for that), or, where it can, only one: then its record *vouches* for the data with
checksums of it.

After each crash, also one inside recovery or one that follows another at once: map, size and snapshots are those of
the last acknowledged commit or of one in flight; each snapshot holds its image; a live block holds what the last
acknowledged flush left, a later write, or a torn one if there was a later one. A file that cannot be opened is a
fault.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from commit_rules import ONE_BARRIER, TWO_BARRIERS
from crash_disk import BarrierError, Disk, operate, reopened
from exploring import Choose, Violation, pick

BLOCKS, SLOTS, LOG, AREAS = 2, 6, 5, 3
EPOCH_SKIP = 8  # as many epochs as the records may name that a crash loses

OPERATIONS = (
    "write write write write write write discard flush flush snapshot snapshot snapshot set delete delete "
    "shrink grow end end end end end end end checkpoint checkpoint checkpoint close power power kill kill lose fail"
)
Slots = frozenset[int]
Op = tuple[Any, ...]


class Entry(NamedTuple):
    """Where a block is, and since which epoch."""

    slot: int
    birth: int


class State(NamedTuple):
    """What the nodes of a checkpoint hold."""

    map: tuple[Entry | None, ...]
    size: int
    snapshots: tuple[tuple[int, tuple[Entry | None, ...]], ...]
    epoch: int
    frozen: int


class Record(NamedTuple):
    """An entry of the log; `checks` are pairs of a slot and what it should hold."""

    salt: int
    sequence: int
    generation: int
    previous: int
    ops: tuple[Op, ...]
    checks: tuple[tuple[int, Hashable], ...]


class Superblock(NamedTuple):
    """`base` is what the nodes hold, `tip` what is confirmed."""

    generation: int
    area: int
    nodes: int
    base: int
    base_checksum: int
    tip: int
    tip_checksum: int
    salt: int
    epoch: int
    clean: bool


def applied(state: State, op: Op) -> State:
    """The state after one change of a record."""
    kind, *values = op
    if kind == "map":
        block, entry = values
        return state._replace(map=(*state.map[:block], entry, *state.map[block + 1 :]))
    if kind == "size":
        return state._replace(size=values[0])
    if kind == "snapshot":
        taken = (values[0], state.map)
        return state._replace(snapshots=(*state.snapshots, taken), frozen=values[1], epoch=values[1] + 1)
    return state._replace(snapshots=tuple(s for s in state.snapshots if s[0] != values[0]))


def reachable(state: State) -> set[int]:
    """The slots that the live map or a snapshot leads to."""
    maps = [state.map] + [entries for _, entries in state.snapshots]
    return {entry.slot for entries in maps for entry in entries if entry is not None}


@dataclass(eq=False)
class Batch:
    """Changes that share a record, and what the oracle must know: the state after it and the writes it has seen."""

    ops: list[Op] = field(default_factory=list)
    placed: set[int] = field(default_factory=set)
    freed: set[int] = field(default_factory=set)
    checks: dict[int, Hashable] = field(default_factory=dict)
    writes: int = 0
    freezes_in_place: bool = False  # a snapshot of what was written in place since the last barrier began
    state: State | None = None
    seen: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Flight:
    """A commit under way: its data barrier runs, then that of its record."""

    batch: Batch
    began: int
    sequence: int = 0  # 0: the record is not written yet
    checksum: int = 0


class Oracle:
    """What the user was told, and so what may be found after a crash."""

    def __init__(self, state: State) -> None:
        self.acknowledged, self.flight = state, list[Batch]()
        self.images: dict[int, list[Hashable]] = {}
        self.epochs: dict[int, int] = {}
        self.writes: list[list[Hashable]] = [[None] for _ in range(BLOCKS)]
        self.first = [0] * BLOCKS  # of `writes`, from here on they may be found

    def begin(self, batch: Batch) -> None:
        """A record is about to be written."""
        self.flight.append(batch)
        for op in batch.ops:
            if op[0] == "snapshot" and self.epochs.setdefault(op[2], op[1]) != op[1]:
                raise Violation("an epoch was given to two snapshots")

    def acknowledge(self, batch: Batch) -> None:
        """The user is told that it is durable."""
        assert batch.state is not None
        self.acknowledged, self.first = batch.state, [count - 1 for count in batch.seen]
        self.flight.remove(batch)

    def recovered(self, found: State, live: list[Hashable]) -> None:
        """After an open: is this what may be found?"""
        possible = [self.acknowledged] + [batch.state for batch in self.flight if batch.state is not None]
        if all((found.map, found.size, found.snapshots) != (s.map, s.size, s.snapshots) for s in possible):
            raise Violation("neither the last acknowledged commit nor one in flight")
        for block, value in enumerate(live):
            allowed = self.writes[block][self.first[block] :]
            is_torn = isinstance(value, tuple) and value[0] == "torn"
            if value not in allowed and not (len(allowed) > 1 and is_torn):
                raise Violation("a live block holds what was not written there since the last flush")
            self.writes[block] = [value]
        self.acknowledged, self.flight, self.first = found, [], [0] * BLOCKS


class Volume:
    """One process that has the file open. `vouches`: its records may."""

    def __init__(self, disk: Disk, oracle: Oracle, dropped: str, vouches: bool) -> None:
        self.disk, self.oracle, self.dropped, self.vouches = disk, oracle, dropped, vouches
        self.open = Batch()
        self.fenced: Batch | None = None
        self.flight: list[Flight] = []
        self.unconfirmed: Batch | None = None  # acknowledged, but a crash may still drop it (if it vouches)
        self.marks: set[int] = set()  # slots written in place since the last barrier began
        self.writes = self.synced = 0  # how many there were, and when the last data barrier began
        self.step = 0  # of a checkpoint
        self.coming: dict[str, Any] = {}  # the fields of its superblock

    # -- recovery (I14, I15) -------------------------------------------------------------------------------------------
    def superblocks(self) -> list[Superblock | None]:
        found = [self.disk.read(("superblock", slot)) for slot in (0, 1)]
        return [value if isinstance(value, Superblock) else None for value in found]

    def recover(self) -> None:
        """From what a crash left to a volume that may be written to."""
        newest = max((s for s in self.superblocks() if s), default=None)
        as_it_is = self.dropped == "clean_open_leaves_no_mark" and newest is not None and newest.clean
        if not as_it_is:
            self._read_what_the_disk_holds()
        both = self.superblocks()
        chosen = max((s for s in both if s), default=None)
        if chosen is None:
            raise Violation("cannot be opened: no superblock")
        state, self.sequence, self.checksum = self.replay(chosen)
        skip = {"epochs_not_skipped": 0, "one_epoch_skipped": 1}.get(self.dropped, EPOCH_SKIP)
        self.live = state._replace(epoch=max(state.epoch, chosen.epoch) + skip)
        self.free = set(range(SLOTS)) - reachable(state)
        self.acknowledged = (self.live, self.sequence, self.checksum)
        self.newest, self.older_slot = chosen, 1 - both.index(chosen)
        self.kept = [both[self.older_slot] or chosen, chosen]  # superblocks whose log and nodes are kept
        if not as_it_is and self.dropped != "open_writes_no_superblock":
            salt = chosen.salt if self.dropped == "salt_is_kept" else chosen.generation + 1
            self.write_both(
                chosen._replace(
                    tip=self.sequence, tip_checksum=self.checksum, epoch=self.live.epoch, clean=False, salt=salt
                ),
                "open",
            )
        self.oracle.recovered(self.live, self.view(self.live.map))

    def _read_what_the_disk_holds(self) -> None:
        if self.dropped != "open_without_first_barrier":
            try:
                self.disk.barrier()
            except BarrierError:
                if self.dropped != "open_ignores_the_error":
                    raise
        if self.dropped != "cache_is_believed":
            self.disk.drop_cache()

    def replay(self, chosen: Superblock) -> tuple[State, int, int]:
        """The chain of records that follows the nodes of a superblock."""
        nodes = self.disk.read(("nodes", chosen.area))
        if not isinstance(nodes, State) or hash(nodes) != chosen.nodes:
            raise Violation("cannot be opened: the nodes are not there")
        chain: list[Record] = []
        sequence, checksum = chosen.base, chosen.base_checksum
        while len(chain) < LOG:
            record = self.disk.read(("log", (sequence + 1) % LOG))
            if not isinstance(record, Record) or not self.follows(record, sequence, checksum, chosen):
                break
            chain.append(record)
            sequence, checksum = sequence + 1, hash(record)
        if sequence < chosen.tip and self.dropped != "short_chain_is_believed":
            raise Violation("cannot be opened: a confirmed record is missing")
        self._look_for_lost(chosen, chain)
        if sequence > chosen.tip and self.dropped != "last_record_is_believed" and self.has_wrong_check(chain[-1]):
            sequence, checksum = sequence - 1, chain.pop().previous
        for record in chain:
            for op in record.ops:
                nodes = applied(nodes, op)
        return nodes, sequence, checksum

    def follows(self, record: Record, sequence: int, checksum: int, chosen: Superblock) -> bool:
        salted = record.salt == chosen.salt or sequence < chosen.tip
        in_turn = record.sequence == sequence + 1 or self.dropped in ("sequence_ignored", "chain_ignored")
        linked = record.previous == checksum or self.dropped in ("previous_ignored", "chain_ignored")
        return salted and in_turn and linked

    def has_wrong_check(self, record: Record) -> bool:
        return any(self.disk.read(("data", slot)) != value for slot, value in record.checks)

    def _look_for_lost(self, chosen: Superblock, chain: list[Record]) -> None:
        for position in range(LOG):
            record = self.disk.read(("log", position))
            if not isinstance(record, Record) or record.generation <= chosen.generation:
                continue
            if self.dropped == "newer_is_refused" or (record not in chain and self.dropped != "newer_is_overlooked"):
                raise Violation("cannot be opened: a record names a superblock that is lost")

    # -- superblock and checkpoint (I11, I12) --------------------------------------------------------------------------
    def write_superblock(self, new: Superblock) -> None:
        self.newest = new._replace(generation=self.newest.generation + 1)
        self.disk.write(("superblock", self.older_slot), self.newest)
        if self.dropped != "superblock_in_one_slot":
            self.older_slot = 1 - self.older_slot

    def superblock_is_durable(self) -> None:
        self.kept = [self.newest] * 2 if self.dropped == "older_checkpoint_recycled" else [self.kept[1], self.newest]

    def write_both(self, new: Superblock, why: str) -> None:
        """A superblock that says what no record does: into both slots, a barrier each."""
        for _ in range(1 if self.dropped == f"{why}_writes_one_superblock" else 2):
            self.write_superblock(new)
            if self.dropped != f"{why}_without_last_barrier":
                self.disk.barrier()
            self.superblock_is_durable()

    def write_nodes(self, state: State, sequence: int, checksum: int) -> None:
        needed = self.kept[:1] if self.dropped == "nodes_over_the_newest" else self.kept
        area = min(set(range(AREAS)) - {superblock.area for superblock in needed})
        self.disk.write(("nodes", area), state)
        self.coming = {"area": area, "nodes": hash(state), "base": sequence, "base_checksum": checksum}
        self.coming |= {"tip": sequence, "tip_checksum": checksum, "clean": False, "epoch": state.epoch}

    def checkpoint(self) -> None:
        """One step of it: nodes, barrier, superblock, barrier. If it vouches: beside commits."""
        if self.flight and not self.vouches and self.dropped != "barriers_side_by_side":
            return
        if self.step == 0:
            self.write_nodes(*self.acknowledged)
        elif self.step == 2:
            self.write_superblock(self.kept[1]._replace(**self.coming))
            if self.dropped == "recycled_before_durable":
                self.kept = [self.newest] * 2
        elif self.flight and self.dropped != "barriers_side_by_side":
            return  # one barrier at a time (I8)
        elif self.step == 3 or self.dropped != "nodes_without_barrier":
            self._barrier_beside()
        if self.step == 3:
            self.superblock_is_durable()
            if self.dropped == "checkpoint_confirms" and self.coming["base"] == self.acknowledged[1]:
                self.confirm(self.unconfirmed)
        self.step = (self.step + 1) % 4

    def _barrier_beside(self) -> None:
        try:
            self.disk.barrier()
        except BarrierError:
            if self.flight and self.flight[0].sequence:
                self.acknowledge()  # its own barrier returns 0: the error was told already
            raise

    def commit_by_checkpoint(self) -> None:
        """If it vouches, for a batch that fits no record: nodes and both superblocks are the commit."""
        if self.flight or self.step or not self.vouches:
            return
        self.fence(start=False)
        batch, self.fenced = self.fenced, None
        assert batch is not None and batch.state is not None
        self.marks = set()
        self.oracle.begin(batch)
        self.write_nodes(batch.state, self.sequence, self.checksum)
        if self.dropped != "nodes_without_barrier":
            self.disk.barrier()
        self.write_both(self.kept[1]._replace(**self.coming), "batch")
        self.acknowledged = (batch.state, self.sequence, self.checksum)
        self.confirm(batch)
        self.confirm(self.unconfirmed)
        self.oracle.acknowledge(batch)

    def close(self) -> str:
        """I16: commits what is open; then the superblock says that the tip is confirmed."""
        if self.flight or self.step:
            return ""
        self.fence()
        while self.flight and not (self.dropped == "clean_before_durable" and self.flight[0].sequence):
            self.end()
        if self.fenced and self.vouches:
            self.commit_by_checkpoint()  # the log was full
        elif self.fenced:
            return ""
        self.write_superblock(self.kept[1]._replace(tip=self.sequence, tip_checksum=self.checksum, clean=True))
        self.disk.barrier()
        while self.flight:
            self.acknowledge()
        return "close"

    # -- writes (I1, I48) ----------------------------------------------------------------------------------------------
    def view(self, entries: tuple[Entry | None, ...]) -> list[Hashable]:
        return [self.disk.read(("data", entry.slot)) if entry else None for entry in entries]

    def change(self, op: Op) -> None:
        before = reachable(self.live)
        self.live = applied(self.live, op)
        self.open.ops.append(op)
        freed = before - reachable(self.live)
        (self.free if self.dropped == "reused_at_once" else self.open.freed).update(freed)

    def is_protected(self, slot: int) -> bool:
        """I48: placed by a record that recovery may still have to verify, or will be."""
        batches = [flight.batch for flight in self.flight]
        if self.dropped != "acknowledged_overwritten" or not batches:
            batches += [self.unconfirmed] if self.unconfirmed else []
        if self.dropped != "fenced_overwritten":
            batches += [self.fenced] if self.fenced else []
        guarded = self.vouches and self.dropped != "unconfirmed_overwritten"
        return guarded and any(slot in batch.placed for batch in batches)

    def write(self, block: int, value: Hashable) -> None:
        entry = self.live.map[block]
        if block >= self.live.size:
            return
        young = entry is not None and (entry.birth > self.live.frozen or self.dropped == "frozen_overwritten")
        if entry is not None and young and not self.is_protected(entry.slot):
            self.disk.write(("data", entry.slot), value)
            self.marks.add(entry.slot)
        elif self.free:
            slot = sorted(self.free)[self.disk.choose(len(self.free))]
            self.disk.write(("data", slot), value)
            self.free.discard(slot)
            self.open.placed.add(slot)
            self.change(("map", block, Entry(slot, self.live.epoch)))
        else:
            return  # no space
        self.writes += 1
        self.oracle.writes[block].append(value)

    def discard(self, block: int) -> None:
        if self.live.map[block] is not None:
            self.change(("map", block, None))
            self.oracle.writes[block].append(None)

    def resize(self, size: int) -> None:
        """M1: the size and the holes of the tail are in one record."""
        tail = [] if self.dropped == "shrink_in_two_records" else range(size, self.live.size)
        late = range(size, self.live.size) if self.dropped == "shrink_in_two_records" else []
        for block in tail:
            self.discard(block)
        self.fence(("size", size))
        for block in late:
            self.discard(block)
        if self.fenced or self.flight:  # what the user asked for is the whole of it
            (self.fenced or self.flight[-1].batch).state = self.live

    def snapshot(self, tag: int, *, alone: bool) -> None:
        """Freezes the epoch. Its event goes into a record of now, or leads the next one, as that of a set does."""
        event = ("snapshot", tag, self.live.epoch)
        self.oracle.images[tag] = [writes[-1] for writes in self.oracle.writes]
        if alone:
            self.fence(event)
        else:
            self.change(event)

    # -- commit (I3, I4, I7, I8) ---------------------------------------------------------------------------------------
    def fence(self, op: Op | None = None, *, start: bool = True) -> None:
        """Takes the open batch, with an event behind it; if it vouches, it shares a record with what waits already."""
        if op is not None:
            self.change(op)
        covered, takes_snapshot = set(self.open.placed), any(op[0] == "snapshot" for op in self.open.ops)
        batch, self.open = self.open, Batch()
        joined = self.fenced = self.fenced or Batch()
        joined.ops += batch.ops
        joined.placed |= batch.placed
        if takes_snapshot and self.marks and self.dropped != "marks_not_covered":
            joined.freezes_in_place = True  # I50
        joined.freed |= batch.freed
        joined.checks.update((slot, self.disk.read(("data", slot))) for slot in covered)
        joined.writes, joined.state, joined.seen = self.writes, self.live, [len(w) for w in self.oracle.writes]
        if start:
            self.start()

    def start(self) -> None:
        """Begins the commit of what is fenced, if none is under way and the log has room."""
        batch = self.fenced
        if batch is None or len(self.flight) > (self.dropped == "two_in_flight") or not self.has_room():
            return
        self.fenced = None
        flight = Flight(batch, self.disk.serial)
        self.flight.append(flight)
        two_barriers = not self.vouches or batch.freezes_in_place or self.disk.choose(2) == 0
        if two_barriers:
            batch.checks, batch.placed = {}, set()
        if two_barriers and batch.writes != self.synced and self.dropped != "record_before_data":
            return  # its data barrier runs; `end` goes on
        self.write_record(flight)

    def has_room(self) -> bool:
        """I9: nothing is written over that one of the superblocks needs."""
        needed = [superblock.base for superblock in self.kept]
        oldest = max(needed) if self.dropped == "log_of_the_older_overwritten" else min(needed)
        return self.sequence + 1 + len(self.flight) - LOG <= oldest or self.dropped == "log_overwritten"

    def write_record(self, flight: Flight) -> None:
        batch, known = flight.batch, self.kept[1]
        checks = tuple(sorted(batch.checks.items()))
        record = Record(known.salt, self.sequence + 1, known.generation, self.checksum, tuple(batch.ops), checks)
        self.oracle.begin(batch)
        self.disk.write(("log", record.sequence % LOG), record)
        self.sequence, self.checksum = record.sequence, hash(record)
        flight.began, flight.sequence, flight.checksum = self.disk.serial, self.sequence, self.checksum
        if self.dropped != "marks_swapped_at_return":
            self.marks = set()
        if self.dropped == "confirmed_before_durable" and not batch.ops:
            self.confirm(self.unconfirmed)
        if self.dropped == "acknowledged_before_durable":
            self.acknowledge()

    def end(self) -> None:
        """The barrier of the commit under way returns; the next one begins."""
        if not self.flight:
            return
        flight = next((f for f in self.flight if not f.sequence), self.flight[0])
        try:
            self.disk.barrier(flight.began)
        except BarrierError:
            if self.dropped != "error_is_forgotten":
                raise
        if flight.sequence:
            self.acknowledge()
            self.start()
        else:
            self.synced = flight.batch.writes
            self.write_record(flight)

    def acknowledge(self) -> None:
        flight = self.flight.pop(0)
        batch = flight.batch
        assert batch.state is not None
        self.confirm(self.unconfirmed)
        self.acknowledged = (batch.state, flight.sequence, flight.checksum)
        self.unconfirmed = batch if batch.checks else None
        if not batch.checks or self.dropped == "reused_when_acknowledged":
            self.free |= batch.freed
            batch.freed = set()
        self.synced = max(self.synced, batch.writes)
        if self.dropped == "marks_swapped_at_return":
            self.marks = set()
        if self.dropped == "synced_counts_from_return":
            self.synced = self.writes
        self.oracle.acknowledge(batch)

    def confirm(self, batch: Batch | None) -> None:
        """I49: recovery cannot drop it any more: what it freed comes back."""
        if batch is not None:
            self.free |= batch.freed
        if batch is self.unconfirmed:
            self.unconfirmed = None

    def idle(self) -> None:
        """If it vouches: an idle second, a record of nothing."""
        if self.vouches and self.unconfirmed and not self.flight and not self.fenced:
            seen = [first + 1 for first in self.oracle.first]
            self.fenced = Batch(state=self.acknowledged[0], seen=seen, writes=self.synced)
            self.start()

    @property
    def is_busy(self) -> bool:
        """Built: the lock is held, and whoever asks for a commit waits."""
        return not self.vouches and bool(self.flight or self.fenced or self.step) and self.dropped != "two_in_flight"


class CommitModel:
    """The protocol of one volume file."""

    STARTS = (
        "",
        "write write flush end end end",
        "write flush end end checkpoint checkpoint checkpoint checkpoint",
        "write write idle flush end end idle end",
    )

    def __init__(self, name: str, vouches: bool) -> None:
        self.name, self._vouches = name, vouches
        self.rules = ONE_BARRIER if vouches else TWO_BARRIERS
        self._operations = OPERATIONS + (" idle idle commit_by_checkpoint" if vouches else "")

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """A beginning, some operations with crashes, and a power cut."""
        disk, state = Disk(choose), State((None,) * BLOCKS, BLOCKS, (), 1, 0)
        disk.durable[("nodes", 0)] = state
        disk.durable[("superblock", 0)] = Superblock(0, 0, hash(state), 0, 0, 0, 0, 0, 1, True)
        disk.cache = dict(disk.durable)
        oracle, rots, few_values = Oracle(state), choose(3) == 0, choose(2) == 0
        script = self.STARTS[choose(len(self.STARTS))].split()
        some = " ".join(pick(choose, self._operations) for _ in range(10)) + " write end"
        mixture = some if choose(2) else self._operations
        script += [pick(choose, mixture) for _ in range(5 + choose(30))] + ["power"]
        volume = self._reopen(disk, oracle, dropped, trace, rots)
        for number, name in enumerate(script):
            trace.append(name)
            fuse = choose(6) if choose(15) == 1 else None
            value = ("v", choose(2) if few_values else number)
            ended = operate(disk, trace, fuse, partial(self._operate, volume, name, value, number))
            self._check(volume)
            if ended:
                self._crash(disk, pick(choose, "kill power") if ended == "close" else ended, rots)
                volume = self._reopen(disk, oracle, dropped, trace, rots)

    def _operate(self, volume: Volume, name: str, value: Hashable, number: int) -> str:
        """One operation; returns how the process ends, if it does."""
        choose, snapshots = volume.disk.choose, volume.live.snapshots
        if name in ("power", "kill", "lose"):
            return name
        if name == "fail":
            volume.disk.fail_in = choose(3)
        elif name == "write":
            volume.write(choose(BLOCKS), value)
        elif name == "discard":
            volume.discard(choose(BLOCKS))
        elif name in ("end", "checkpoint", "commit_by_checkpoint", "idle"):
            getattr(volume, name)()
        elif not volume.is_busy:
            if name == "flush":
                volume.fence()
            elif name in ("snapshot", "set") and len(snapshots) < 2:
                volume.snapshot(number, alone=name == "snapshot")
            elif name == "delete" and snapshots:
                volume.fence(("delete", snapshots[choose(len(snapshots))][0]))
            elif name in ("shrink", "grow"):
                volume.resize(1 if name == "shrink" else BLOCKS)
            elif name == "close":
                return volume.close()
        return ""

    @staticmethod
    def _check(volume: Volume) -> None:
        for tag, entries in volume.live.snapshots:
            if volume.view(entries) != volume.oracle.images[tag]:
                raise Violation("a snapshot has changed")

    def _reopen(self, disk: Disk, oracle: Oracle, dropped: str, trace: list[str], rots: bool) -> Volume:
        """Recovers; the first attempts may be cut short."""

        def recovered() -> Volume:
            volume = Volume(disk, oracle, dropped, self._vouches)
            volume.recover()
            self._check(volume)
            return volume

        return reopened(
            disk,
            trace,
            lambda attempt: disk.choose(12) if attempt < 4 else None,
            recovered,
            lambda how: self._crash(disk, how, rots),
        )

    @staticmethod
    def _crash(disk: Disk, how: str, rots: bool) -> None:
        disk.end_process(how)
        cells = [("superblock", slot) for slot in (0, 1)]
        both = [disk.durable.get(cell) for cell in cells]
        settled = all(isinstance(s, Superblock) for s in both) and not any(cell in disk.pending for cell in cells)
        if rots and settled and disk.choose(3) == 0:
            newest = max(s for s in both if isinstance(s, Superblock))
            cell = cells[both.index(newest)]
            disk.durable[cell] = disk.cache[cell] = disk.torn()
