"""Repair: puts right what can be put right without guessing, in an open volume or a file; refuses all else, unchanged.

Only what is derived is made anew: a superblock from the other one, the free map, the index of names and the seals from
maps and lineage. No map, lineage, record or block is ever changed, and no snapshot goes; what a deleted one still
holds is given back. Each round is a check, corrections in memory, and checkpoints, which go to free slots: a crash
leaves what was there before a round, or behind it.

Threads   under the engine's commit lock; writes wait meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cowengine.core.iotable import IOTable
from cowengine.engine.allocator import packed
from cowengine.engine.check import Check, examine
from cowengine.engine.check_trees import FREE_MAP, NAMES, SEALS
from cowengine.engine.engine import Engine
from cowengine.engine.lineage import is_readable
from cowengine.engine.rebuild import Rebuilding, as_runs, require_repairable, told
from cowengine.engine.reclaim import pending, punch
from cowengine.engine.recovery import open_engine
from cowengine.engine.report import Report
from cowengine.errors import CorruptionError, FormatError
from cowengine.format import (
    SEALS_PER_LEAF,
    SLOT_BYTES,
    TREE_SEALS,
    Superblock,
    decode_superblock,
    encode_superblock,
)
from cowengine.oserrors import typed

ROUNDS = 4
SEAL_BYTES = 4


@dataclass(slots=True)
class Repaired(Report):
    """The report of a check with repair: `repaired` says what was found and done, `problems` what is left."""

    repaired: list[str] = field(default_factory=list)


def repair_file(io: IOTable, path: str) -> Repaired:
    """Repairs a volume file that nobody has open, also one that no open takes because of its free map or seals.

    Raises what an open raises; CorruptionError if anything would have to be guessed. Then nothing was changed.
    """
    rebuilding = Rebuilding()
    engine = open_engine(io, path, rebuilding=rebuilding)
    try:
        engine.background = False
        if rebuilding.repaired:
            engine.checkpoint()
        report = repair_open(engine)
        report.repaired = rebuilding.repaired + report.repaired
    finally:
        engine.close()
    return report


def repair_open(engine: Engine) -> Repaired:
    """Repairs an open volume. Durable when it returns. Raises as `repair_file`."""
    with engine.lock:
        engine.require_writable()
        with engine.paused(*engine.path.heads.values()):
            engine.commit()
            repaired = _superblocks(engine, only_if_both=True)
            problems, check, _ = examine(engine.io, engine.fd, engine.name)
            require_repairable(problems, engine.name)
            repaired += _superblocks(engine)
            for _ in range(ROUNDS):
                if not problems or check is None:
                    break
                _require_free(engine, check)
                repaired += told(problems, (FREE_MAP, NAMES, SEALS))
                _round(engine, check, names=NAMES in problems.parts)
                problems, check, _ = examine(engine.io, engine.fd, engine.name)
                require_repairable(problems, engine.name)
        waiting = pending(engine)
        engine.reclaim()
        if pending(engine) < waiting:
            repaired.append(f"{waiting - pending(engine)} deleted snapshots still held space: it was given back")
        with engine.paused(*engine.path.heads.values()):
            engine.commit()
            problems, check, counts = examine(engine.io, engine.fd, engine.name)
    return Repaired(list(problems), {**counts, "repaired": len(repaired)}, repaired)


# -- superblocks -------------------------------------------------------------------------------------------------------
def _superblocks(engine: Engine, *, only_if_both: bool = False) -> list[str]:
    """Writes a damaged superblock anew. The newest of the two is known: this handle wrote it."""
    slots = [_read_superblock(engine, slot) for slot in (0, 1)]
    newest = engine.newest_slot
    other = slots[1 - newest]
    if slots[newest] not in (None, engine.superblock) or (other and other.generation > engine.superblock.generation):
        raise CorruptionError("somebody else has written a superblock; nothing was changed", engine.name)
    repaired = []
    if slots[newest] is None and (slots[1 - newest] is None or not only_if_both):
        with engine.undivided():
            engine.io.pwrite(engine.fd, encode_superblock(engine.superblock), newest * SLOT_BYTES)
            engine.barrier()
        repaired.append(f"superblock slot {newest} was damaged: written anew")
    if slots[1 - newest] is None and not only_if_both:
        engine.write_superblock(engine.superblock)  # to that slot, and the newest one from now on
        repaired.append(f"superblock slot {1 - newest} was damaged: written anew")
    return repaired


def _read_superblock(engine: Engine, slot: int) -> Superblock | None:
    with typed(engine.name):
        data = engine.io.pread(engine.fd, SLOT_BYTES, slot * SLOT_BYTES)
    try:
        return decode_superblock(data + bytes(SLOT_BYTES - len(data)))
    except (FormatError, CorruptionError):
        return None


# -- tables ------------------------------------------------------------------------------------------------------------
def _require_free(engine: Engine, check: Check) -> None:
    """What an open volume has in memory of a damaged table may be in use by now."""
    busy = any(engine.path.slots.count_busy(begin, end) for begin, end in check.taken)
    if busy or check.ends_late or TREE_SEALS in check.trees.damaged_trees:
        raise CorruptionError(
            "the free map or the table of seals is damaged, and cannot be made anew while the volume is open; nothing "
            "was changed. Close it and repair the file (cowengine volume check --repair)",
            engine.name,
        )


def _round(engine: Engine, check: Check, *, names: bool) -> None:
    slots, lineage = engine.path.slots, engine.lineage
    if names and lineage.names.kept:
        lineage.names.give_up("it does not say what the lineage says")
    slots.mark_used(as_runs(check.taken))
    for slot in check.stale:
        engine.seals.write(slot, slot % SEALS_PER_LEAF * SEAL_BYTES, bytes(SEAL_BYTES))
    for number in check.unsealed:
        record = lineage.get(number)
        if record is not None and is_readable(record.flags):
            lineage.unseal(record)
    leaked = slots.used_slots(as_runs(check.leaked))
    engine.superseded += leaked
    engine.checkpoint()
    freed = set(leaked)
    engine.retired = [run for run in engine.retired if run not in freed]
    engine.checkpoint()  # neither superblock calls them used any more
    engine.allocator.retire(packed(leaked), punch_all=True)
    punch(engine)
