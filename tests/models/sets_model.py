"""Model: snapshot sets over two volumes, under power cuts, kills and failing barriers.

Each volume is reduced to its log: positions that hold a record with the contents of its one block, which it covers,
and with the events of sets that lead it. The contents live in slots; what a snapshot holds is a slot. The store has
a ring of two records. A set: fence all; data and deltas of each member durable up to a record; one record in the
store log; from then on the set is there, and each member takes the event into its own log with its next record.

Promises  After any crash a set is in all of its members or in none; if it was acknowledged, in all. Each member's
          snapshot holds what the volume held at the fence. Two sets never have the same members' epochs.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from crash_disk import Disk, operate, reopened
from exploring import Choose, Rule, Violation, pick

VOLUMES, RING, EPOCH_SKIP = 2, 2, 8
OPERATIONS = "write write write write flush flush set set set give_up event event recycle power kill lose fail"


class Record(NamedTuple):
    """Of a volume: after its events, the block lies in `slot`. `epoch` is that of the head behind it."""

    sequence: int
    events: tuple[tuple[int, int], ...]  # (number of the set, epoch); a set that was given up has number 0
    slot: int
    birth: int
    epoch: int


class SetRecord(NamedTuple):
    """Of the store log: for each member the snapshot's epoch and the record it stands behind."""

    sequence: int
    members: tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Member:
    """One open volume."""

    number: int
    sequence: int = 0
    slot: int = 0
    birth: int = 0
    epoch: int = 1
    frozen: int = 0
    slots: int = 0  # given out so far; none is reused here
    snapshots: dict[int, int] = field(default_factory=dict)  # set -> slot
    epochs: set[int] = field(default_factory=set)
    pending: list[tuple[int, int]] = field(default_factory=list)  # events that lead the next record
    holds: int = 0  # the last set that is in its own log, durably
    dirty_map: bool = False
    dirty_data: bool = False


