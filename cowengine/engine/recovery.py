"""Opening: from whatever a crash left to the last acknowledged commit, or the one in flight.

Recovery is itself a commit (I14): sync first, so that what is read is what the disk holds; drop the cache; read;
replay; then a superblock with a fresh salt, the tip and skipped epochs goes to both slots, a barrier each, before
anything is placed or reused. A clean file goes the same way.

Read-only, nothing is written: the log is replayed in memory. If the file has an owner then, reader.py takes over.
"""

from __future__ import annotations

import errno
import logging
import os
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable
from cowengine.core.readahead import read_ahead
from cowengine.core.roots import Head, Root
from cowengine.engine.clones import clone_deleted, cloned
from cowengine.engine.engine import Engine, close_unopened
from cowengine.engine.files import open_regular
from cowengine.engine.homes import add_region
from cowengine.engine.intent import intent_path, void_intent
from cowengine.engine.locks import FileLocks
from cowengine.engine.names import is_pending
from cowengine.engine.reclaim import replay_step
from cowengine.engine.resize import resized
from cowengine.engine.space import Policy
from cowengine.errors import (
    BusyError,
    CorruptionError,
    CowEngineError,
    FormatError,
    PoisonedError,
    StorageError,
    UnsupportedVersionError,
)
from cowengine.format import (
    EPOCH_MAX,
    EPOCH_SKIP,
    FEATURES_INCOMPATIBLE,
    ID_MAX,
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_HELD,
    LINEAGE_SNAPSHOT,
    NO_CURSOR,
    NO_UUID,
    SLOT_BYTES,
    SLOTS_MAX,
    TREE_FREE_MAP,
    AnchorEvent,
    CloneEvent,
    DeleteEvent,
    DeleteHeadEvent,
    Event,
    EventOfSnapshot,
    GiveUpEvent,
    HoldEvent,
    PolicyEvent,
    ReclaimedEvent,
    ReclaimEvent,
    Record,
    Region,
    RegionEvent,
    ResizeEvent,
    RetainEvent,
    RollbackEvent,
    SnapshotEvent,
    StoreEvent,
    Superblock,
    check_seed,
    checks_overlap,
    decode_record,
    decode_superblock,
    hole,
    iter_deltas,
    level_for,
    records_beyond,
    superblock_astray,
)

if TYPE_CHECKING:
    from cowengine.engine.rebuild import Rebuilding

logger = logging.getLogger("cowengine.engine")

SPARE = 1 << 32  # epochs and ids that an open volume can count on: nobody takes as many snapshots


def open_engine(
    io: IOTable, path: str, *, read_only: bool = False, store_uuid: bytes | None = None, without_store: bool = False,
    rebuilding: Rebuilding | None = None,
) -> Engine:  # fmt: skip
    """Opens a volume file; for writing, as its owner. With `rebuilding`, tables that are damaged are made anew."""
    fd = open_regular(io, path, read_only=read_only)
    try:
        return _open(io, fd, path, read_only, store_uuid, without_store, rebuilding)
    except BaseException as error:
        close_unopened(io, fd)
        if isinstance(error, OSError) and not isinstance(error, CowEngineError):
            raise StorageError(f"opening failed: {error.strerror}", path, error.errno or errno.EIO) from error
        raise


def _open(
    io: IOTable, fd: int, path: str, read_only: bool, store_uuid: bytes | None, without_store: bool,
    rebuilding: Rebuilding | None,
) -> Engine:  # fmt: skip
    locks = FileLocks(io, fd, path)
    if not read_only:
        locks.own()
    elif not locks.share():
        from cowengine.engine.reader import Reader

        return Reader(io, fd, path).newest()
    if not read_only or not _choose(io, fd, path)[0].clean:
        _make_durable(io, fd, path)
    superblock, slot, other = _choose(io, fd, path)
    if not read_only:
        void_intent(io, path, superblock.volume_uuid)
    if superblock.needs_store and not read_only and store_uuid != superblock.store_uuid and not without_store:
        raise BusyError(
            f"the volume belongs to store {uuid.UUID(bytes=superblock.store_uuid)}, which was not closed cleanly; open "
            "it through that store, or pass without_store=True and lose snapshot sets that are only in its log", path,
        )  # fmt: skip
    file_slots = whole_slots(io, fd, path, superblock)
    if rebuilding is not None:
        rebuilding.examine(io, fd, path)
    engine = Engine(io, fd, path, superblock, read_only=read_only, file_slots=file_slots)
    engine.newest_slot = slot
    try:
        load(engine)
        if rebuilding is not None:
            rebuilding.before_replay(engine)
        replay(engine, engine.log.read_all())
        if rebuilding is not None:
            rebuilding.after_replay(engine)
        if not read_only:
            _commit_recovery(engine, store_uuid, other)
    except CorruptionError as error:
        error.filename = error.filename or path
        raise
    return engine


