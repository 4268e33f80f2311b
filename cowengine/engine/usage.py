"""How much space a snapshot takes: what only it reaches, and what deleting it would give back.

Goes by the lineage as it will be when reclaim has caught up: a deleted snapshot or an anchor that it only has to pass
over counts no more, one that is a branch point holds its data until one child is left. Each part of an answer is one
walk (core's `ExclusiveWalk`), kept until a neighbour changes.

Threads     Any. The commit lock is held for moments, never during a walk; if the lineage around a snapshot changed
            meanwhile, its walks begin anew. Beside the live volume, what is written meanwhile counts or does not.
Durability  Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cowengine.core.exclusive import ExclusiveWalk
from cowengine.engine import memory
from cowengine.engine.lineage import HEAD_ID
from cowengine.errors import CorruptionError, NotFoundError
from cowengine.format import LINEAGE_ANCHOR, LINEAGE_DELETED, NONE_ID, SLOT_BYTES

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine
    from cowengine.engine.lineage import Lineage

NODES_A_STEP = 256
PAUSE_SECONDS = 0.0001  # between steps: long enough for whoever waits for the mutex to get it
KEPT_MAX = 32768
KEPT_A_MEMBER, KEPT_MIN = 4, 64  # of a head or snapshot two are of use, until one beside it goes or comes


@dataclass(frozen=True, slots=True)
class SnapshotSpace:
    """The space of one snapshot, in bytes.

    `exclusive_bytes`: blocks that no neighbour in the lineage reaches; `exclusive_metadata_bytes`: the same of map
    nodes that a checkpoint has written, and its metadata. `freed_by_delete_bytes`: blocks that deleting it gives back.
    The first and the last differ at branch points: none comes back while two or more states stand on the snapshot, and
    with the last state but one that stands on a deleted branch point that one's own goes, too. An anchor gives back
    nothing, and takes nothing but its metadata unless it is a branch point.
    """

    exclusive_bytes: int
    exclusive_metadata_bytes: int
    freed_by_delete_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeSpace:
    """The space of one volume, in bytes of blocks; used = live + clones + snapshots + deleted + shared.

    `live_bytes` only the live volume reaches, `clones_bytes` only one clone each, `snapshots_bytes` only one snapshot
    each, `deleted_bytes` only branch points that are deleted or anchors; `shared_bytes` more than one of them.
    `metadata_bytes`: map nodes that a checkpoint has written.
    """

    used_bytes: int
    live_bytes: int
    snapshots_bytes: int
    deleted_bytes: int
    shared_bytes: int
    metadata_bytes: int
    clones_bytes: int = 0


class Part(NamedTuple):
    """One walk: what `number` reaches and none of `above` shares, born after `before_epoch`."""

    number: int
    above: tuple[int, ...]
    before_epoch: int


class Amount(NamedTuple):
    """What a walk found."""

    blocks: int
    nodes: int


class Neighbours:
    """The lineage without what holds no data, or none once reclaim has passed over it. The commit lock is held."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._passed: dict[int, list[int]] = {}  # each with the one child, or none, that takes its place
        # Children have larger epochs than what they stand on.
        for record in sorted(lineage.pending(), key=lambda record: record.epoch, reverse=True):
            above = self.above(record.id)
            if len(above) < 2:
                self._passed[record.id] = above

    def above(self, number: int) -> list[int]:
        """What stands on a snapshot and holds data."""
        found = []
        for child in self._lineage.sharers(number):
            found += self._passed.get(child, [child])
        return sorted(found)

    def below(self, number: int) -> int:
        """What a snapshot or head stands on and holds data, or NONE_ID."""
        while True:
            record = self._lineage.holder(number)
            number = NONE_ID if record is None else record.id
            if number not in self._passed:
                return number

    def part(self, number: int, *, beside: bool = True) -> Part:
        """The walk over what only this one holds; not `beside`: over all that was born since what it stands on."""
        below = self._lineage.get(self.below(number))
        before = 0 if below is None else below.epoch
        return Part(number, tuple(self.above(number)) if beside else (), before)

    def freed_by_delete(self, number: int) -> list[Part]:
        """The walks over what deleting a snapshot gives back."""
        above = self.above(number)
        if len(above) > 1:
            return []
        parts = [self.part(number)]
        below = self.below(number)
        record = self._lineage.get(below)
        if not above and record is not None and record.flags & (LINEAGE_DELETED | LINEAGE_ANCHOR):
            rest = [other for other in self.above(below) if other != number]
            if len(rest) == 1:
                parts.append(self.part(below)._replace(above=tuple(rest)))
        return parts

    def hidden(self) -> list[int]:
        """Branch points that are deleted or anchors."""
        return [record.id for record in self._lineage.pending() if record.id not in self._passed]