class Store:
    """One process that has the store and its volumes open."""

    def __init__(self, disk: Disk, dropped: str, told: Told) -> None:
        self.disk, self.dropped, self.told = disk, dropped, told
        self.members = [Member(number) for number in range(VOLUMES)]
        self.sequence, self.base = 0, 0

    # -- opening -------------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Each volume for itself, then the store log, then what the members lack (I14)."""
        self.disk.barrier()
        self.disk.drop_cache()
        for member in self.members:
            self.replay(member)
        self.base = self.sequence = self.newest("header")
        records: list[SetRecord] = []
        while isinstance(record := self.disk.read(("store", (self.sequence + 1) % RING)), SetRecord):
            if record.sequence != self.sequence + 1:
                break
            records.append(record)
            self.sequence += 1
        for record in records:
            for member, (epoch, sequence) in zip(self.members, record.members, strict=True):
                self.bring_up(member, record, epoch, sequence)
        for member in self.members:
            self.write_event(member)

    def newest(self, kind: str) -> int:
        """The number in the better of two slots; one of them may be torn."""
        return max([value for slot in (0, 1) if isinstance(value := self.disk.read((kind, slot)), int)], default=0)

    def write_both(self, kind: str, value: int) -> None:
        for slot in (0, 1):
            self.disk.write((kind, slot), value)
            self.disk.barrier()

    def replay(self, member: Member) -> None:
        while isinstance(record := self.disk.read((f"log {member.number}", member.sequence + 1)), Record):
            for number, epoch in record.events:
                self.take(member, number, epoch)
                member.holds = max(member.holds, number)
            member.sequence, member.slot, member.birth = record.sequence, record.slot, record.birth
            member.epoch = max(member.epoch, record.epoch)
        skip = EPOCH_SKIP if self.dropped != "epochs_not_skipped" else 0
        member.epoch = max(member.epoch, self.newest(f"superblock {member.number}")) + skip
        self.write_both(f"superblock {member.number}", member.epoch)
        slots = [place for kind, place in self.disk.cache if kind == f"data {member.number}"]
        member.slots = max([place for place in slots if isinstance(place, int)], default=0)

    def bring_up(self, member: Member, record: SetRecord, epoch: int, sequence: int) -> None:
        """I23: what the store log has and the volume lacks, while its last record is the one named."""
        if record.sequence <= member.holds and self.dropped != "taken_twice":
            return
        if sequence != member.sequence:
            raise Violation("the store log's set does not fit the volume")
        self.take(member, record.sequence, epoch)
        member.pending.append((record.sequence, epoch))

    def take(self, member: Member, number: int, epoch: int) -> None:
        if epoch in member.epochs:
            raise Violation("an epoch was given to two snapshots")
        member.epochs.add(epoch)
        member.frozen = max(member.frozen, epoch)
        if number:
            member.snapshots[number] = member.slot

    # -- one volume ----------------------------------------------------------------------------------------------------
    def write(self, member: Member, value: Hashable) -> None:
        if member.birth <= member.frozen:
            member.slots += 1
            member.slot, member.birth, member.dirty_map = member.slots, member.epoch, True
        self.disk.write((f"data {member.number}", member.slot), value)
        member.dirty_data = True

    def commit(self, member: Member, *, with_events: bool = True) -> None:
        """Data, barrier, record, barrier. What waits of sets leads the record, if one is written."""
        if member.dirty_data:
            self.disk.barrier()
            member.dirty_data = False
        if not member.dirty_map and not (member.pending and with_events):
            return
        events = tuple(member.pending)
        if self.dropped == "event_behind_the_next_record" and member.dirty_map:
            events = ()
        record = Record(member.sequence + 1, events, member.slot, member.birth, member.epoch)
        self.disk.write((f"log {member.number}", record.sequence), record)
        self.disk.barrier()
        member.sequence, member.dirty_map = record.sequence, False
        member.holds = max([member.holds] + [number for number, _ in events])
        member.pending = [event for event in member.pending if event not in events]

    def write_event(self, member: Member) -> None:
        """A member's own log gets what waits, if nothing else brings it there before."""
        if member.pending:
            self.commit(member)

    # -- sets ----------------------------------------------------------------------------------------------------------
    def freeze(self) -> list[int]:
        """One instant over all members."""
        epochs = [member.epoch for member in self.members]
        for member in self.members:
            member.frozen, member.epoch = member.epoch, member.epoch + 1
        return epochs

    def set(self, *, give_up: bool = False) -> None:
        """The commit point is the record in the store log."""
        if self.sequence + 1 - self.base > RING:
            return  # the ring is full
        epochs, number = self.freeze(), self.sequence + 1
        if self.dropped != "members_not_made_durable":
            for member in self.members:
                self.commit(member, with_events=False)
        if give_up:
            for member, epoch in zip(self.members, epochs, strict=True):
                self.take(member, 0, epoch)
                member.pending.append((0, epoch))
            return
        images = [self.disk.read((f"data {m.number}", m.slot)) for m in self.members]
        self.told.begin(number, images)
        named = tuple((epoch, m.sequence) for m, epoch in zip(self.members, epochs, strict=True))
        if self.dropped == "members_commit_for_themselves":
            self.finish(number, epochs)
            for member in self.members:
                self.commit(member)
        if self.dropped == "member_goes_on_before_the_outcome":
            self.write(self.members[0], ("early", number))
            self.commit(self.members[0])
        self.disk.write(("store", number % RING), SetRecord(number, named))
        if self.dropped != "store_log_without_barrier":
            self.disk.barrier()
        self.sequence = number
        if self.dropped != "members_commit_for_themselves":
            self.finish(number, epochs)
        self.told.end(number)

    def finish(self, number: int, epochs: list[int]) -> None:
        for member, epoch in zip(self.members, epochs, strict=True):
            self.take(member, number, epoch)
            member.pending.append((number, epoch))

    def recycle(self) -> None:
        """I24: the store log gives up what every member's own log holds."""
        holds = [member.holds for member in self.members]
        base = max(holds) if self.dropped == "given_up_when_one_holds_it" else min(holds)
        if self.dropped == "given_up_when_taken":
            base = self.sequence
        if base > self.base:
            self.write_both("header", base)
            self.base = base