def _make_durable(io: IOTable, fd: int, path: str) -> None:
    """I14: what is read next is what the disk holds, whoever wrote it and died."""
    try:
        io.fdatasync(fd)
    except OSError as error:
        raise PoisonedError(f"the file cannot be synced ({error.strerror}); nothing was changed", path) from error
    io.forget(fd)


def _choose(io: IOTable, fd: int, path: str) -> tuple[Superblock, int, bool]:
    try:
        return choose_superblock(io, fd, path)
    except UnsupportedVersionError:
        raise
    except (FormatError, CorruptionError) as error:
        if not io.is_file(intent_path(path)):
            raise
        raise FormatError(
            f"{path}: the step between raw image and volume was interrupted; {intent_path(path)} has what is needed "
            "to go on: adopt the file again, or undo the adoption (cowengine volume adopt --undo) for the raw image"
        ) from error


# -- superblocks -------------------------------------------------------------------------------------------------------
def choose_superblock(io: IOTable, fd: int, path: str) -> tuple[Superblock, int, bool]:
    """The valid superblock of the higher generation, its slot, and whether the other one is valid, too."""
    found: list[tuple[Superblock, int]] = []
    problems: list[Exception] = []
    for slot in (0, 1):
        try:
            data = io.pread(fd, SLOT_BYTES, slot * SLOT_BYTES)
            found.append((decode_superblock(data + bytes(SLOT_BYTES - len(data))), slot))
        except UnsupportedVersionError:
            raise  # its checksum is right: a newer cowengine wrote this file, whatever the other slot says
        except (FormatError, CorruptionError) as problem:
            problems.append(problem)
    if not found:
        if all(isinstance(problem, CorruptionError) for problem in problems):
            raise CorruptionError("both superblocks are damaged", path) from problems[0]
        worst = next((p for p in problems if type(p) is not FormatError), problems[0])
        if isinstance(worst, CorruptionError):
            worst.filename = path
            raise worst
        raise type(worst)(f"{worst}: {path}") from None
    superblock, slot = max(found, key=lambda pair: pair[0].generation)
    unknown = superblock.features_incompatible & ~FEATURES_INCOMPATIBLE
    assert not unknown, "decode_superblock refuses unknown features"
    return superblock, slot, len(found) == 2


