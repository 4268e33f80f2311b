"""The offline verifier: is this file a volume of which every invariant of docs/format.md holds?

Reads only, repairs nothing. It shares the format and the checksum with the engine and nothing else, so a bug in the
block map, the allocator or recovery can't hide itself here. Two states are verified: that of the chosen superblock's
checkpoint, and that after the records of the log. Of each, what the free map says must be exactly what can be reached.

A damaged file gives problems; only what is no volume at all raises.

Threads   no state. The file must stand still while it is checked: `check_file` takes the lock of a reader.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from dataclasses import dataclass
from itertools import zip_longest

from cowengine.core.checksum import xxh64
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.check_log import read_chain, valid_superblocks
from cowengine.engine.check_names import check_names
from cowengine.engine.check_replay import Replay, is_given_up
from cowengine.engine.check_seals import after_records, check_sealed, check_seals, sealed_slots
from cowengine.engine.check_sharing import check_sharing
from cowengine.engine.check_trees import FREE_MAP, Extent, Place, Problems, Trees
from cowengine.engine.files import open_regular
from cowengine.engine.intervals import Intervals, Run, merge, subtract, total
from cowengine.engine.locks import FileLocks
from cowengine.engine.report import Report
from cowengine.errors import (
    BusyError,
    CorruptionError,
    StorageError,
)
from cowengine.format import (
    ENTRY_MAPPED,
    FEATURE_HEADS,
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_EMPTY,
    LINEAGE_HEAD,
    LINEAGE_HELD,
    LINEAGE_SNAPSHOT,
    NO_CURSOR,
    NONE_ID,
    POINTER_NODE,
    SLOT_BYTES,
    SLOT_SHIFT,
    SLOTS_MAX,
    TREE_FREE_MAP,
    TREE_MAP,
    TREE_NAMES,
    TREE_SEALS,
    LineageRecord,
    Pointer,
    Record,
    Region,
    RegionEvent,
    Superblock,
    blob_seed,
    fold_of,
    iter_deltas,
    level_for,
    span,
    with_region,
)


def check_file(path: str, io: IOTable = KERNEL) -> Report:
    """Verify the volume file at `path`.

    Raises NotFoundError, BusyError if it is open for writing, FormatError if it is no volume, StorageError.
    """
    fd = open_regular(io, path, read_only=True)
    try:
        if not FileLocks(io, fd, path).share():
            raise BusyError("the volume is open for writing; close it, or check it through its owner", path)
        return check_open(io, fd, path)
    finally:
        io.close(fd)


def check_open(io: IOTable, fd: int, name: str) -> Report:
    """Verify the volume file open as `fd`, which nobody writes meanwhile.

    Raises FormatError if it is no volume, StorageError if it cannot be read.
    """
    problems, _, counts = examine(io, fd, name)
    return Report(list(problems), counts)


def examine(io: IOTable, fd: int, name: str) -> tuple[Problems, Check | None, dict[str, int]]:
    """As `check_open`, with what a repair needs; None if there is no superblock to begin with."""
    problems = Problems()
    counts = dict.fromkeys(
        ("blocks", "nodes", "snapshots", "clones", "anchors", "deleted", "records", "dropped", "slots_used", "leaked"),
        0,
    )
    try:
        superblocks = valid_superblocks(io, fd, name, problems)
        if not superblocks:
            return problems, None, counts
        check = Check(io, fd, superblocks, problems, counts)
        check.run()
    except OSError as error:
        raise StorageError(f"a read failed: {error.strerror}", name, error.errno or errno.EIO) from error
    return problems, check, counts


@dataclass(slots=True)
class _State:
    """What is reachable at one of the two moments."""

    runs: list[Run]
    """Slots of blocks."""
    nodes: dict[int, Place]
    blobs: dict[int, int]
    """Slot of a metadata blob -> id."""
    extents: list[Extent]
    """Of blocks."""


class Check:
    """One verification: the steps of `run` in their order, each adding to the problems.

    What a repair goes by: the `records` of the log, what they leave `in_use` by blocks, nodes and metadata, the `nodes`
    met before or behind them, slots of `stale` seals, ids of snapshots that are not `sealed` as they should be, and of
    the free map what it calls used that is `leaked`, and what it calls free that is `taken`.
    """

    def __init__(
        self, io: IOTable, fd: int, superblocks: list[Superblock], problems: Problems, counts: dict[str, int]
    ) -> None:
        sb, other = superblocks[0], superblocks[1] if len(superblocks) > 1 else None
        self.io = io
        self.fd = fd
        self.sb = sb
        self.other = other
        self.problems = problems
        self.counts = counts
        self.fold = fold_of(sb.volume_uuid)
        self.block_slots = 1 << (sb.block_shift - SLOT_SHIFT)
        self.file_slots = io.size(fd) // SLOT_BYTES  # every block is written whole
        self.trees = Trees(io, fd, self.fold, self.block_slots, problems)
        self.homes: list[tuple[int, int, int]] = []
        self.records: list[Record] = []
        self.in_use: list[Run] = []
        self.nodes: dict[int, Place] = {}
        self.stale: list[int] = []
        self.unsealed: list[int] = []
        self.leaked: list[Run] = []
        self.taken: list[Run] = []
        self.ends_late = False  # the free map calls slots used that the file does not reach: no open volume takes that

    def run(self) -> None:
        """The whole verification."""
        self.records, _, self.counts["dropped"] = read_chain(self.io, self.fd, self.sb, self.problems)
        records = self.records
        self._find_homes(records)
        lineage = self.trees.lineage(self.sb.lineage_root)
        used = self.trees.used_slots(self.sb.free_map_root)
        check_names(self.trees, self.sb, lineage, self.problems)
        sealed = sealed_slots(self.trees, self.sb.seal_root)
        home_shifts = {slot - first_block * self.block_slots for slot, _, first_block in self.homes}
        replay = Replay(lineage, self.sb.next_id, self.block_slots, home_shifts, self.problems)
        if 0 not in lineage or lineage[0].kind != LINEAGE_HEAD:
            self.problems.add("the lineage table has no live head")
            return
        replay.epoch = max(replay.epoch, 0 if records else self.sb.epoch)
        self._check_heads(lineage)
        self._check_members(replay)
        base = self._state(replay)
        self.stale = check_seals(
            sealed, base.extents, self.block_slots, replay.frozen, replay.where, self.problems
        )  # fmt: skip
        self.unsealed = check_sealed(self.trees, lineage, sealed, self.sb.sealed_below, self.problems)
        check_sharing(self._quiet_trees(), lineage, 1 << self.sb.block_shift, self.problems)
        self._check_sizes(lineage)
        self._check_blobs(lineage)
        old_nodes = {**self._nodes_of_the_other(), **self._nodes_below_cursors(lineage)}
        # Of a snapshot under reclaim, what lies below its cursor may have been given out again since.
        held = merge([*base.runs, *_slot_runs(base.nodes), *_slot_runs(base.blobs)])
        optional = subtract(_slot_runs(old_nodes), held)
        self._compare(used, base, optional)
        final, slots = base, used
        if records:
            for record in records:
                replay.apply(record)
            replay.settle_parents()
            self._check_members(replay)
            self.trees.nodes = {}
            final = self._state(replay)
            sealed = after_records(sealed, records)
            self.stale += check_seals(
                sealed, final.extents, self.block_slots, replay.frozen, replay.where, self.problems
            )  # fmt: skip
            slots = self._used_after(used, records, optional)
            self._compare_after(slots, base, final, optional, records, replay)
        self.nodes = {**base.nodes, **final.nodes}
        self.in_use = merge([*final.runs, *map(_slot_run, [*self.nodes, *base.blobs, *final.blobs])])
        self._count(replay, base, final, slots, records)
        self.counts["sealed"] = len(sealed)

    def _find_homes(self, records: list[Record]) -> None:
        """Those of the checkpoint, and what records add: that lies where nothing was before (I45)."""
        regions = self.sb.regions
        for record in records:
            for event in record.events:
                if isinstance(event, RegionEvent):
                    region = Region(event.first_block, event.slot, event.block_count)
                    try:
                        regions = with_region(self.sb, regions, region)
                    except CorruptionError as error:
                        self.problems.add(f"record {record.sequence}: {error}")
        self.homes = sorted((r.slot, r.slot + r.block_count * self.block_slots, r.first_block) for r in regions)

    # --- the log ---------------------------------------------------------------------------------------------------

    def _used_after(self, used: list[Run], records: list[Record], optional: list[Run]) -> list[Run]:
        """The free map after the records: what they place is used, and was not; what they free is not, from then on.

        What one frees that vouches for its blocks is not used from the next one's end on (I49).
        """
        slots = Intervals(subtract(used, optional))
        held_back: list[Run] = []
        for record in records:
            for block, count, kind, slot, _, _ in iter_deltas(record.deltas):
                if kind == ENTRY_MAPPED and slots.assign(slot, slot + count * self.block_slots, True):
                    self.problems.add(f"record {record.sequence}: places block {block} in slot {slot}, which is in use")
            freed = [(slot, slot + count) for slot, count in (*record.freed, *record.freed_nodes)]
            is_held_back = record.one_barrier and record.sequence > self.sb.tip_sequence
            for begin, end in held_back if is_held_back else [*held_back, *freed]:
                slots.assign(begin, end, None)
            held_back = freed if is_held_back else []
        for begin, end in held_back:
            slots.assign(begin, end, None)
        return list(zip(slots.starts, slots.ends, strict=True))

    # --- lineage ---------------------------------------------------------------------------------------------------

    def _check_heads(self, lineage: dict[int, LineageRecord]) -> None:
        """The chain of heads that an open follows leads to all of them, in the order of their numbers (I39)."""
        heads = sorted((r for r in lineage.values() if r.kind == LINEAGE_HEAD), key=lambda record: record.number)
        for record, following in zip_longest(heads, heads[1:]):
            wanted = following.id if following else 0
            if record.next_head != wanted or (following and following.number == record.number):
                self.problems.add(
                    f"head {record.id}, number {record.number}, leads to {record.next_head}, not {wanted}"
                )
        if len(heads) > 1 and not self.sb.features_incompatible & FEATURE_HEADS:
            self.problems.add("there are clones, and the superblock does not say so")

    def _check_members(self, replay: Replay) -> None:
        where = replay.where
        records = {i: member.record for i, member in replay.members.items()}
        names: dict[tuple[bool, str], int] = {}
        epochs: dict[int, int] = {}
        reclaiming = 0
        for i, record in records.items():
            problem = self._member_problem(i, record, records, replay)
            is_head = record.kind == LINEAGE_HEAD
            reclaiming += not is_head and record.cursor != NO_CURSOR
            if not record.flags & LINEAGE_DELETED and names.setdefault((is_head, record.name), i) != i:
                problem = f"has the name of {names[is_head, record.name]}"
            if not is_head and epochs.setdefault(record.epoch, i) != i:
                problem = f"has epoch {record.epoch}, as has {epochs[record.epoch]}"
            if problem:
                self.problems.add(f"{where}: {'head' if is_head else 'snapshot'} {i} {problem}")
        for i in _branch_points(records):
            if records[i].flags & LINEAGE_EMPTY:
                self.problems.add(
                    f"{where}: snapshot {i} is an empty anchor, and more than one line of data goes through it"
                )
            elif records[i].cursor != NO_CURSOR:  # I13
                self.problems.add(f"{where}: snapshot {i} is being reclaimed, and more than one shares data with it")
        if reclaiming > 1:
            self.problems.add(f"{where}: {reclaiming} snapshots are being reclaimed at once")

    def _member_problem(
        self, i: int, record: LineageRecord, records: dict[int, LineageRecord], replay: Replay
    ) -> str | None:
        if i >= replay.next_id:
            return f"is not below next_id {replay.next_id}"
        if record.cursor != NO_CURSOR and (not is_given_up(record) or record.flags & LINEAGE_EMPTY):
            return "has a reclaim cursor, and its data was not given up or is given back"
        if record.flags & LINEAGE_HELD and (record.kind == LINEAGE_HEAD or record.flags & LINEAGE_DELETED):
            return "is held, and is a head or deleted"
        if record.root.birth > record.epoch:
            return f"of epoch {record.epoch} holds a block born in epoch {record.root.birth}"
        origin = records.get(record.origin)
        if record.number and (origin is None or origin.kind != LINEAGE_SNAPSHOT or is_given_up(origin)):
            return f"is a clone of {record.origin}, which is no snapshot with data"  # I38
        if record.parent == NONE_ID:
            return None
        parent = records.get(record.parent)
        if parent is None or parent.kind != LINEAGE_SNAPSHOT:
            return f"stands on {record.parent}, which is no snapshot"
        if parent.epoch >= record.epoch:
            return f"of epoch {record.epoch} stands on snapshot {record.parent} of epoch {parent.epoch}"
        if record.kind == LINEAGE_HEAD and record.frozen < parent.epoch:
            return f"stands on snapshot {record.parent} of epoch {parent.epoch}, but only {record.frozen} is frozen"
        return None

    def _check_sizes(self, lineage: dict[int, LineageRecord]) -> None:
        """Each map spans its size, and has only holes behind it. (Below the cursor of a reclaim lies anything.)"""
        quiet = self._quiet_trees()
        for i, record in lineage.items():
            blocks = -(-record.size >> self.sb.block_shift)
            behind: set[Extent] = set()
            if record.cursor == NO_CURSOR:
                quiet.whole = set()
                quiet.collect(record.root, Intervals([(blocks, SLOTS_MAX)]), behind)
            what = f"{'head' if record.kind == LINEAGE_HEAD else 'snapshot'} {i} of {record.size} bytes"
            if record.root.level < level_for(TREE_MAP, blocks):
                self.problems.add(f"{what} has a map of level {record.root.level}, which does not span it")
            if behind:
                self.problems.add(f"{what} maps block {min(extent[1] for extent in behind)}, which lies behind its end")

    def _check_blobs(self, lineage: dict[int, LineageRecord]) -> None:
        for i, record in lineage.items():
            if not record.metadata_bytes:
                continue
            data = self.io.pread(self.fd, record.metadata_bytes, record.metadata_slot * SLOT_BYTES)
            if xxh64(data, blob_seed(self.fold, i)) != record.metadata_checksum:
                self.problems.add(f"metadata of snapshot {i} in slot {record.metadata_slot}: the checksum is wrong")

    # --- what is reachable -----------------------------------------------------------------------------------------

    def _state(self, replay: Replay) -> _State:
        extents = sorted(replay.reach(self.trees))
        blocks = max(-(-m.record.size >> self.sb.block_shift) for m in replay.members.values())
        runs: list[Run] = []
        end, shift, birth, block = 0, 0, 0, 0
        for extent in extents:
            self._check_extent(extent, blocks, replay.where)
            slot, first, count, born = extent
            moved = slot - first * self.block_slots
            if slot < end and (moved != shift or born != birth):
                self.problems.add(
                    f"{replay.where}: slot {slot} holds block {first} of epoch {born} and, from block {block} on, "
                    f"others of epoch {birth}"
                )
            if slot >= end or slot + count * self.block_slots > end:
                end, shift, birth, block = slot + count * self.block_slots, moved, born, first
            runs.append((slot, slot + count * self.block_slots))
        runs = merge(runs)
        blobs = {m.record.metadata_slot: i for i, m in replay.members.items() if m.record.metadata_slot}
        state = _State(runs, dict(self.trees.nodes), blobs, extents)
        self._check_apart(state, replay.where)
        return state

    def _check_extent(self, extent: Extent, blocks: int, where: str) -> None:
        slot, block, count, birth = extent
        end = slot + count * self.block_slots
        problems = []
        if block + count > blocks:
            problems.append(f"beyond the end of the volume, which has {blocks} blocks")
        if slot < self.homes[0][0]:
            problems.append("below the first home region")
        inside = False
        for begin, limit, first_block in self.homes:
            if slot < limit and end > begin:
                inside = begin <= slot and end <= limit
                if slot - begin != (block - first_block) * self.block_slots:
                    problems.append("in a home that is not its own")
        if not inside and end > self.file_slots:
            problems.append("beyond the end of the file")
        for problem in problems:
            self.problems.add(
                f"{where}: blocks {block} to {block + count - 1} of epoch {birth} in slot {slot}: {problem}"
            )

    def _check_apart(self, state: _State, where: str) -> None:
        """Nodes and blobs lie outside all homes and where no block lies."""
        owners = {slot: f"node {place}" for slot, place in state.nodes.items()}
        for slot, i in state.blobs.items():
            what = f"metadata of snapshot {i}"
            if owners.setdefault(slot, what) != what:
                self.problems.add(f"{where}: slot {slot} holds {what} and {owners[slot]}")
        for slot, what in owners.items():
            if _holds(state.runs, slot):
                self.problems.add(f"{where}: slot {slot} holds a block and {what}")
            if slot < self.homes[0][0] or any(begin <= slot < limit for begin, limit, _ in self.homes):
                self.problems.add(f"{where}: slot {slot} is a home, the log or a superblock, and holds {what}")

    def _nodes_of_the_other(self) -> dict[int, Place]:
        """Nodes of the superblock that was not chosen: they may still be marked, sound or not."""
        other = self.other
        if other is None or _roots(other) == _roots(self.sb):
            return {}
        quiet = self._quiet_trees()
        quiet.leaves(TREE_SEALS, other.seal_root)
        quiet.leaves(TREE_FREE_MAP, other.free_map_root)
        if other.name_root.kind == POINTER_NODE:
            quiet.leaves(TREE_NAMES, other.name_root)
        for record in quiet.lineage(other.lineage_root).values():
            quiet.collect(record.root, Intervals([(0, SLOTS_MAX)]), set())
        return quiet.nodes

    def _nodes_below_cursors(self, lineage: dict[int, LineageRecord]) -> dict[int, Place]:
        """Nodes of snapshots under reclaim below their cursors: given back at some time, marked until then."""
        quiet = self._quiet_trees()
        for record in lineage.values():
            if record.cursor != NO_CURSOR:
                quiet.collect(record.root, Intervals([(0, record.cursor)]), set())
        return quiet.nodes

    def _quiet_trees(self) -> Trees:
        """For what may be damaged; it skips what the checkpoint's heads and snapshots show."""
        quiet = Trees(self.io, self.fd, self.fold, self.block_slots, Problems())
        quiet.whole = set(self.trees.whole)
        return quiet

    # --- the free map ----------------------------------------------------------------------------------------------

    def _compare(self, used: list[Run], state: _State, optional: list[Run]) -> None:
        required = merge([*state.runs, *_slot_runs(state.nodes), *_slot_runs(state.blobs)])
        self._report("checkpoint", used, required, optional)

    def _compare_after(
        self,
        used: list[Run],
        base: _State,
        final: _State,
        optional: list[Run],
        records: list[Record],
        replay: Replay,
    ) -> None:
        """After the log: the checkpoint's nodes stay until the next one, those of reclaimed snapshots excepted.

        A node over a block that a delta or resize touched was copied since: a reclaim may free what the tree still
        leads to, unless somebody shows that tree without deltas.
        """
        freed = merge((slot, slot + count) for record in records for slot, count in record.freed_nodes)
        deltas = (delta for record in records for delta in iter_deltas(record.deltas))
        touched = merge([*((d.block, d.block + d.block_count) for d in deltas), *replay.resized])
        for slot, place in final.nodes.items():
            tree, level, index = place
            keys = span(tree, level)
            copied = slot not in replay.pristine_nodes and _meets(touched, index * keys, (index + 1) * keys)
            if not copied and _holds(freed, slot):
                self.problems.add(f"log: frees node {place} in slot {slot}, which is still reachable")
        nodes = {**base.nodes, **final.nodes}
        required = merge([*final.runs, *subtract(_slot_runs(nodes), freed), *_slot_runs(final.blobs)])
        allowed = merge([*optional, *freed, *_slot_runs(base.blobs)])
        self._report("after the log", used, required, allowed)
        for slot, place in base.nodes.items():
            if _holds(final.runs, slot):
                self.problems.add(f"log: places a block in slot {slot}, which holds node {place}")

    def _report(self, where: str, used: list[Run], required: list[Run], optional: list[Run]) -> None:
        self.taken = subtract(required, used)
        for begin, end in self.taken:
            self.problems.add(
                f"{where}: slots {begin} to {end - 1} are in use and the free map calls them free", FREE_MAP
            )
        behind = subtract(used, [(0, self.file_slots)])
        for begin, end in behind:
            self.problems.add(
                f"{where}: slots {begin} to {end - 1} lie behind the end of the file, and the free map calls them used",
                FREE_MAP,
            )
            self.ends_late = True
        if self.trees.damaged:
            return
        self.leaked = subtract(subtract(subtract(used, required), optional), behind)
        for begin, end in self.leaked:
            self.problems.add(
                f"{where}: slots {begin} to {end - 1} are leaked: marked used and reached by nothing", FREE_MAP
            )
        self.counts["leaked"] = total(self.leaked)

    def _count(self, replay: Replay, base: _State, final: _State, slots: list[Run], records: list[Record]) -> None:
        snapshots = [m.record for m in replay.members.values() if m.record.kind == LINEAGE_SNAPSHOT]
        deleted = sum(bool(record.flags & LINEAGE_DELETED) for record in snapshots)
        self.counts.update(
            blocks=total(final.runs) // self.block_slots,
            nodes=len(base.nodes),
            snapshots=len(snapshots) - deleted,
            clones=len(replay.heads) - 1,
            anchors=sum(record.flags & (LINEAGE_ANCHOR | LINEAGE_DELETED) == LINEAGE_ANCHOR for record in snapshots),
            deleted=deleted,
            records=len(records),
            slots_used=total(slots),
        )