class Told:
    """What the user was told of sets."""

    def __init__(self) -> None:
        self.images: dict[int, list[Hashable]] = {}
        self.acknowledged: set[int] = set()

    def begin(self, number: int, images: list[Hashable]) -> None:
        """A set may exist from here on."""
        self.images[number] = images

    def end(self, number: int) -> None:
        """It does."""
        self.acknowledged.add(number)

    def check(self, store: Store, *, settled: bool) -> None:
        """All or none, with the right contents. `settled`: nothing is on its way, so what is missing never was."""
        for number in list(self.images):
            found = [member.snapshots.get(number) for member in store.members]
            if None in found:
                if any(slot is not None for slot in found):
                    raise Violation("a set is in one member only")
                if number in self.acknowledged:
                    raise Violation("a set that was acknowledged is gone")
                if settled:
                    del self.images[number]
                continue
            held = [store.disk.read((f"data {m.number}", slot)) for m, slot in zip(store.members, found, strict=True)]
            if held != self.images[number]:
                raise Violation("a snapshot of a set does not hold what its volume held")
            if settled:
                self.acknowledged.add(number)


RULES = {
    "members_commit_for_themselves": Rule("I23", "one record in the store log is the commit point"),
    "members_not_made_durable": Rule("I23", "before it, each member is durable up to the record it names"),
    "member_goes_on_before_the_outcome": Rule("I23", "a member's next record waits for the outcome"),
    "event_behind_the_next_record": Rule("I23", "and is led by the set's event"),
    "store_log_without_barrier": Rule("I23", "a set is acknowledged when that record is durable"),
    "taken_twice": Rule("I23", "a member takes only what its own log lacks"),
    "epochs_not_skipped": Rule("I21", "an open skips the epochs of sets that never were"),
    "given_up_when_taken": Rule("I24", "the store log keeps a set until each member's own log holds it"),
    "given_up_when_one_holds_it": Rule("I24", "each, not one"),
}


class SetsModel:
    """A store with two volumes."""

    name = "sets"
    rules = RULES

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """Operations with crashes, and a power cut at the end."""
        disk, told = Disk(choose), Told()
        store = self._open(disk, dropped, told, trace)
        names = [pick(choose, OPERATIONS) for _ in range(4 + choose(20))] + ["power"]
        for number, name in enumerate(names):
            trace.append(name)
            fuse = choose(8) if choose(4) == 1 else None
            ended = operate(disk, trace, fuse, partial(self._operate, store, name, ("v", number)))
            if ended:
                disk.end_process(ended)
                store = self._open(disk, dropped, told, trace)
            else:
                told.check(store, settled=False)

    @staticmethod
    def _operate(store: Store, name: str, value: Hashable) -> str:
        member = store.members[store.disk.choose(VOLUMES)]
        if name in ("power", "kill", "lose"):
            return name
        if name == "fail":
            store.disk.fail_in = store.disk.choose(4)
        elif name == "write":
            store.write(member, value)
        elif name == "flush":
            store.commit(member, with_events=True)
        elif name == "event":
            store.write_event(member)
        elif name == "give_up":
            store.set(give_up=True)
        else:
            getattr(store, name)()
        return ""

    @staticmethod
    def _open(disk: Disk, dropped: str, told: Told, trace: list[str]) -> Store:
        def settled() -> Store:
            store = Store(disk, dropped, told)
            store.open()
            told.check(store, settled=True)
            return store

        return reopened(
            disk, trace, lambda attempt: disk.choose(10) if attempt < 3 else None, settled, disk.end_process
        )
