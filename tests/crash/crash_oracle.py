"""What may be found after a crash, from what the user was told.

Every operation is announced before it begins and acknowledged after it returned. In between, two commits may be
found: the last acknowledged one, and the one in flight. A commit fixes the snapshots with all their bytes, and the
*least* each 512-byte sector of the live volume may hold: what it held then, or any write begun since, as on a disk.

`Expectation` is that set at one moment; it stays valid while the history goes on. `verify` compares an open volume
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from model_volume import ModelSnapshot, ModelVolume

from cowengine.errors import AnchorError, FullBackupRequired

SECTOR = 512
PIECE = 8 * SECTOR
HOLD_REASON = "crash test"
# Of these, until they return, the changes of the map may be found and yet not what was written in place before.
FREEZING_NOTHING = ("flush", "reopen", "checkpoint", "compact", "seal", "clone_write", "clone_discard")
UNKNOWN_NAME = "?"  # of an automatic snapshot whose rollback has not returned
UNCERTAIN = count(1)


Version = tuple[
    str, ModelSnapshot, set[int]
]  # its name, and the blocks of which nobody knows whether they were written
Judge = Callable[[int, int], str | None]


class Violation(AssertionError):
    """The engine broke a promise."""


@dataclass(frozen=True, slots=True)
class CloneState:
    """A clone, each sector of which is as in `old` or in `new`: what is written to one is flushed at once."""

    old: ModelSnapshot
    new: ModelSnapshot
    origin: str | None

    def may_hold(self, content: bytearray, begin: int = 0, end: int | None = None) -> bool:
        """Whether its bytes, or those of some whole sectors, may be these."""
        if len(content) != self.old.size:
            return False
        return all(
            content[at : at + SECTOR] in (self.old.content[at : at + SECTOR], self.new.content[at : at + SECTOR])
            for at in range(begin, len(content) if end is None else end, SECTOR)
        )

    def touched(self) -> set[int]:
        """Blocks of which nobody can say whether they were written."""
        return {block for block in range(len(self.old.births)) if self.old.birth(block) != self.new.birth(block)}


@dataclass(frozen=True, slots=True)
class Commit:
    """`floor` and `ceiling` count versions per sector: versions[s][floor[s]:ceiling[s]] may be found.

    `line` are the ancestors of the live volume, `births` those of its blocks at the commit, `latest_births` those after
    the last write that may be found.
    """

    snapshots: tuple[ModelSnapshot, ...]
    line: tuple[int, ...]
    births: tuple[int, ...]
    latest_births: tuple[int, ...]
    floor: list[int]
    ceiling: list[int]
    latest: bytes  # the live volume with all of these versions
    given_up: tuple[str, ...]
    keep_newest: int
    size: int
    clones: tuple[CloneState, ...] = ()

    def followed_by(self, model: ModelVolume, versions: list[list[bytes]]) -> Commit:
        """The same commit with every write begun until now."""
        latest, ceiling = bytes(model.content), [len(each) for each in versions]
        return replace(self, latest_births=tuple(model.births), ceiling=ceiling, latest=latest)


@dataclass(frozen=True, slots=True)
class Expectation:
    """Any of `commits` may be found; none: nothing was promised yet, an open may be refused."""

    commits: tuple[Commit, ...]
    versions: list[list[bytes]]
    identities: dict[str, str]  # change ids by name, as far as they are known; never altered
    epoch: int
    block_size: int
    closed: bool = False  # cleanly, and nobody has opened it since: the next one to do so is told


@dataclass(frozen=True, slots=True)
class Found:
    """What an open volume showed: the commit it agrees with, its live bytes, and the change ids of its snapshots."""

    commit: Commit
    live: bytearray
    identities: dict[str, str]
    clones: tuple[bytearray, ...] = ()


Operation = tuple[Any, ...]  # name, arguments


class Oracle:
    """The history of one volume as its user sees it."""

    def __init__(self, size: int, block_size: int) -> None:
        self.model = ModelVolume(size, block_size)
        self.versions: list[list[bytes]] = [[part] for part in self._sectors()]
        self.identities: dict[str, str] = {}
        self.given_up: list[str] = []
        self.keep_newest = 1
        self.acked = self._commit()
        self.in_flight: Commit | None = None
        self.floor = self.acked.floor  # of what is in flight, once it is acknowledged

    @classmethod
    def resume(cls, expected: Expectation, found: Found) -> Oracle:
        """The oracle of what follows a crash after which `found` was seen."""
        oracle = cls(found.commit.size, expected.block_size)
        model = oracle.model
        model.content[:] = found.live
        model.shared.epoch = expected.epoch
        model.begin_epoch()
        model.snapshots, model.line = list(found.commit.snapshots), found.commit.line
        oracle.given_up, oracle.keep_newest = list(found.commit.given_up), found.commit.keep_newest
        model.births = list(found.commit.births)
        for block in touched_blocks(found.commit, expected.block_size):
            model.births[block] = -next(UNCERTAIN)  # written or not since the commit: nobody can say
        for state, content in zip(found.commit.clones, found.clones, strict=True):
            clone = ModelVolume(len(content), expected.block_size, model.shared)
            clone.name, clone.origin, clone.line = state.old.name, state.origin, state.old.line
            clone.content[:], clone.births = content, list(state.old.births)
            clone.mapped = list(state.old.mapped)
            for block in state.touched():
                clone.births[block] = -next(UNCERTAIN)
            clone.begin_epoch()
            model.shared.heads.append(clone)
        oracle.identities = expected.identities | found.identities
        oracle.versions = [[part] for part in oracle._sectors()]
        oracle.acked = oracle._commit()
        return oracle

    # -- history ----------------------------------------------------------------------------------------------------
    def begin(self, operation: Operation) -> Expectation:
        """The operation is about to be called."""
        name, arguments = operation[0], operation[1:]
        self.acked = self.acked.followed_by(self.model, self.versions)
        getattr(self, "_" + name)(*arguments)
        if name == "clone_write":
            written = self._clone(arguments[0]).live(arguments[0])
            clones = [
                replace(each, new=written) if each.old.name == written.name else each for each in self.acked.clones
            ]
            self.acked = replace(self.acked, clones=tuple(clones))
        self._note_versions()
        if name in ("write", "discard", "zero", "reclaim", "seal_in_memory"):  # these promise nothing about durability
            self.in_flight = None
            self.acked = self.acked.followed_by(self.model, self.versions)
        else:
            self.in_flight = self._commit()
            self.floor = self.in_flight.floor
            if name in FREEZING_NOTHING:
                self.in_flight = replace(self.in_flight, floor=self.acked.floor)
        return self.expectation()

    def intrude(self, operation: Operation) -> Expectation:
        """A write by another thread, while the operation begun last is still in flight."""
        getattr(self, "_" + operation[0])(*operation[1:])
        self._note_versions()
        self.acked = self.acked.followed_by(self.model, self.versions)
        if self.in_flight is not None:
            self.in_flight = self.in_flight.followed_by(self.model, self.versions)
        return self.expectation()

    def acknowledge(self, result: Any = None) -> Expectation:
        """The operation begun last has returned; `result` is the Snapshot that it returned, if it did."""
        if result is not None:
            newest = self.model.snapshots[-1].renamed(result.name)
            self.model.snapshots[-1] = newest
            self.identities = self.identities | {result.name: result.change_id}
        if self.in_flight is not None:
            self.acked = replace(self.in_flight, snapshots=tuple(self.model.snapshots), floor=self.floor)
            self.in_flight = None
        return self.expectation()

    def expectation(self) -> Expectation:
        commits = (self.acked,) if self.in_flight is None else (self.acked, self.in_flight)
        return Expectation(commits, self.versions, self.identities, self.model.shared.epoch, self.model.block_size)

    def _write(self, data: bytes, offset: int) -> None:
        self.model.pwrite(data, offset)

    def _discard(self, offset: int, length: int) -> None:
        self.model.discard(offset, length)

    def _zero(self, offset: int, length: int) -> None:
        self.model.write_zeroes(offset, length)

    def _flush(self) -> None:
        pass

    _reopen = _reclaim = _checkpoint = _compact = _seal = _flush  # durable, and nothing that can be seen

    def _seal_in_memory(self) -> None:
        """Nothing that can be seen, and nothing durable."""

    def _snapshot(self, name: str) -> None:
        self.model.snapshot(name)

    def _delete(self, name: str) -> None:
        self.model.delete(name)

    def _give_up(self, name: str) -> None:
        self.model.delete(name)
        self.given_up.append(name)

    def _policy(self, keep_newest: int) -> None:
        self.keep_newest = keep_newest

    def _hold(self, name: str) -> None:
        self.model.hold(name, HOLD_REASON)

    def _release(self, name: str) -> None:
        self.model.hold(name, None)

    def _anchor(self, name: str) -> None:
        self.model.anchor(name)

    def _rollback(self, name: str) -> None:
        self.model.rollback(name, UNKNOWN_NAME)

    def _resize(self, size: int) -> None:
        self.model.resize(size)

    # -- clones ---------------------------------------------------------------------------------------------------
    def _clone(self, name: str) -> ModelVolume:
        return next(clone for clone in self.model.clones if clone.name == name)

    def _make_clone(self, origin: str, name: str) -> None:
        self.model.clone(name, origin)

    def _clone_write(self, name: str, data: bytes, offset: int) -> None:
        self._clone(name).pwrite(data, offset)

    def _clone_discard(self, name: str, offset: int, length: int) -> None:
        self._clone(name).discard(offset, length)

    def _clone_snapshot(self, name: str, snapshot: str) -> None:
        self._clone(name).snapshot(snapshot)

    def _clone_rollback(self, name: str, snapshot: str) -> None:
        self._clone(name).rollback(snapshot, UNKNOWN_NAME)

    def _clone_resize(self, name: str, size: int) -> None:
        self._clone(name).resize(size)

    def _delete_head(self, name: str) -> None:
        self.model.delete_head(name)

    def _sectors(self) -> list[bytes]:
        content = bytes(self.model.content)
        return [content[start : start + SECTOR] for start in range(0, len(content), SECTOR)]

    def _note_versions(self) -> None:
        """Sectors behind the end of the volume hold zeros: that is what they are if it grows."""
        sectors = self._sectors()
        # In a list of its own: what was noted before shares the old one.
        self.versions = self.versions + [[bytes(SECTOR)] for _ in range(len(sectors) - len(self.versions))]
        sectors += [bytes(SECTOR)] * (len(self.versions) - len(sectors))
        for versions, part in zip(self.versions, sectors, strict=True):
            if part != versions[-1]:
                versions.append(part)

    def _commit(self) -> Commit:
        ceiling = [len(versions) for versions in self.versions]
        floor = [count - 1 for count in ceiling]
        births = tuple(self.model.births)
        return Commit(
            tuple(self.model.snapshots), self.model.line, births, births, floor, ceiling, bytes(self.model.content),
            tuple(self.given_up), self.keep_newest, self.model.size,
            tuple(CloneState(now, now, head.origin) for head in self.model.clones for now in [head.live(head.name)]),
        )  # fmt: skip


def touched_blocks(commit: Commit, block_size: int) -> set[int]:
    """Blocks that may hold something newer than the commit."""
    sectors = block_size // SECTOR
    pairs = zip(commit.floor, commit.ceiling, strict=False)
    rewritten = {index // sectors for index, (floor, ceiling) in enumerate(pairs) if ceiling - floor > 1}
    births = zip(commit.births, commit.latest_births, strict=True)
    return rewritten | {block for block, (old, new) in enumerate(births) if old != new}


# -- what an open volume shows ---------------------------------------------------------------------------------------
@dataclass(slots=True)
class ShownSnapshot:
    name: str
    change_id: str
    content: bytes | None  # None: an anchor
    hold_reason: str | None


@dataclass(slots=True)
class Shown:
    """All that an open volume shows, copied out of it. The same image shows the same, whatever was promised.

    `changed` has the blocks of the changed extents by version and base, None where the volume refuses to tell; versions
    are the snapshots by place, then the heads, the live one first. It is None if nobody asked.
    """

    live: bytearray
    clones: dict[str, bytearray]
    snapshots: list[ShownSnapshot]
    given_up: list[str]
    given_up_count: int
    keep_newest: int
    was_clean: bool
    changed: dict[tuple[int, int], set[int] | None] | None


def plain_buffer(size: int, _unit: int) -> bytearray:
    return bytearray(size)


def show(volume: Any, extents: bool = True, buffer: Callable[[int, int], bytearray] = plain_buffer) -> Shown:
    """Reads all that there is; Violation if an anchor can be read.

    `buffer` gives memory for the contents of a head, by size and size of a block; the live one first.
    """

    def contents(head: Any) -> bytearray:
        memory = buffer(head.size, head.block_size)
        head.pread_into(memory, 0)
        return memory

    handles = {name: volume.open_head(name) for name in volume.heads()[1:]}
    try:
        snapshots = volume.snapshots()
        return Shown(
            contents(volume),
            {name: contents(clone) for name, clone in handles.items()},
            [ShownSnapshot(each.name, each.change_id, content_of(each), each.hold_reason) for each in snapshots],
            [loss.name for loss in volume.given_up()],
            volume.engine.space.losses_count,
            volume.policy().keep_newest,
            bool(volume.engine.recovered["was_clean"]),
            changed_blocks(snapshots, [volume, *handles.values()]) if extents else None,
        )
    finally:
        for clone in handles.values():
            clone.close()


def content_of(snapshot: Any) -> bytes | None:
    """The bytes of a snapshot; None if it is an anchor."""
    if not snapshot.is_anchor:
        return bytes(snapshot.pread(snapshot.size, 0))
    with suppress(AnchorError):
        snapshot.pread(snapshot.size, 0)
        raise Violation(f"anchor {snapshot.name} can be read")
    return None


def changed_blocks(snapshots: list[Any], heads: list[Any]) -> dict[tuple[int, int], set[int] | None]:
    """`Shown.changed`: between all pairs of snapshots, and of each head since each snapshot."""
    found: dict[tuple[int, int], set[int] | None] = {}
    block_size = heads[0].block_size
    for base, since in enumerate(snapshots):
        for version, each in enumerate((*snapshots, *heads)):
            if version != base:
                try:
                    found[version, base] = blocks_of(each.changed_extents(since), block_size)
                except FullBackupRequired:
                    found[version, base] = None
    return found


def blocks_of(rows: Any, block_size: int) -> set[int]:
    return {
        block
        for first, length in rows.tolist()
        for block in range(first // block_size, -(-(first + length) // block_size))
    }


# -- comparing ------------------------------------------------------------------------------------------------------
def verify(volume: Any, expected: Expectation, extents: bool = True) -> Found:
    """What the open volume shows; Violation if it agrees with none of the expected commits."""
    return compare(show(volume, extents), expected)


def compare(shown: Shown, expected: Expectation) -> Found:
    """The one of the expected commits that agrees with what was shown; Violation if none does."""
    if expected.closed and not shown.was_clean:
        raise Violation("was closed, and is found as after a crash")
    faults = []
    for commit in expected.commits:
        fault = (
            space_fault(shown, commit)
            or snapshots_fault(shown, commit, expected)
            or live_fault(shown.live, commit, expected)
            or clones_fault(shown.clones, commit)
            or (extents_fault(shown, commit, expected.block_size) if shown.changed is not None else None)
        )
        if fault is None:
            require_new_identities(shown, expected)
            pairs = list(zip(commit.snapshots, shown.snapshots, strict=True))
            for model, snapshot in pairs:
                snapshot.content = snapshot.content and model.content  # the same bytes, kept once
            named = tuple(model.renamed(snapshot.name) for model, snapshot in pairs)
            identities = {each.name: each.change_id for each in shown.snapshots}
            return Found(replace(commit, snapshots=named), shown.live, identities, tuple(shown.clones.values()))
        faults.append(fault)
    raise Violation("neither the last acknowledged commit nor the one in flight: " + "; ".join(faults))


def clones_fault(shown: dict[str, bytearray], commit: Commit) -> str | None:
    if list(shown) != [clone.old.name for clone in commit.clones]:
        return f"clones {list(shown)}, expected {[clone.old.name for clone in commit.clones]}"
    for clone in commit.clones:
        content = shown[clone.old.name]
        if not clone.may_hold(content):
            return f"clone {clone.old.name} differs at offset {first_difference(content, clone.new.content)}"
    return None


def space_fault(shown: Shown, commit: Commit) -> str | None:
    """The policy, and the list of what was given up, of which the file keeps the newest."""
    if shown.keep_newest != commit.keep_newest:
        return f"the policy keeps {shown.keep_newest}, expected {commit.keep_newest}"
    if shown.given_up != list(commit.given_up) or shown.given_up_count != len(commit.given_up):
        return f"given up: {shown.given_up}, expected {commit.given_up}"
    return None


def snapshots_fault(shown: Shown, commit: Commit, expected: Expectation) -> str | None:
    names = [snapshot.name for snapshot in shown.snapshots]
    if len(names) != len(commit.snapshots):
        return f"snapshots {names}, expected {[snapshot.name for snapshot in commit.snapshots]}"
    for snapshot, model in zip(shown.snapshots, commit.snapshots, strict=True):
        content = snapshot.content
        if model.name not in (snapshot.name, UNKNOWN_NAME):
            return f"snapshots {names}, expected {[snapshot.name for snapshot in commit.snapshots]}"
        if (content is None) != model.anchor:
            return f"snapshot {snapshot.name} is {'an' if content is None else 'no'} anchor"
        if content is not None and content != model.content:
            return f"snapshot {snapshot.name} changed at offset {first_difference(content, model.content)}"
        if snapshot.hold_reason != model.hold_reason:
            return f"snapshot {snapshot.name} is held for {snapshot.hold_reason}, expected {model.hold_reason}"
        if expected.identities.get(snapshot.name, snapshot.change_id) != snapshot.change_id:
            return f"snapshot {snapshot.name} is {snapshot.change_id}, was {expected.identities[snapshot.name]}"
    return None


def require_new_identities(shown: Shown, expected: Expectation) -> None:
    """A change id names one version for ever, also when the snapshot that had it is gone."""
    names = {change_id: name for name, change_id in expected.identities.items()}
    for snapshot in shown.snapshots:
        if names.setdefault(snapshot.change_id, snapshot.name) != snapshot.name:
            raise Violation(f"snapshots {snapshot.name} and {names[snapshot.change_id]} share {snapshot.change_id}")


def live_fault(
    live: bytearray, commit: Commit, expected: Expectation, begin: int = 0, end: int | None = None
) -> str | None:
    """What is wrong with the live bytes, or those of some whole sectors."""
    if len(live) != commit.size:
        return f"{len(live)} bytes, expected {commit.size}"
    end = len(live) if end is None else end
    for start in range(begin, end, PIECE):
        if live[start : start + PIECE] == commit.latest[start : start + PIECE]:
            continue
        for index in range(start // SECTOR, min(start + PIECE, end) // SECTOR):
            floor, ceiling = commit.floor[index], commit.ceiling[index]
            part = live[index * SECTOR : (index + 1) * SECTOR]
            if part not in expected.versions[index][floor:ceiling]:
                where = [number for number, version in enumerate(expected.versions[index]) if version == part]
                return (
                    f"live sector {index} holds {part[:8].hex()}.. (versions {where}), allowed {floor} to {ceiling - 1}"
                )
    return None


def first_difference(one: bytes | bytearray, other: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def extents_fault(shown: Shown, commit: Commit, block_size: int) -> str | None:
    """Changed extents: exact between snapshots; for a head exact but for what was written since the commit."""
    assert shown.changed is not None
    versions: list[Version] = [(each.name, each, set()) for each in commit.snapshots]
    versions += heads_of(shown, commit, block_size)
    for (version, since), blocks in shown.changed.items():
        base, (name, target, maybe) = commit.snapshots[since], versions[version]
        what = f"changed extents {shown.snapshots[since].name}..{name}"
        if blocks is None:
            if ModelVolume.comparable(base, target):
                return f"{what} refused"
            continue
        if not ModelVolume.comparable(base, target):
            return f"{what} answered, although nobody can know"
        fault = changed_fault(blocks, base, target, maybe, block_size, range(-(-target.size // block_size)))
        if fault is not None:
            return f"{what} {fault}"
    return None


def heads_of(shown: Shown, commit: Commit, block_size: int) -> list[Version]:
    """The live volume and the clones, as they are shown."""
    live = ModelSnapshot("live", shown.live, commit.births, (), line=commit.line)
    clones = [
        (f"clone {each.old.name}", replace(each.old, content=shown.clones[each.old.name]), each.touched())
        for each in commit.clones
    ]
    return [("live", live, touched_blocks(commit, block_size)), *clones]


def changed_fault(
    found: set[int], base: ModelSnapshot, target: ModelSnapshot, free: set[int], block_size: int, among: range
) -> str | None:
    """`free`: blocks that may be reported or not, unless their bytes differ. A negative birth is an unknown one."""
    for block in among:
        old, new = base.birth(block), target.birth(block)
        span = slice(block * block_size, min((block + 1) * block_size, target.size))
        if base.content[span] != target.content[span]:  # also if the base ends before
            if block not in found:
                return f"miss block {block}, whose bytes differ"
        elif block in free or (old != new and min(old, new) < 0):
            continue
        elif (old != new) != (block in found):
            return f"{'miss' if old != new else 'report'} block {block} (births {old}, {new})"
    return None


def judges(shown: Shown, expected: Expectation, found: Found) -> list[Judge]:
    """Per head, the live one first: what is wrong with some of its blocks, by the commit that was found.

    They look into the memory of `shown`, of which only contents of heads may have changed since. `compare` says the
    same of the whole.
    """
    commit, block_size = found.commit, expected.block_size
    heads = heads_of(shown, commit, block_size)
    return [judge_of(shown, expected, commit, number, head) for number, head in enumerate(heads)]


def judge_of(shown: Shown, expected: Expectation, commit: Commit, number: int, head: Version) -> Judge:
    (_, target, maybe), block_size = head, expected.block_size
    lists = [
        (blocks, commit.snapshots[since])
        for (version, since), blocks in (shown.changed or {}).items()
        if version == len(commit.snapshots) + number and blocks is not None
    ]

    def fault(begin: int, end: int) -> str | None:
        among = range(begin // block_size, -(-end // block_size))
        if number == 0:
            problem = live_fault(shown.live, commit, expected, begin, end)
        else:
            clone = commit.clones[number - 1]
            fits = clone.may_hold(shown.clones[clone.old.name], begin, end)
            problem = None if fits else f"clone {clone.old.name} differs"
        for blocks, base in lists:
            problem = problem or changed_fault(blocks, base, target, maybe, block_size, among)
        return problem

    return fault
