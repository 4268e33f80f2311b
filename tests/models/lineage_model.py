"""Model: who shares which slot.

Placing, freeing, deleting, reclaiming, rolling back, cloning, resizing, compacting, anchors, holds, and the lists of
changes. No I/O and no crash, but for the cursor of a reclaim.

A volume of at most four blocks. An operation happens at one moment, as under the volume's mutex; a reclaim advances
by one block at a time, and anything may come between two of its steps. Several heads, each in an epoch of its own: the
live one, which is always there, and writable clones.

Promises  A snapshot keeps its image. A freed slot is reachable from nowhere, and at the end nothing has leaked. A
          list of changes holds what was written or discarded and nothing else. A held snapshot stays, and so does the
          one that a clone was made of, or rolled back to last. Growing shows zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from exploring import Choose, Rule, Violation, pick

BLOCKS = 4
HEADS_MAX, MEMBERS_MAX = 3, 8
OPERATIONS = (
    "write write write write snapshot snapshot delete discard rollback clone delete_head anchor reclaim reclaim "
    "reclaim resize compact hold release give_up restart"
)


@dataclass(frozen=True)
class Entry:
    """Where a block is (slot 0: a hole) and since which epoch (0: since ever)."""

    slot: int = 0
    birth: int = 0


@dataclass(eq=False)
class Member:
    """A head or a snapshot. `version` is what the oracle knows: a number for each write or discard of a block."""

    parent: Member | None
    map: list[Entry]
    version: list[int]
    size: int = BLOCKS
    frozen: int = 0  # the last epoch ever frozen on this head
    epoch: int = 0  # that a snapshot ended, or that a head is in
    is_head: bool = False
    origin: Member | None = None  # of a clone: what the rules keep for it
    base: Member | None = None  # of a clone: what the user made it of, or rolled it back to last
    deleted: bool = False
    anchor: bool = False
    emptied: bool = False  # an anchor whose blocks are given back
    cursor: int = 0
    holds: int = 0
    image: list[int] = field(default_factory=list)

    def ancestors(self) -> list[Member]:
        """Itself, what it stands on, and so on."""
        found, member = [self], self.parent
        while member is not None:
            found.append(member)
            member = member.parent
        return found

    @property
    def readable(self) -> bool:
        """Whether its bytes are promised to anybody."""
        return not self.deleted and not self.anchor


class FullBackupNeeded(Exception):
    """There is no exact list of changes."""


class Volume:
    """The rules, each in one place."""

    def __init__(self, choose: Choose, dropped: str) -> None:
        self.choose, self.dropped = choose, dropped
        self.epoch, self.slots, self.serial = 1, 0, 0
        self.used: set[int] = set()
        self.content: dict[int, int] = {0: 0}
        self.live = Member(None, [Entry()] * BLOCKS, [0] * BLOCKS, epoch=1, is_head=True)
        self.members = [self.live]
        self.reclaiming: list[Member] = []
        self.durable_cursor = 0

    # -- rules ---------------------------------------------------------------------------------------------------------
    def may_write_in_place(self, head: Member, entry: Entry) -> bool:
        """I1."""
        limit = head.frozen
        if self.dropped == "place_by_newest_live":
            limit = max((m.epoch for m in self.snapshots() if m.readable), default=0)
        return entry.slot != 0 and entry.birth > limit

    def held_since(self, member: Member, block: int) -> int:
        """I20: the epoch of the nearest ancestor that holds this block's data; what is younger is the member's own."""
        above = member.parent
        if self.dropped == "free_whatever_is_replaced":
            return 0
        while above is not None and self.is_done_with(above, block):
            above = above.parent
        return above.epoch if above is not None else 0

    def is_done_with(self, member: Member, block: int) -> bool:
        """Whether a member no longer holds its blocks at this place: an anchor, or below the cursor of its reclaim."""
        if member.emptied:
            return self.dropped != "anchors_hold_data"
        if member in self.reclaiming:
            return self.dropped == "cursor_ignored" or (block < member.cursor and self.dropped != "cursor_unheeded")
        return False

    def children(self, member: Member) -> list[Member]:
        """The members that hold data and whose nearest ancestor with data is this one."""
        return [m for m in self.members if not m.emptied and self.data_parent(m) is member]

    @staticmethod
    def data_parent(member: Member) -> Member | None:
        """The nearest ancestor that holds data."""
        above = member.parent
        while above is not None and above.emptied:
            above = above.parent
        return above

    def is_kept(self, snap: Member) -> bool:
        """M3, I38: whether something stands against giving this snapshot up."""
        is_origin = any(head.origin is snap for head in self.heads()) and self.dropped != "origin_is_not_kept"
        return bool(snap.holds) or is_origin

    def next_epoch(self, member: Member) -> int:
        """I37: the epoch that a head goes on in, or a clone of a snapshot begins in."""
        if self.dropped == "epochs_of_each_head":
            return member.epoch + 1
        self.epoch += 1
        return self.epoch

    # -- state ---------------------------------------------------------------------------------------------------------
    def heads(self) -> list[Member]:
        return [m for m in self.members if m.is_head]

    def snapshots(self) -> list[Member]:
        return [m for m in self.members if not m.is_head]

    def view(self, member: Member) -> list[int]:
        return [self.content[e.slot] for e in member.map[: member.size]]

    def free(self, slot: int) -> None:
        if slot not in self.used:
            raise Violation("a slot was freed twice")
        if any(e.slot == slot for m in self.members if m.readable for e in m.map):
            raise Violation("a slot was freed that can be reached")
        self.used.discard(slot)

    def publish(self, head: Member, block: int, entry: Entry) -> None:
        old, head.map[block] = head.map[block], entry
        if old.slot and old.birth > self.held_since(head, block):
            self.free(old.slot)

    def place(self, content: int) -> int:
        self.slots += 1
        self.used.add(self.slots)
        self.content[self.slots] = content
        return self.slots

    # -- operations on a head ------------------------------------------------------------------------------------------
    def write(self, head: Member) -> None:
        block = self.choose(head.size)
        self.serial += 1
        head.version[block] = self.serial
        entry = head.map[block]
        if self.may_write_in_place(head, entry):
            self.content[entry.slot] = self.serial
        else:
            self.publish(head, block, Entry(self.place(self.serial), head.epoch))

    def discard(self, head: Member) -> None:
        self.punch(head, self.choose(head.size))

    def punch(self, head: Member, block: int) -> None:
        """I22: a hole remembers its birth."""
        self.serial += 1
        head.version[block] = self.serial
        self.publish(head, block, Entry(0, 0 if self.dropped == "no_tombstone" else head.epoch))

    def resize(self, head: Member) -> None:
        """M1: shrinking makes holes of the tail; so growing shows zeros, and the list of changes knows."""
        size = 1 + self.choose(BLOCKS)
        for block in range(size, head.size):
            if self.dropped == "shrink_keeps_the_tail":
                continue
            if self.dropped == "shrink_frees_what_it_cuts" and head.map[block].slot:
                self.free(head.map[block].slot)
                head.map[block] = Entry(0, head.epoch)
            else:
                self.punch(head, block)
        before, head.size = head.size, size
        if any(self.content[head.map[block].slot] for block in range(before, size)):
            raise Violation("growing brought back what had been cut off")

    def compact(self, head: Member) -> None:
        """M2: only what nobody shares is moved, and it keeps its birth."""
        block = self.choose(BLOCKS)
        entry = head.map[block]
        unshared = entry.birth > self.held_since(head, block) or self.dropped == "compact_what_is_shared"
        if entry.slot and unshared:
            birth = head.epoch if self.dropped == "compact_gives_a_new_birth" else entry.birth
            self.publish(head, block, Entry(self.place(self.content[entry.slot]), birth))

    def snapshot(self, head: Member) -> Member | None:
        if len(self.members) >= MEMBERS_MAX:
            return None
        ended = head.epoch
        snap = Member(head.parent, list(head.map), list(head.version), head.size, epoch=ended, image=self.view(head))
        self.members.append(snap)
        head.parent, head.frozen, head.epoch = snap, ended, self.next_epoch(head)
        return snap

    def rollback(self, head: Member) -> None:
        """What it replaces is kept as a snapshot. No epoch given out by then is the head's own any more (I37)."""
        targets = [m for m in self.snapshots() if m.readable]
        if targets and self.snapshot(head) is not None:
            target = targets[self.choose(len(targets))]
            head.parent, head.map, head.size = target, list(target.map), target.size
            head.version = list(target.version)
            head.epoch = self.next_epoch(head)
            if self.dropped != "rollback_freezes_its_own_line":
                head.frozen = head.epoch - 1
            if head is not self.live:
                head.base = target
                head.origin = head.origin if self.dropped == "rollback_leaves_the_origin" else target

    def clone(self, _head: Member) -> None:
        targets = [m for m in self.snapshots() if m.readable]
        if targets and len(self.heads()) < HEADS_MAX and len(self.members) < MEMBERS_MAX:
            target = targets[self.choose(len(targets))]
            epoch = self.next_epoch(target)
            frozen = 0 if self.dropped == "clone_begins_unfrozen" else epoch - 1
            copied = Member(target, list(target.map), list(target.version), target.size, frozen, epoch, is_head=True)
            copied.origin = copied.base = target
            self.members.append(copied)

    def delete_head(self, head: Member) -> None:
        """I38: a clone becomes a deleted snapshot."""
        if head is not self.live:
            head.is_head, head.deleted, head.origin, head.base = False, True, None, None
            if self.dropped == "deleted_clone_is_dropped":
                self.members.remove(head)

    # -- operations on snapshots ---------------------------------------------------------------------------------------
    def chosen(self, *, held: bool = False) -> Member | None:
        found = [m for m in self.snapshots() if m.readable and (held or not self.is_kept(m))]
        return found[self.choose(len(found))] if found else None

    def delete(self, _head: Member) -> None:
        if (snap := self.chosen()) is not None:
            snap.deleted = True

    def anchor(self, _head: Member) -> None:
        if (snap := self.chosen()) is not None:
            snap.anchor = True

    def hold(self, _head: Member) -> None:
        if (snap := self.chosen(held=True)) is not None:
            snap.holds += 1

    def release(self, _head: Member) -> None:
        held = [m for m in self.snapshots() if m.holds]
        if held:
            held[self.choose(len(held))].holds -= 1

    def give_up(self, _head: Member) -> None:
        """M3: for room, the oldest snapshot that may go."""
        anything = self.dropped == "give_up_what_is_held"
        found = [m for m in self.snapshots() if m.readable and (anything or not self.is_kept(m))]
        if found:
            min(found, key=lambda m: m.epoch).deleted = True

    # -- reclaim -------------------------------------------------------------------------------------------------------
    def reclaim(self, _head: Member | None = None) -> bool:
        """One block of one snapshot; False when there is nothing to do (I13, I20)."""
        if not self.reclaiming or self.dropped == "reclaims_side_by_side":
            ready = [m for m in self.snapshots() if self.is_ready(m)]
            if ready:
                self.reclaiming.append(ready[self.choose(len(ready))])
                self.reclaiming[-1].cursor = self.durable_cursor = 0
        if not self.reclaiming:
            return False
        dead = self.reclaiming[self.choose(len(self.reclaiming))]
        self.give_back(dead, dead.cursor)
        if self.dropped != "cursor_in_the_next_record" or self.choose(2):
            self.durable_cursor = dead.cursor + 1
        dead.cursor += 1
        if dead.cursor == BLOCKS:
            self.end_reclaim(dead)
        return True

    def is_ready(self, snap: Member) -> bool:
        few = len(self.children(snap)) < 2 or self.dropped == "reclaim_a_branch_point"
        return few and (snap.deleted or snap.anchor) and not snap.emptied and snap not in self.reclaiming

    def give_back(self, dead: Member, block: int) -> None:
        entry, above = dead.map[block], self.data_parent(dead)
        children = self.children(dead)
        if self.dropped == "successor_by_epoch":
            later = [m for m in self.snapshots() if m.epoch > dead.epoch and not m.emptied]
            children = [min(later, key=lambda m: m.epoch)] if later else self.heads()[:1]
        shared = any(child.map[block].slot == entry.slot for child in children[:1])
        inherited = above is not None and entry.birth <= above.epoch and self.dropped != "reclaim_what_is_inherited"
        if entry.slot and not shared and not inherited:
            self.free(entry.slot)

    def end_reclaim(self, dead: Member) -> None:
        self.reclaiming.remove(dead)
        dead.emptied = True
        if not dead.anchor:
            self.members.remove(dead)
            for member in self.members:
                if member.parent is dead:
                    member.parent = dead.parent

    def restart(self, _head: Member) -> None:
        """A crash: the reclaim goes on where its last record says."""
        if len(self.reclaiming) == 1:
            self.reclaiming[0].cursor = self.durable_cursor

    # -- changes -------------------------------------------------------------------------------------------------------
    def changed(self, base: Member, target: Member) -> set[int]:
        """M4: by birth along the lineage, else by comparing; an anchor that is not an ancestor cannot be compared."""
        common = set(range(min(base.size, target.size)))
        beyond = set(range(base.size, target.size)) if self.dropped != "growth_is_no_change" else set()
        if base in target.ancestors() or self.dropped == "births_off_the_lineage":
            return {b for b in common if target.map[b].birth > base.epoch} | beyond
        if base.anchor:
            raise FullBackupNeeded
        joint = next((m.epoch for m in target.ancestors() if m in base.ancestors()), 0)
        if self.dropped == "prune_by_the_base":
            joint = base.epoch
        pairs = {b: (base.map[b], target.map[b]) for b in common}
        differ = {b for b, (one, two) in pairs.items() if one != two and max(one.birth, two.birth) > joint}
        return differ | beyond

    def check_changes(self, base: Member, target: Member) -> None:
        try:
            found = self.changed(base, target)
        except FullBackupNeeded:
            return
        common, beyond = range(min(base.size, target.size)), set(range(base.size, target.size))
        written = {b for b in common if base.version[b] != target.version[b]} | beyond
        differ = {b for b in common if self.content[base.map[b].slot] != self.content[target.map[b].slot]} | beyond
        # Off the lineage a block that was discarded on both sides may be left out: it is a hole in both.
        if not (written if base in target.ancestors() else differ) <= found:
            raise Violation("a change is missing")
        if not found <= written:
            raise Violation("a change is listed that is none")


