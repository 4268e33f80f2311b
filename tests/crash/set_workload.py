"""Workloads on a store: snapshot sets over several volumes, among writes and snapshots of single ones.

A set is found in all of its members or in none. So what may be found is a list of alternatives, each of which says
one commit for every volume: while a set is in flight, all members before it or all behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from crash_oracle import Expectation, Found, Judge, Oracle, Shown, Violation, compare, judges, plain_buffer
from crash_workload import Geometry, Runner, Step, random_step

STORE = "/disk/store"
VOLUMES = {"a": Geometry(8 * 4096), "b": Geometry(6 * 4096 + 512), "c": Geometry(8 * 4096)}
MEMBERS = (("a", "b", "c"), ("a", "b"), ("b", "c"), ("c",))
SETS_MAX = 3
WEIGHTS = {
    "write": 20,
    "partial": 6,
    "discard": 3,
    "flush": 8,
    "snapshot": 5,
    "delete": 3,
    "checkpoint": 3,
    "rollback": 1,
}
SET_WEIGHTS = {"set": 12, "delete_set": 5, "reopen": 2}

Alternative = Mapping[str, Expectation]
Seen = tuple[dict[str, tuple[Expectation, Found]], frozenset[str]]  # per volume; and the names of the sets
ShownStore = tuple[dict[str, Shown], frozenset[str]]

# What bounded-exhaustive sequences are made of, and what is there before them.
SET_PRELUDE: tuple[Step, ...] = (
    ("single", "a", "write", 0, 4), ("single", "b", "write", 0, 2), ("set", 1), ("single", "b", "snapshot"),
    ("single", "a", "write", 1, 1),
)  # fmt: skip
SET_ALPHABET: tuple[Step, ...] = (
    ("set", 0), ("set", 1), ("set", 2), ("delete_set", 0), ("reopen",),
    ("single", "a", "write", 1, 1), ("single", "b", "partial", 100, 700), ("single", "c", "discard", 0, 2),
    ("single", "a", "flush"), ("single", "b", "snapshot"), ("single", "b", "delete", 0), ("single", "a", "checkpoint"),
    ("single", "a", "rollback", 0), ("single", "b", "reclaim"),
)  # fmt: skip


@dataclass(frozen=True)
class Joint:
    """What may be found in the volumes of a store: any of the alternatives, as a whole."""

    alternatives: tuple[Alternative, ...]
    sets: tuple[frozenset[str], ...]  # the names of the sets in each alternative


class StoreRunner:
    """A process that works on a store; the same face as `Runner` for the explorer."""

    rot_path = None
    opens_in_spite_of_faults = True  # a volume that cannot be opened is a problem of the store, not the end of it

    def __init__(self, disk: Any, serial: int = 0) -> None:
        """As `Runner`."""
        self.disk = disk
        self.io: Any = disk
        self.path = STORE
        self.background = False
        self.perform: Callable[[Callable[[], Any]], Any] = lambda action: action()
        self.intruder = None
        self.store: Any = None
        self.serial = serial
        self.buffer = plain_buffer
        self.poisoned = False
        self.members = {name: Runner(disk, geometry, serial) for name, geometry in VOLUMES.items()}
        self.sets: dict[str, tuple[str, ...]] = {}

    # -- what the explorer asks for ---------------------------------------------------------------------------------
    def create(self) -> None:
        from cowengine import Store

        self.store = Store.create(self.path, log_size=16384, io=self.io, background=False)
        for name, geometry in VOLUMES.items():
            self.members[name].volume = self.store.create_volume(
                name, geometry.size, block_size=geometry.block_size, log_size=geometry.log_size
            )
        self.disk.note(self.expectation())

    def open(self) -> None:
        from cowengine import Store

        self.store = Store.open(self.path, io=self.io, background=self.background)
        for name, member in self.members.items():
            member.volume = self.store.open_volume(name)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()

    def successor(self, disk: Any) -> StoreRunner:
        other = StoreRunner(disk, self.serial)
        other.path = self.path
        if self.io is not self.disk:
            other.io = self.io
        return other

    def engines(self) -> list[Any]:
        return [each.volume.engine for each in self.members.values() if each.volume is not None]

    @staticmethod
    def once_opened(expected: Joint) -> Joint:
        """What may be found when an open has begun."""
        return expected

    def look(self, expected: Joint, extents: bool = True) -> Seen:
        return self.compare(self.show(extents), expected)

    def show(self, extents: bool = True) -> ShownStore:
        if self.store.problems:
            raise Violation(f"the store has problems: {self.store.problems}")
        for each in self.store.snapshot_sets():
            if each.missing:
                raise Violation(f"set {each.name} lacks {each.missing}")
        for member in self.members.values():
            member.buffer = self.buffer
        volumes = {name: member.show(extents) for name, member in self.members.items()}
        return volumes, frozenset(each.name for each in self.store.snapshot_sets())

    def compare(self, shown: ShownStore, expected: Joint) -> Seen:
        volumes, names = shown
        faults = []
        for alternative, sets in zip(expected.alternatives, expected.sets, strict=True):
            try:
                found = {name: (each, compare(volumes[name], each)) for name, each in alternative.items()}
                if names != sets:
                    raise Violation(f"sets {sorted(names)}, expected {sorted(sets)}")
            except Violation as fault:
                faults.append(str(fault))
                continue
            return found, names
        raise Violation("no alternative holds for all volumes: " + " | ".join(faults))

    def judges(self, shown: ShownStore, expected: Joint, found: Seen) -> list[Judge]:
        """As `Runner`: the heads of all volumes, in the order in which they are shown."""
        faults: list[Judge] = []
        for name, each in shown[0].items():
            faults += judges(each, *found[0][name])
        return faults

    def resume(self, expected: Joint, found: Seen) -> None:
        each, shown = found
        for name, (expectation, look) in each.items():
            self.members[name].oracle = Oracle.resume(expectation, look)
        for name in shown:
            self.sets[name] = tuple(
                v for v, m in self.members.items() if any(s.name == name for s in m.oracle.model.snapshots)
            )
        self.disk.note(self.expectation())

    def random_steps(self, rng: random.Random, count: int) -> tuple[Step, ...]:
        return random_set_steps(rng, count)

    # -- steps ------------------------------------------------------------------------------------------------------
    def expectation(
        self, names: tuple[str, ...] = (), before: frozenset[str] | None = None, *, flushes: bool = True
    ) -> Joint:
        """`names` are the volumes with a step in flight: all of them before it, or all behind it.

        Without `flushes` the step may be found done although what was written before it in its volumes is lost: a set
        is deleted when the store log says so.
        """
        now = frozenset(self.sets)
        each = {name: member.oracle.expectation() for name, member in self.members.items()}
        if not names:
            return Joint((each,), (now,))
        old, new = dict(each), dict(each)
        for name in names:
            acked, in_flight = each[name].commits
            if not flushes:
                in_flight = replace(acked, snapshots=in_flight.snapshots)
            old[name] = replace(each[name], commits=(acked,))
            new[name] = replace(each[name], commits=(in_flight,))
        return Joint((old, new), (before if before is not None else now, now))

    def run(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            {"set": self.take_set, "delete_set": self.delete_set, "reopen": self.reopen}.get(step[0], self.single)(
                *step[1:]
            )
            if self.poisoned:
                return

    def single(self, name: str, *inner: Any) -> None:
        """A step on one volume. Members of sets are deleted with their set only."""
        member = self.members[name]
        member.serial = self.serial = self.serial + 1
        operation = member.operation(tuple(inner))
        self.serial = max(self.serial, member.serial)
        if operation is None or (operation[0] == "delete" and operation[1] in self.sets):
            return
        member.oracle.begin(operation)
        in_flight = (name,) if member.oracle.in_flight is not None else ()
        self.call(lambda: member.call(operation), (name,), self.expectation(in_flight))

    def take_set(self, number: int) -> None:
        if len(self.sets) >= SETS_MAX:
            return
        names = MEMBERS[number % len(MEMBERS)]
        self.serial += 1
        name, before = f"set{self.serial}", frozenset(self.sets)
        for each in names:
            self.members[each].oracle.begin(("snapshot", name))
        self.sets[name] = names
        self.call(lambda: self.store.snapshot(names, name).snapshots, names, self.expectation(names, before))

    def delete_set(self, number: int) -> None:
        if not self.sets:
            return
        name, before = sorted(self.sets)[number % len(self.sets)], frozenset(self.sets)
        names = self.sets.pop(name)
        for each in names:
            self.members[each].oracle.begin(("delete", name))
        expected = self.expectation(names, before, flushes=False)
        self.call(lambda: self.store.get_snapshot_set(name).delete(), names, expected)

    def reopen(self) -> None:
        def both() -> None:
            self.store.close()
            self.open()

        for member in self.members.values():
            member.oracle.begin(("reopen",))
        # Each volume closes on its own: what was not flushed may be durable in one and not in another.
        # A volume that the store itself could not open is opened anew for who asks for it.
        self.call(both, tuple(self.members), self.expectation(), opens_anew=True)

    def call(self, action: Any, names: tuple[str, ...], expected: Joint, opens_anew: bool = False) -> None:
        self.disk.note(expected)
        faults = self.disk.faults
        try:
            result = self.perform(action)
        except OSError as error:
            if self.disk.faults == faults:
                raise Violation(f"a step failed: {error!r}") from error
            self.poisoned = True
            return
        if self.disk.faults != faults and not opens_anew:
            raise Violation("a step succeeded although a barrier failed in it")
        for name in names:
            self.members[name].oracle.acknowledge(result[name] if isinstance(result, dict) else result)
        self.disk.note(self.expectation())


def random_set_steps(rng: random.Random, count: int) -> tuple[Step, ...]:
    names = list(WEIGHTS) + list(SET_WEIGHTS)
    picks = rng.choices(names, [*WEIGHTS.values(), *SET_WEIGHTS.values()], k=count)
    steps: list[Step] = []
    for pick in picks:
        if pick in SET_WEIGHTS:
            steps.append((pick,) if pick == "reopen" else (pick, rng.randrange(8)))
        else:
            steps.append(("single", rng.choice(list(VOLUMES)), *random_step(rng, pick)))
    return tuple(steps)