def whole_slots(io: IOTable, fd: int, path: str, superblock: Superblock) -> int:
    """Slots of the file. Raises CorruptionError unless its log and its home regions lie in it."""
    file_bytes = io.size(fd)
    ends = [region.slot + (region.block_count << superblock.block_shift) // SLOT_BYTES for region in superblock.regions]
    needed = max(*ends, superblock.log_first + superblock.log_slots)
    file_slots = -(-file_bytes // SLOT_BYTES)
    if file_slots < needed:
        raise CorruptionError(
            f"the file has {file_bytes} bytes and needs {needed * SLOT_BYTES} at least: it was cut short", path
        )
    if file_slots > SLOTS_MAX:
        raise CorruptionError(f"the file has {file_bytes} bytes, more than a volume can", path)
    return file_slots


# -- replay ------------------------------------------------------------------------------------------------------------
def load(engine: Engine) -> None:
    """The state of the chosen superblock's checkpoint."""
    sb = engine.superblock
    engine.table.pointer = sb.lineage_root.encode()
    engine.seals.pointer = sb.seal_root.encode()
    engine.lineage.load_heads()
    for number, record in engine.lineage.heads.items():
        engine.lineage.require_fit(record)
        head = engine.path.add_head(number) if number else engine.path.live
        head.load(record.root.encode())
        head.set_size(record.size)
        head.set_epochs(record.epoch, record.frozen)
    # Who only reads needs no free map.
    free_map_root = hole(level_for(TREE_FREE_MAP, 1)) if engine.read_only else sb.free_map_root
    engine.free_map.pointer = free_map_root.encode()
    engine.lineage.set_holders()
    log = engine.log
    log.sequence, log.checksum = sb.base_sequence, sb.base_checksum
    log.position = log.tail = sb.base_offset
    engine.bases = (log.position, log.position)


def replay(engine: Engine, data: bytes, durable: int | None = None) -> None:
    """Applies the chain of records in `data`, the whole log, that follows the checkpoint.

    If the file has an owner, `durable` is the last record that is known to be; of those behind it, all that have a
    successor are, too, because none is written before the barrier of the one before (I8, I35). A last one that may not
    be is left out.
    """
    sb, log = engine.superblock, engine.log
    chain: set[int] = set()
    records: list[Record] = []
    end = log.position, log.sequence, log.checksum
    while len(chain) * log.unit < log.size:
        found = _next_record(engine, data)
        if found is None:
            break
        end = log.position, log.sequence, log.checksum
        record, checksum, length, place = found
        if record.generation > sb.generation + 1:  # no more than one superblock can be lost
            raise CorruptionError(f"record {record.sequence} follows superblock {record.generation}, which is lost")
        records.append(record)
        chain.add(place % log.size)
        log.position = place + log.padded(length)
        log.sequence, log.checksum = record.sequence, checksum
    last, dropped = records[-1] if records else None, ""
    # What an owner announced is there, and he may be writing: only a file that stands still is looked at (I52).
    if last is not None and durable is None and last.sequence > sb.tip_sequence and not _is_whole(engine, last):
        dropped = _contents(last)
        logger.warning("%s: the last record is dropped, its data was not written: %s", engine.name, dropped)
        records.pop()
        log.position, log.sequence, log.checksum = end
    elif last is not None and durable is not None and last.sequence > max(durable, sb.tip_sequence):
        records.pop()
    read_ahead(engine.path, b"".join(record.deltas for record in records))
    for record in records:
        _apply(engine, record)
    if log.sequence < sb.tip_sequence:
        raise CorruptionError(f"record {log.sequence + 1} of the commit log is missing; it was confirmed", engine.name)
    for offset, header in records_beyond(data, sb, log.sequence if durable is None else None):
        if offset not in chain:
            raise CorruptionError(
                f"record {header.sequence} of the commit log is there, what leads to it is not: superblock "
                f"{header.generation} or record {log.sequence + 1} is lost",
                engine.name,
            )
    astray = superblock_astray(data, sb)
    if astray is not None:
        raise CorruptionError(f"superblock {astray} was written over the commit log, not into its slot", engine.name)
    live = engine.path.live
    live.set_epochs(engine.path.map.epoch, live.frozen)
    engine.recovered = {"records": len(chain), "was_clean": sb.clean, "dropped": dropped}
    engine.path.slots.forget_busy()


def _next_record(engine: Engine, data: bytes) -> tuple[Record, int, int, int] | None:
    """The next record of the chain, its checksum, length and position; it lies where the last one ends, or at 0."""
    sb, log = engine.superblock, engine.log
    at = log.position % log.size
    for offset, place in ((at, log.position), (0, log.position + log.size - at)):
        decoded = decode_record(data, offset, log.size, engine.fold, log.sequence + 1)
        if decoded is None:
            continue
        record, checksum, length = decoded
        salted = record.salt == sb.salt or record.sequence <= sb.tip_sequence
        if record.previous == log.checksum and salted and place + log.padded(length) - log.tail <= log.size:
            return record, checksum, length, place
    return None


def _is_whole(engine: Engine, record: Record) -> bool:
    """Whether the data that a one-barrier record needs is there; with two barriers it was before the record."""
    if not record.one_barrier:
        return True
    block_bytes = engine.path.block_bytes
    if checks_overlap(record, block_bytes // SLOT_BYTES):
        raise CorruptionError(f"record {record.sequence} checks a block twice")
    for slot, checksum in record.checks:
        data = engine.io.pread(engine.fd, block_bytes, slot * SLOT_BYTES)
        if len(data) < block_bytes or xxh64(data, check_seed(engine.fold, slot)) != checksum:
            return False
    return True


def _contents(record: Record) -> str:
    """What a record holds, for who wants to know what was dropped: nobody was told that it is durable."""
    blocks = sum(delta.block_count for delta in iter_deltas(record.deltas))
    taken = [f"snapshot {event.name!r}" for event in record.events if isinstance(event, SnapshotEvent)]
    return f"record {record.sequence} with " + ", ".join([*taken, f"changes of {blocks} blocks"])


def _apply(engine: Engine, record: Record) -> None:
    """One record: events that come before, deltas, what was freed, events that come after."""
    for event in record.events:
        if event.before:
            apply_event(engine, event)
    deltas = bytes(record.deltas)
    if not engine.path.replay(deltas):
        raise CorruptionError(f"record {record.sequence} changes blocks beyond the end of the volume")
    engine.path.free_runs(list(record.freed))
    # From the older superblock's checkpoint, a node of the newer one is a slot that is free.
    engine.superseded += engine.path.slots.used_slots(list(record.freed_nodes))
    for event in record.events:
        if not event.before:
            apply_event(engine, event)
    # The runway and whatever else was given out are free again; what the record placed is used.
    if record.epoch < engine.path.map.epoch:
        raise CorruptionError(
            f"record {record.sequence} goes back to epoch {record.epoch} from {engine.path.map.epoch}"
        )
    engine.path.note_epoch(record.epoch)


def apply_event(engine: Engine, event: Event) -> None:
    """What a commit did in memory after it was acknowledged."""
    lineage = engine.lineage
    problem = _impossible(engine, event)
    if problem:
        raise CorruptionError(f"the log says what cannot be: {problem}")
    if isinstance(event, SnapshotEvent):
        head = engine.path.heads[event.head]
        lineage.take(event, _root_now(engine, head), head.size)
        head.set_epochs(event.epoch + 1, event.epoch)
    elif isinstance(event, DeleteEvent):
        lineage.delete(event.id)
    elif isinstance(event, ReclaimEvent):
        replay_step(engine, event.id, event.cursor)
    elif isinstance(event, ReclaimedEvent):
        lineage.reclaimed(event.id)
    elif isinstance(event, AnchorEvent):
        lineage.anchor(event.id)
    elif isinstance(event, RollbackEvent):
        engine.turn_back(event)
    elif isinstance(event, ResizeEvent):
        resized(engine, event)
    elif isinstance(event, RegionEvent):
        add_region(engine, Region(event.first_block, event.slot, event.block_count))
    elif isinstance(event, StoreEvent):
        engine.durable_store_sequence = event.store_sequence
    elif isinstance(event, PolicyEvent):
        engine.space.policy = Policy.of(event)
    elif isinstance(event, GiveUpEvent):
        engine.space.lose(event)
    elif isinstance(event, HoldEvent):
        lineage.hold(event.id, event.reason)
    elif isinstance(event, RetainEvent):
        engine.retention.resume(event.clock_ns, event.clock_boot_ns, event.clock_boot_id)
        lineage.retain(event.id, event.retain_until_ns)
    elif isinstance(event, CloneEvent):
        cloned(engine, event)
    else:
        assert isinstance(event, DeleteHeadEvent), "decode_events knows no other"
        clone_deleted(engine, event, _root_now(engine, engine.path.heads[event.number]))
    lineage.set_holders()


def _root_now(engine: Engine, head: Head) -> Root:
    """The map of a head as of this point of the log."""
    _, _, _, _, superseded, roots = engine.path.take_batch([head])
    engine.superseded += superseded
    return roots[0]


def _impossible(engine: Engine, event: Event) -> str | None:
    """What makes an event one that no commit wrote; None if nothing does. Its checksum is right: the file is hostile.

    The checker goes by the same rules (check_replay.py).
    """
    if isinstance(event, SnapshotEvent | ResizeEvent | RollbackEvent | DeleteHeadEvent):
        return _impossible_of_head(engine, event)
    if isinstance(event, CloneEvent):
        target, newest = engine.lineage.get(event.snapshot), engine.path.map.epoch
        if target is None or target.kind != LINEAGE_SNAPSHOT or target.flags & (LINEAGE_ANCHOR | LINEAGE_DELETED):
            return f"head {event.number} is a clone of {event.snapshot}, which is no snapshot with data"
        if event.number in engine.lineage.heads or engine.lineage.find_head(event.name) is not None:
            return f"head {event.number}, {event.name!r}, is made twice"
        if not engine.lineage.next_id <= event.id <= ID_MAX or event.epoch <= newest:
            return f"head {event.number} gets id {event.id} and epoch {event.epoch}, which are not free"
    if isinstance(event, EventOfSnapshot):
        return _impossible_of_snapshot(engine, event)
    return None


def _impossible_of_head(
    engine: Engine, event: SnapshotEvent | ResizeEvent | RollbackEvent | DeleteHeadEvent
) -> str | None:
    """`_impossible` of the events that speak of one head."""
    number = event.number if isinstance(event, DeleteHeadEvent) else event.head
    head = engine.path.heads.get(number)
    if head is None:
        return f"{type(event).__name__} of head {number}, which does not exist"
    if event.epoch <= head.frozen or event.epoch < head.epoch:
        return f"{type(event).__name__} of head {number} in epoch {event.epoch} after epoch {head.epoch}"
    if isinstance(event, SnapshotEvent) and not engine.lineage.next_id <= event.id <= ID_MAX:
        return f"snapshot {event.id} where {engine.lineage.next_id} is next"
    if isinstance(event, RollbackEvent):
        target = engine.lineage.get(event.to)
        if target is None or target.kind != LINEAGE_SNAPSHOT:
            return f"head {number} is rolled back to {event.to}, which is no snapshot"
        given_up = target.flags & (LINEAGE_ANCHOR | LINEAGE_DELETED)
        if given_up or event.size != target.size or event.epoch <= engine.path.map.epoch:
            return f"a rollback to snapshot {event.to}, with {event.size} bytes in epoch {event.epoch}"
    return None


def _impossible_of_snapshot(engine: Engine, event: EventOfSnapshot) -> str | None:
    """`_impossible` of the events that speak of one snapshot."""
    record, what = engine.lineage.get(event.id), f"{type(event).__name__} of snapshot {event.id}"
    if record is None or record.kind != LINEAGE_SNAPSHOT:
        return f"{what}, which does not exist"
    if isinstance(event, ReclaimEvent | ReclaimedEvent):
        if not is_pending(record.flags):
            return f"{what}, whose data was not given up"
        if isinstance(event, ReclaimEvent) and record.cursor != NO_CURSOR and event.cursor < record.cursor:
            return f"{what} goes back to block {event.cursor}"
        if len(engine.lineage.sharers(event.id)) > 1:
            return f"{what}, which more than one shares data with"  # I13
        return None
    if record.flags & LINEAGE_DELETED:
        return f"{what}, which was deleted"
    if isinstance(event, AnchorEvent) and record.flags & LINEAGE_ANCHOR:
        return f"{what}, which is one"
    if isinstance(event, RetainEvent):
        return f"{what} shortens its retention" if event.retain_until_ns < record.retain_until_ns else None
    if isinstance(event, HoldEvent):
        return None
    if record.flags & LINEAGE_HELD:
        return f"{what}, which is held"
    if engine.lineage.clone_on(event.id) is not None:
        return f"{what}, which a clone stands on"  # I38
    return None


# -- the commit of recovery --------------------------------------------------------------------------------------------
def _commit_recovery(engine: Engine, store_uuid: bytes | None, other_valid: bool) -> None:
    """I14: confirms the tip under a fresh salt, in both slots."""
    sb, log, heads = engine.superblock, engine.log, engine.path.heads
    epoch = max(engine.path.map.epoch, sb.epoch) + EPOCH_SKIP
    if epoch > EPOCH_MAX - SPARE or engine.lineage.next_id > ID_MAX - SPARE:
        raise CorruptionError("the volume has no epochs or ids left: open it read-only and copy what it holds")
    for fresh, head in enumerate(heads.values(), epoch):
        head.set_epochs(fresh, head.frozen)
    epoch = engine.path.map.epoch
    same_store = store_uuid is not None and sb.store_uuid == store_uuid
    recovered = replace(
        sb, clean=False, salt=int.from_bytes(os.urandom(8), "little"), epoch=epoch,
        tip_sequence=log.sequence, tip_checksum=log.checksum, needs_store=store_uuid is not None,
        store_uuid=store_uuid or NO_UUID, store_sequence=sb.store_sequence if same_store else 0,
    )  # fmt: skip
    if not same_store:
        engine.durable_store_sequence = 0
    engine.left_store = not same_store
    engine.write_superblock(recovered)
    engine.write_superblock(engine.superblock)
    engine.allocator.fill_reserve()
    engine.locks.publish(log.sequence)
    if not other_valid:
        logger.warning("%s: one of the two superblocks was damaged and has been rewritten", engine.name)