RULES = {
    "place_by_newest_live": Rule("I1", "in place only what is younger than any epoch *ever* frozen on its head"),
    "clone_begins_unfrozen": Rule("I1", "a clone begins with the epoch of its birth frozen"),
    "epochs_of_each_head": Rule("I37", "one counter gives out the epochs of all heads"),
    "rollback_freezes_its_own_line": Rule("I37", "a rollback freezes what other heads ended, too"),
    "origin_is_not_kept": Rule("I38", "the snapshot that a clone was made of is neither deleted nor given up"),
    "rollback_leaves_the_origin": Rule("I38", "nor the one that it was rolled back to last"),
    "deleted_clone_is_dropped": Rule("I38", "a clone that is deleted becomes a deleted snapshot"),
    "free_whatever_is_replaced": Rule("I20", "freed only if younger than the nearest ancestor with data"),
    "anchors_hold_data": Rule("I20", "an anchor does not count: it holds nothing"),
    "cursor_unheeded": Rule("I13", "below the cursor, the snapshot under reclaim does not count"),
    "cursor_ignored": Rule("I13", "at or above the cursor, it does"),
    "cursor_in_the_next_record": Rule("I13", "what a step frees and its cursor are in one record"),
    "reclaims_side_by_side": Rule("I13", "one reclaim at a time; those that wait count in full"),
    "reclaim_what_is_inherited": Rule("I13", "nothing is freed that an ancestor holds"),
    "reclaim_a_branch_point": Rule("I13", "with two children, a deleted snapshot is only hidden"),
    "successor_by_epoch": Rule("I13", "the child is the one along the lineage, not the next by epoch"),
    "no_tombstone": Rule("I22", "a discard leaves a birth"),
    "shrink_keeps_the_tail": Rule("M1", "shrinking makes holes of the tail"),
    "shrink_frees_what_it_cuts": Rule("M1", "what it cuts off is freed by the free rule"),
    "compact_what_is_shared": Rule("M2", "only what nobody shares is moved"),
    "compact_gives_a_new_birth": Rule("M2", "what is moved keeps its birth"),
    "give_up_what_is_held": Rule("M3", "what is held is not given up"),
    "births_off_the_lineage": Rule("M4", "births tell changes only from an ancestor on"),
    "prune_by_the_base": Rule("M4", "two maps are pruned by their common ancestor's epoch"),
    "growth_is_no_change": Rule("M4", "beyond the smaller size everything has changed"),
}