def _roots(sb: Superblock) -> tuple[Pointer, ...]:
    return sb.lineage_root, sb.free_map_root, sb.seal_root, sb.name_root


def _branch_points(records: dict[int, LineageRecord]) -> set[int]:
    """Snapshots that more than one head or snapshot with data stands on, and the empty anchors on the way there."""
    passed: set[int] = set()
    branched: set[int] = set()
    for record in records.values():
        above = None if record.flags & LINEAGE_EMPTY else records.get(record.parent)
        while above is not None and above.id not in branched:
            (branched if above.id in passed else passed).add(above.id)
            above = records.get(above.parent) if above.flags & LINEAGE_EMPTY else None
    return branched


def _holds(runs: list[Run], slot: int) -> bool:
    """Whether sorted runs hold this slot."""
    number = bisect_right(runs, (slot, SLOTS_MAX)) - 1
    return number >= 0 and slot < runs[number][1]


def _meets(runs: list[Run], begin: int, end: int) -> bool:
    """Whether sorted runs and [begin, end) have anything in common."""
    number = bisect_right(runs, (end - 1, SLOTS_MAX)) - 1
    return number >= 0 and runs[number][1] > begin


def _slot_runs(slots: dict[int, Place] | dict[int, int]) -> list[Run]:
    """Single slots as runs, ascending."""
    return merge(map(_slot_run, slots))


def _slot_run(slot: int) -> Run:
    return slot, slot + 1