def snapshot_space(engine: Engine, number: int) -> SnapshotSpace:
    """The space of a snapshot. Raises NotFoundError if it is deleted, also meanwhile."""

    def plan() -> tuple[Part, ...]:
        record = engine.live_snapshot(number)
        neighbours = Neighbours(engine.lineage)
        if record.flags & LINEAGE_ANCHOR:
            return (neighbours.part(number),) if number in neighbours.hidden() else ()
        return (neighbours.part(number), *neighbours.freed_by_delete(number))

    own, *freed = _amounts(engine, plan) or [Amount(0, 0)]
    block = engine.path.block_bytes
    blob = SLOT_BYTES if engine.live_snapshot(number).metadata_slot else 0
    return SnapshotSpace(
        own.blocks * block, own.nodes * SLOT_BYTES + blob, sum(amount.blocks for amount in freed) * block
    )


def volume_space(engine: Engine) -> VolumeSpace:
    """The space of a volume. While others write and delete, each member counts as it was at some moment."""
    with engine.lock:
        engine.path.check_state()
        hidden = Neighbours(engine.lineage).hidden()
        clones = [record.id for record in engine.lineage.heads.values() if record.id != HEAD_ID]
        snapshots = [record.id for record in engine.lineage.snapshots() if not record.flags & LINEAGE_ANCHOR]
    used, nodes = 0, 0
    exclusive = {"live": 0, "clones": 0, "snapshots": 0, "deleted": 0}
    groups = {"live": [HEAD_ID], "clones": clones, "snapshots": snapshots, "deleted": hidden}
    for group, numbers in groups.items():
        for number in numbers:
            try:
                own, born = _amounts(engine, lambda number=number: _member(engine, number))  # type: ignore[misc]
            except NotFoundError:
                continue  # deleted and given back meanwhile
            exclusive[group] += own.blocks
            used += born.blocks
            nodes += born.nodes
    block = engine.path.block_bytes
    return VolumeSpace(
        used_bytes=used * block,
        live_bytes=exclusive["live"] * block,
        clones_bytes=exclusive["clones"] * block,
        snapshots_bytes=exclusive["snapshots"] * block,
        deleted_bytes=exclusive["deleted"] * block,
        shared_bytes=(used - sum(exclusive.values())) * block,
        metadata_bytes=nodes * SLOT_BYTES,
    )


def held_by_snapshots(engine: Engine) -> int:
    """Bytes of blocks that snapshots, deleted ones included, hold and no head reaches."""
    used = volume_space(engine).used_bytes

    def plan() -> tuple[Part, ...]:
        """Each head beside those before it: together, what heads reach."""
        ids = [record.id for record in engine.lineage.heads.values()]
        return tuple(Part(number, tuple(ids[:place]), 0) for place, number in enumerate(ids))

    reached = sum(amount.blocks for amount in _amounts(engine, plan))
    return max(0, used - reached * engine.path.block_bytes)


def _member(engine: Engine, number: int) -> tuple[Part, Part]:
    """The walks over what only this member holds, and over what it brought in: these, of all members, are disjoint."""
    if engine.lineage.get(number) is None:
        raise NotFoundError(f"there is no snapshot with id {number}", engine.name)
    neighbours = Neighbours(engine.lineage)
    return neighbours.part(number), neighbours.part(number, beside=False)


def _amounts(engine: Engine, plan: Callable[[], tuple[Part, ...]]) -> list[Amount]:
    """What the walks of a plan find, all for one state of the lineage around them."""
    while True:
        with engine.lock:
            engine.path.check_state()
            parts = plan()
        try:
            found = [_amount(engine, part) for part in parts]
        except (CorruptionError, NotFoundError):
            # A reclaim may have given back what the walk stood on; only if none did it is damage.
            with engine.lock:
                if plan() == parts:
                    raise
            continue
        with engine.lock:
            if plan() == parts:
                return found


def _amount(engine: Engine, part: Part) -> Amount:
    path = engine.path
    with engine.lock:
        key = _key(engine, part)
        known = engine.amounts.pop(key, None)
        if known is not None:
            engine.amounts[key] = known  # behind all that nobody asked for since
            return known
        mine, *others = [engine.lineage.root(number) for number in (part.number, *part.above)]
    walk = ExclusiveWalk(path, mine, others, part.before_epoch)
    at_end = False
    while not at_end:
        at_end = walk.step(NODES_A_STEP)
        if path.map.node_count > path.node_limit:
            memory.trim(engine)
        if not at_end:
            time.sleep(PAUSE_SECONDS)
    amount = Amount(walk.block_count, walk.node_count)
    with engine.lock:
        if key == _key(engine, part):
            members = engine.lineage.count() + len(engine.lineage.head_ids)
            while len(engine.amounts) >= min(max(KEPT_MIN, KEPT_A_MEMBER * members), KEPT_MAX):
                del engine.amounts[next(iter(engine.amounts))]
            engine.amounts[key] = amount
    return amount


def _key(engine: Engine, part: Part) -> tuple[object, ...]:
    """What an amount depends on: a snapshot's map never changes, but nodes of a new one have no slots yet."""
    moment = None
    if any(record.id in (part.number, *part.above) for record in engine.lineage.heads.values()):
        moment = (engine.log.sequence, engine.path.batch_fill()[0])
    return part, part.number in engine.lineage.fresh, moment