class LineageModel:
    """Heads and snapshots as a tree."""

    name = "lineage"
    rules = RULES

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """One history."""
        volume = Volume(choose, dropped)
        for _ in range(5 + choose(40)):
            name = pick(choose, OPERATIONS)
            trace.append(name)
            heads = volume.heads()
            getattr(volume, name)(heads[choose(len(heads))])
            self.check(volume)
        while volume.reclaim():
            trace.append("reclaim")
            self.check(volume)
        reachable = {entry.slot for member in volume.members if not member.emptied for entry in member.map}
        if volume.used - reachable:
            raise Violation("a slot has leaked")

    @staticmethod
    def check(volume: Volume) -> None:
        for snap in volume.snapshots():
            if snap.holds and not snap.readable:
                raise Violation("a snapshot that is held is gone")
            if snap.readable and volume.view(snap) != snap.image:
                raise Violation("a snapshot has changed")
        if any(head.base is not None and not head.base.readable for head in volume.heads()):
            raise Violation("the snapshot that a clone stands on is gone")
        bases = [m for m in volume.snapshots() if not m.deleted]
        targets = [m for m in volume.members if m.readable]
        if bases and targets:
            base, target = bases[volume.choose(len(bases))], targets[volume.choose(len(targets))]
            volume.check_changes(base, target)
