"""Model: checksums of data. When may a block be sealed, and when does its seal end?

Two blocks whose contents are two halves each, snapshots of one head, a sealer in the background that reads a block
in one step and enters its checksum in another, commits with a barrier under way, crashes, and rot. Slots are
reused. Deleting gives a snapshot's slots back in one record.

Promises  A block that is good is never called damaged. A block that rotted after its seal was durable is never
          returned, nor copied into another. What is not sealed is counted: when the sealer has nothing left to do,
          the count is zero.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from exploring import Choose, Rule, Violation, pick

BLOCKS = 2
OPERATIONS = (
    "write write write write write snapshot snapshot delete flush flush end end end seal seal seal seal seal rot crash "
    "crash relocate"
)

Content = tuple[int, int]


@dataclass
class Meta:
    """What records make durable: the map, the snapshots, the seals."""

    map: list[tuple[int, int] | None] = field(default_factory=lambda: [None] * BLOCKS)  # (slot, birth)
    snapshots: list[tuple[int, list[tuple[int, int] | None]]] = field(default_factory=list)
    epoch: int = 1
    frozen: int = 0
    seals: dict[int, Content] = field(default_factory=dict)  # slot -> the checksum; here, the contents themselves

    def reachable(self) -> set[int]:
        """All slots in use."""
        return {entry[0] for entries in [self.map] + [m for _, m in self.snapshots] for entry in entries if entry}

    def frozen_slots(self) -> set[int]:
        """The slots that a snapshot holds."""
        return {entry[0] for _, entries in self.snapshots for entry in entries if entry}


class Volume:
    """The rules."""

    def __init__(self, choose: Choose, dropped: str) -> None:
        self.choose, self.dropped = choose, dropped
        self.now, self.durable = Meta(), Meta()
        self.in_flight: Meta | None = None
        self.data: dict[int, Content] = {}
        self.unsynced: dict[int, list[Content]] = {}  # what a crash may bring back
        self.rotten: set[int] = set()  # slots that were ever spoilt,
        self.seen: set[int] = set()  # and those whose seal was durable then
        self.laundered: set[int] = set()
        self.freed: set[int] = set()
        self.serial = self.slots = 0
        self.reading: tuple[int, int, int, Content] | None = None  # the sealer's: slot, birth, block, what it read

    # -- writing -------------------------------------------------------------------------------------------------------
    def place(self, content: Content) -> int:
        free = set(range(1, self.slots + 1)) - self.freed - self.now.reachable() - self.durable.reachable()
        free -= self.in_flight.reachable() if self.in_flight else set()
        if not free:
            self.slots += 1
            free = {self.slots}
        slot = min(free)
        if self.dropped != "seal_outlives_its_block":
            self.now.seals.pop(slot, None)
        for spoilt in (self.rotten, self.seen, self.laundered):
            spoilt.discard(slot)
        self.put(slot, content)
        return slot

    def put(self, slot: int, content: Content) -> None:
        self.unsynced.setdefault(slot, [self.data.get(slot, (0, 0))]).append(content)
        self.data[slot] = content

    def is_damaged(self, slot: int) -> bool:
        """SE4: what a read finds out before it returns anything."""
        return slot in self.now.seals and self.now.seals[slot] != self.data[slot]

    def write(self) -> None:
        """A whole block, or half of one: the other half stays, or is copied from where it was."""
        block, self.serial = self.choose(BLOCKS), self.serial + 1
        whole, entry = self.choose(2) == 0, self.now.map[block]
        old = self.data[entry[0]] if entry else (0, 0)
        content = (self.serial, self.serial if whole else old[1])
        limit = self.now.frozen
        if self.dropped == "place_by_newest_live":
            limit = max((epoch for epoch, _ in self.now.snapshots), default=0)
        if entry and entry[1] > limit:
            self.put(entry[0], content)
            return
        if entry and not whole and self.dropped != "rest_copied_unverified" and self.is_damaged(entry[0]):
            return  # the write fails with the error of the read
        spoilt = entry is not None and not whole and entry[0] in self.seen | self.laundered
        self.now.map[block] = (slot := self.place(content), self.now.epoch)
        if spoilt:
            self.laundered.add(slot)

    def relocate(self) -> None:
        """Compaction of an unshared block: it moves with its birth and without its seal."""
        block = self.choose(BLOCKS)
        entry = self.now.map[block]
        if entry is None or entry[0] in self.now.frozen_slots() or self.is_damaged(entry[0]):
            return
        self.now.map[block] = (self.place(self.data[entry[0]]), entry[1])

    # -- snapshots and commits -----------------------------------------------------------------------------------------
    def snapshot(self) -> None:
        """Its record is in flight until `end`."""
        if self.in_flight is None and len(self.now.snapshots) < 3:
            self.now.snapshots.append((self.now.epoch, list(self.now.map)))
            self.now.frozen, self.now.epoch = self.now.epoch, self.now.epoch + 1
            self.flush()

    def delete(self) -> None:
        if self.in_flight is None and self.now.snapshots:
            before = self.now.reachable()
            del self.now.snapshots[self.choose(len(self.now.snapshots))]
            self.freed = before - self.now.reachable()
            self.flush()

    def flush(self) -> None:
        """Data barrier, then the record; it is durable at `end`."""
        if self.in_flight is None:
            self.unsynced.clear()
            self.in_flight = copy.deepcopy(self.now)

    def end(self) -> None:
        if self.in_flight is not None:
            self.durable, self.in_flight = self.in_flight, None
            self.freed = set()

    def crash(self) -> None:
        """The last durable record or the one in flight; live data old, new or torn."""
        known = self.in_flight if self.in_flight is not None and self.choose(2) else self.durable
        for slot, contents in self.unsynced.items():
            self.data[slot] = (contents[self.choose(len(contents))][0], contents[self.choose(len(contents))][1])
        skipped = max(known.epoch, self.now.epoch) + 8
        self.now, self.durable = copy.deepcopy(known), copy.deepcopy(known)
        self.now.epoch = skipped
        self.in_flight, self.reading, self.freed = None, None, set()
        self.unsynced.clear()

    # -- sealing -------------------------------------------------------------------------------------------------------
    def may_seal(self) -> list[tuple[int, int, int]]:
        """SE1: blocks that a snapshot froze, if only in memory: the record of the seal follows that of the snapshot.

        Nobody writes them in place any more, whatever is deleted.
        """
        maps = [mapped for _, mapped in self.now.snapshots]
        if self.dropped == "live_blocks_sealed":
            maps.append(self.now.map)
        entries = [(*entry, block) for mapped in maps for block, entry in enumerate(mapped) if entry]
        return sorted({e for e in entries if e[0] in self.now.reachable() and e[0] not in self.now.seals})

    def seal(self) -> None:
        """One of its two steps."""
        if self.reading is None:
            found = self.may_seal()
            if found:
                slot, birth, block = found[self.choose(len(found))]
                self.reading = (slot, birth, block, self.data[slot])
            return
        (slot, birth, block, content), self.reading = self.reading, None
        # SE2: between the two steps the block may have been given back or moved, and its slot to another. Slot and
        # birth do not tell: what compaction moves there keeps its birth.
        entries = [mapped[block] for mapped in [self.now.map] + [m for _, m in self.now.snapshots]]
        if (slot, birth) in entries or self.dropped == "sealed_without_a_second_look":
            self.now.seals[slot] = content

    def rot(self) -> None:
        slots = sorted(self.now.reachable() - set(self.unsynced))
        if slots:
            slot = slots[self.choose(len(slots))]
            self.serial += 1
            self.data[slot] = (self.data[slot][0], -self.serial)
            self.rotten.add(slot)
            if slot in self.now.seals and slot in self.durable.seals:
                self.seen.add(slot)

    # -- promises ------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Everything is read."""
        for slot in self.now.reachable():
            called = self.is_damaged(slot) and self.dropped != "seals_not_looked_at"
            if called and slot not in self.rotten:
                raise Violation("a good block is called damaged")
            if not called and slot in self.seen | self.laundered:
                raise Violation("damaged bytes are returned")

    def unsealed(self) -> int:
        return len(self.durable.frozen_slots() - set(self.now.seals))


RULES = {
    "place_by_newest_live": Rule("I1", "in place only what is younger than any epoch *ever* frozen on its head"),
    "live_blocks_sealed": Rule("SE1", "live blocks carry no checksum: a torn overwrite is no damage"),
    "sealed_without_a_second_look": Rule("SE2", "a seal is entered only if the block still lies where it was read"),
    "seal_outlives_its_block": Rule("SE3", "a seal ends when its slot gets another block"),
    "rest_copied_unverified": Rule("SE4", "what a write copies is verified like a read"),
    "seals_not_looked_at": Rule("SE4", "a read verifies what is sealed"),
}


class SealsModel:
    """Seals of one volume."""

    name = "seals"
    rules = RULES

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """Operations, then the sealer to its end."""
        volume = Volume(choose, dropped)
        for _ in range(5 + choose(40)):
            name = pick(choose, OPERATIONS)
            trace.append(name)
            getattr(volume, name)()
            volume.check()
        volume.end()
        for _ in range(4 * BLOCKS * 4):
            volume.seal()
        volume.check()
        if volume.unsealed():
            raise Violation("a frozen block stays without a seal")
