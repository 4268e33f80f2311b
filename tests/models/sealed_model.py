"""Model: which snapshots count as sealed, in a lineage with several heads.

The lineage model with a sealer beside it, as the engine has it: it walks one snapshot at a time over the blocks born
after its nearest readable ancestor, reads a block in one step and enters its seal in another. A snapshot that was
walked to its end is flagged, and so no longer looked at. Blocks are shared by clones and along the lineage; slots are
used again. A checkpoint writes down seals and flags; a crash goes back to it, and replays what ended them since.

Promises  The blocks that the walks over the snapshots without the flag find are exactly those that a readable snapshot
          reaches and that have no seal. No good block is called damaged. In the end all is sealed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from exploring import Choose, Rule, Violation, pick
from lineage_model import BLOCKS, LineageModel, Member, Volume

OPERATIONS = (
    "write write write snapshot snapshot delete delete discard rollback clone delete_head anchor reclaim reclaim "
    "reclaim resize compact hold release give_up restart restart checkpoint checkpoint seal seal seal seal seal seal "
    "seal"
)


@dataclass
class Seals:
    """What is sealed: by slot, the contents standing for their checksum; and the snapshots with the flag."""

    of_slot: dict[int, int] = field(default_factory=dict)
    flagged: set[Member] = field(default_factory=set)


@dataclass
class Walk:
    """The way of the sealer over one snapshot; `read` is what it has read and not entered yet."""

    member: Member
    born_after: int
    block: int = 0
    read: tuple[int, int] | None = None


class SealedVolume(Volume):
    """A volume with a sealer."""

    def __init__(self, choose: Choose, dropped: str) -> None:
        super().__init__(choose, dropped)
        self.seals, self.durable_seals = Seals(), Seals()
        self.walk: Walk | None = None

    def readable_before(self, member: Member) -> int:
        """The epoch of the nearest readable ancestor."""
        above = member.ancestors()[1:]
        if self.dropped == "pruned_by_what_is_gone":
            return above[0].epoch if above else 0
        return next((m.epoch for m in above if m.readable), 0)

    # -- what ends seals and flags: the same in replay -----------------------------------------------------------------
    def free(self, slot: int) -> None:
        super().free(slot)
        if self.dropped != "seal_outlives_its_block":
            self.seals.of_slot.pop(slot, None)
        if self.dropped not in ("seal_outlives_its_block", "replay_keeps_seals"):
            self.durable_seals.of_slot.pop(slot, None)

    def end_reading(self, gone: Member) -> None:
        """What a snapshot that goes has not sealed is now unsealed in those that it was the nearest for."""
        heirs = [m for m in self.snapshots() if m.readable and self.was_nearest(gone, m)]
        for seals in (self.seals, self.durable_seals):
            if gone not in seals.flagged and self.dropped != "flag_stays_with_the_heirs":
                seals.flagged.difference_update(heirs)
            seals.flagged.discard(gone)

    @staticmethod
    def was_nearest(gone: Member, member: Member) -> bool:
        return next((m for m in member.ancestors()[1:] if m.readable or m is gone), None) is gone

    # -- the sealer ----------------------------------------------------------------------------------------------------
    def seal(self, _head: Member | None = None) -> bool:
        """One of its steps; False if there is nothing to do."""
        if self.walk is None:
            waiting = [m for m in self.snapshots() if m.readable and m not in self.seals.flagged]
            if waiting:
                # The oldest first; but one that cannot be read is passed over.
                waiting.sort(key=lambda m: m.epoch)
                member = waiting[self.choose(len(waiting))] if self.choose(3) == 0 else waiting[0]
                self.walk = Walk(member, self.readable_before(member))
            return bool(waiting)
        walk = self.walk
        if not walk.member.readable and self.dropped != "seal_entered_for_what_is_gone":
            self.walk = None  # it goes on with the next
        elif walk.read is not None:
            slot, content = walk.read
            walk.read, self.seals.of_slot[slot] = None, content
        elif walk.block < BLOCKS:
            entry = walk.member.map[walk.block]
            walk.block += 1
            if entry.slot and entry.birth > walk.born_after and entry.slot not in self.seals.of_slot:
                walk.read = (entry.slot, self.content[entry.slot])
        else:
            self.walk = None
            nothing_came_to_it = self.readable_before(walk.member) >= walk.born_after
            if walk.member.readable and (nothing_came_to_it or self.dropped == "flagged_without_a_second_look"):
                self.seals.flagged.add(walk.member)
        return True

    def checkpoint(self, _head: Member) -> None:
        self.durable_seals.flagged = set(self.seals.flagged)
        if self.dropped != "flags_before_seals" or self.choose(2):
            self.durable_seals.of_slot = dict(self.seals.of_slot)

    def restart(self, head: Member) -> None:
        super().restart(head)
        self.walk = None
        self.seals = Seals(dict(self.durable_seals.of_slot), set(self.durable_seals.flagged))

    # -- placing -------------------------------------------------------------------------------------------------------
    def place(self, content: int) -> int:
        """Slots are used again."""
        free = set(range(1, self.slots + 1)) - self.used
        if not free or not self.choose(2):
            return super().place(content)
        slot = min(free)
        self.used.add(slot)
        self.content[slot] = content
        return slot

    # -- promises ------------------------------------------------------------------------------------------------------
    def check_seals(self) -> None:
        readable = [m for m in self.snapshots() if m.readable]
        reached = {entry.slot for m in readable for entry in m.map if entry.slot}
        wanted = reached - set(self.seals.of_slot)
        found = set()
        for member in readable:
            if member not in self.seals.flagged:
                before = next((m.epoch for m in member.ancestors()[1:] if m.readable), 0)
                found |= {entry.slot for entry in member.map if entry.slot and entry.birth > before}
        if wanted - found:
            raise Violation("a block without a seal is not counted")
        if any(self.seals.of_slot.get(slot, self.content[slot]) != self.content[slot] for slot in self.used):
            raise Violation("a good block is called damaged")


RULES = {
    "seal_outlives_its_block": Rule("I40", "a seal ends when its slot is freed"),
    "replay_keeps_seals": Rule("I40", "in replay, too"),
    "seal_entered_for_what_is_gone": Rule("I40", "a seal is entered only for what a readable snapshot still maps"),
    "pruned_by_what_is_gone": Rule("I41", "what a snapshot does not seal is in an ancestor that can be read"),
    "flag_stays_with_the_heirs": Rule("I41", "an unsealed snapshot that goes takes the flag of its heirs"),
    "flagged_without_a_second_look": Rule("I41", "also while one of them is being walked"),
    "flags_before_seals": Rule("I41", "seals and flags reach the disk together"),
}


class SealedModel:
    """A lineage and its sealer."""

    name = "sealed"
    rules = RULES

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """One history; then the sealer comes to its end."""
        volume = SealedVolume(choose, dropped)
        for _ in range(5 + choose(50)):
            trace.append(pick(choose, OPERATIONS))
            heads, readable = volume.heads(), [m for m in volume.snapshots() if m.readable]
            getattr(volume, trace[-1])(heads[choose(len(heads))])
            for member in readable:
                if not member.readable:
                    volume.end_reading(member)
            LineageModel.check(volume)
            volume.check_seals()
        while volume.seal():
            trace.append("seal")
            volume.check_seals()
        left = {e.slot for m in volume.snapshots() if m.readable for e in m.map if e.slot} - set(volume.seals.of_slot)
        if left:
            raise Violation("a frozen block stays without a seal")
