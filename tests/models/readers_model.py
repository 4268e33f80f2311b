"""Model: readers in other processes, which open the file while its owner writes.

They share the page cache, so a reader sees what the owner wrote and no barrier has covered yet. The owner takes and
deletes snapshots, writes checkpoints to node areas that it recycles, and writes over the slot of a snapshot that is
gone. There is one lock byte for each snapshot. All of them advance step by step.

Promises  A reader that has a snapshot open reads what that snapshot holds. It is shown no snapshot that a power cut
          would undo. It calls nothing damaged that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from exploring import Choose, Rule, Steps, Violation, pick, take_turns

AREAS, SNAPSHOTS_MAX = 3, 3


@dataclass(frozen=True)
class Superblock:
    """Leads to the nodes in an area, written for this generation; they hold the records up to `base`."""

    generation: int
    area: int
    base: int


@dataclass(eq=False)
class File:
    """What everybody sees, and which of it is durable."""

    superblock: Superblock = field(default_factory=lambda: Superblock(0, 0, 0))
    areas: dict[int, tuple[int, frozenset[int]]] = field(default_factory=lambda: {0: (0, frozenset())})
    records: list[tuple[str, int]] = field(default_factory=list)
    durable: int = 0  # records that a barrier has covered
    announced: int = 0  # records that the owner says are durable
    data: dict[int, str] = field(default_factory=dict)  # snapshot -> what lies in its slot
    shared: dict[int, int] = field(default_factory=dict)  # snapshot -> readers that hold its byte
    exclusive: set[int] = field(default_factory=set)


class Processes:
    """The owner and its readers."""

    def __init__(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        self.choose, self.dropped, self.trace = choose, dropped, trace
        self.file, self.live, self.taken = File(), set[int](), 0

    # -- the owner -----------------------------------------------------------------------------------------------------
    def owner(self) -> Steps:
        for _ in range(2 + self.choose(8)):
            name = pick(self.choose, "snapshot snapshot delete delete checkpoint checkpoint")
            self.trace.append(f"owner: {name}")
            yield from getattr(self, name)()

    def commit(self, kind: str, number: int) -> Steps:
        """RD2: a record is announced behind its barrier."""
        file = self.file
        file.records.append((kind, number))
        if self.dropped == "announced_before_the_barrier":
            file.announced = len(file.records)
        yield None
        file.durable = len(file.records)
        yield None
        file.announced = len(file.records)

    def snapshot(self) -> Steps:
        if self.taken < SNAPSHOTS_MAX:
            self.taken += 1
            number = self.taken
            self.file.data[number] = f"image {number}"
            yield from self.commit("snapshot", number)
            self.live.add(number)

    def delete(self) -> Steps:
        """RD1: the snapshot's byte is taken before the record, and kept until the last slot was given back."""
        if not self.live:
            return
        number = sorted(self.live)[self.choose(len(self.live))]
        if self.dropped != "deleted_without_its_byte":
            if self.file.shared.get(number, 0):
                return  # in use
            self.file.exclusive.add(number)
        self.live.discard(number)
        if self.dropped == "byte_given_back_at_once":
            yield None
            self.file.exclusive.discard(number)
        yield from self.commit("delete", number)
        yield None
        self.file.data[number] = "something else"
        yield None
        if self.dropped != "deleted_without_its_byte":
            self.file.exclusive.discard(number)

    def checkpoint(self) -> Steps:
        """Into the area that was replaced two checkpoints ago; readers of old nodes are not waited for."""
        file, new = self.file, self.file.superblock.generation + 1
        area = new % AREAS if self.dropped != "nodes_over_the_newest" else 0
        base, holds = len(file.records), frozenset(self.live)
        file.areas[area] = (new, holds)
        yield None
        file.superblock = Superblock(new, area, base)
        yield None

    # -- a reader ------------------------------------------------------------------------------------------------------
    def reader(self) -> Steps:
        for _ in range(1 + self.choose(3)):
            self.trace.append("reader: open")
            number = yield from self.open_snapshot()
            if number is not None:
                yield from self.read(number)
                self.file.shared[number] -= 1

    def load(self) -> Generator[Callable[[], bool] | None, None, tuple[int, frozenset[int]]]:
        """The snapshots of the newest superblock and of the records behind it, as far as they are to be believed."""
        while True:
            superblock = self.file.superblock
            yield None
            written_for, found = self.file.areas[superblock.area]
            if written_for != superblock.generation:
                if self.dropped == "mismatch_is_damage" or self.file.superblock == superblock:
                    raise Violation("a reader calls damaged what was only replaced")
                continue  # RD3: it was recycled meanwhile
            yield None
            believed = self.believed(superblock)
            for kind, number in self.file.records[superblock.base : believed]:
                found = found | {number} if kind == "snapshot" else found - {number}
            return believed, found

    def believed(self, superblock: Superblock) -> int:
        """RD2: a record counts that another follows, that a superblock holds, or that was announced."""
        if self.dropped == "last_record_is_believed":
            return len(self.file.records)
        return max(len(self.file.records) - 1, superblock.base, self.file.announced)

    def open_snapshot(self) -> Generator[Callable[[], bool] | None, None, int | None]:
        """RD1: the byte first, then superblock and log again: only what is still there is pinned."""
        _, found = yield from self.load()
        if not found:
            return None
        number = sorted(found)[self.choose(len(found))]
        yield None
        if number in self.file.exclusive:
            return None  # it is being deleted
        self.file.shared[number] = self.file.shared.get(number, 0) + 1
        yield None
        if self.dropped != "not_looked_at_again":
            _, found = yield from self.load()
            if number not in found:
                self.file.shared[number] -= 1
                return None
        if not any(record == ("snapshot", number) for record in self.file.records[: self.file.durable]):
            raise Violation("a reader was shown a snapshot that a power cut would undo")
        return number

    def read(self, number: int) -> Steps:
        self.trace.append(f"reader: read {number}")
        for _ in range(1 + self.choose(4)):
            yield None
            if self.file.data[number] != f"image {number}":
                raise Violation("a snapshot was reclaimed under its reader")


RULES = {
    "deleted_without_its_byte": Rule("RD1", "a delete needs the snapshot's byte for itself"),
    "byte_given_back_at_once": Rule("RD1", "and keeps it until the reclaim has ended"),
    "not_looked_at_again": Rule("RD1", "a reader that has the byte looks again whether the snapshot is there"),
    "last_record_is_believed": Rule("RD2", "the last record counts when a superblock or the owner vouches for it"),
    "announced_before_the_barrier": Rule("RD2", "the owner vouches for a record behind its barrier"),
    "mismatch_is_damage": Rule("RD3", "a node that does not fit is damaged only under the same superblock"),
    "nodes_over_the_newest": Rule("RD3", "nodes never go where the newest superblock leads"),
}


class ReadersModel:
    """One owner and up to three readers."""

    name = "readers"
    rules = RULES

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """All of them at once."""
        processes = Processes(choose, dropped, trace)
        running = [processes.owner()] + [processes.reader() for _ in range(1 + choose(3))]
        take_turns(choose, running, lambda: None)
        if any(processes.file.shared.values()) or processes.file.exclusive:
            raise Violation("a lock is left behind")
