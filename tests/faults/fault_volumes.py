"""The cases of a volume: everything that its interface does to what is durable, and what recovery makes of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crash_oracle import content_of
from crash_workload import PATH, Geometry, Step
from fault_cases import Case, CloseCase, FaultRunner, LookCase, OpenCase, Scene, VolumeCase, cuts, scene

from cowengine import BusyError, StorageError, Volume

NARROW = Geometry(24 * 4096)
RAGGED = Geometry(16 * 4096 - 512, adopted=True)
WIDE = Geometry(280 * 4096)

BUSY: tuple[Step, ...] = (
    ("write", 0, 4), ("flush",), ("snapshot",), ("write", 1, 2), ("snapshot",), ("write", 5, 3), ("discard", 2, 1),
    ("make_clone", 0), ("clone_write", 0, 1), ("snapshot",), ("write", 9, 2), ("hold", 2), ("checkpoint",),
    ("write", 6, 1), ("flush",),
)  # fmt: skip
SEALED: tuple[Step, ...] = (*BUSY, ("seal",))
DISPLACED: tuple[Step, ...] = (
    ("write", 0, 8), ("snapshot",), ("write", 0, 6), ("flush",), ("delete", 0), ("checkpoint",),
)  # fmt: skip
PENDING: tuple[Step, ...] = (
    ("write", 0, 8), ("write", 250, 8), ("snapshot",), ("write", 0, 6), ("write", 250, 6), ("snapshot",),
    ("write", 2, 1), ("delete_only", "s3"),
)  # fmt: skip

# On a busy volume with something unflushed.
STEPS: tuple[Step, ...] = (
    ("write", 1, 1), ("write", 12, 2), ("partial", 4000, 700), ("discard", 0, 2), ("zero", 2560, 9000), ("flush",),
    ("snapshot",), ("delete", 1), ("delete", 2), ("rollback", 0), ("rollback", 1), ("anchor", 1),
    ("checkpoint",), ("seal",), ("seal_in_memory",), ("hold", 1), ("release", 2), ("give_up", 1), ("policy",),
    ("resize", 8), ("resize", 9), ("resize", 130), ("make_clone", 1), ("clone_write", 0, 1), ("clone_discard", 0, 0),
    ("clone_snapshot", 0, 0), ("clone_rollback", 0, 1), ("clone_resize", 0, 20), ("delete_head", 0), ("retain",),
    ("accept_clock",), ("repair",),
)  # fmt: skip
UNFLUSHED: tuple[Step, ...] = (("write", 3, 1),)
CUT: tuple[Step, ...] = (
    ("flush",), ("snapshot",), ("delete", 1), ("rollback", 0), ("resize", 8), ("resize", 130), ("anchor", 1),
    ("checkpoint",), ("make_clone", 1), ("delete_head", 0), ("give_up", 1), ("seal",),
)  # fmt: skip


def named(step: Step) -> str:
    return "-".join(map(str, step))


def volume_cases() -> Iterator[Case]:
    """All of them."""
    busy, sealed, displaced = (scene(*steps, geometry=NARROW) for steps in (BUSY, SEALED, DISPLACED))
    pending, adopted = scene(*PENDING, geometry=WIDE), scene(*SEALED, geometry=RAGGED)
    for step in STEPS:
        yield VolumeCase(f"busy:{named(step)}", busy, step, UNFLUSHED)
    for step in (("write", 0, 1), ("partial", 4000, 700), ("snapshot",), ("delete", 1), ("flush",)):
        yield VolumeCase(f"sealed:{named(step)}", sealed, step)
        yield VolumeCase(f"adopted:{named(step)}", adopted, step, UNFLUSHED)
    yield VolumeCase("adopted:resize-200", adopted, ("resize", 200))
    yield VolumeCase("displaced:compact", displaced, ("compact",))
    yield VolumeCase("displaced:start-compaction", displaced, ("compact_beside",))
    yield VolumeCase("pending:reclaim", pending, ("reclaim",))
    yield VolumeCase("wide:delete", pending, ("delete", 0))
    yield CloseCase("busy:close", busy, UNFLUSHED)
    yield CloseCase("busy:close-idle", busy)
    yield from looks(busy, sealed)
    yield from openings(busy, displaced, pending)


def openings(busy: Scene, displaced: Scene, pending: Scene) -> Iterator[Case]:
    """Of what a clean close left, and of what a crash left in the middle of something."""
    yield OpenCase("open:clean", busy)
    yield OpenCase("open:clean-read-only", busy, read_only=True)
    crashes: list[tuple[Scene, Step, tuple[Step, ...]]] = [(busy, step, UNFLUSHED) for step in CUT]
    crashes += [(displaced, ("compact",), ()), (pending, ("reclaim",), ()), (pending, ("delete", 0), ())]
    known: set[int] = set()
    for before, step, unflushed in crashes:
        for number, left in enumerate(cuts(before, step, unflushed, known)):
            yield OpenCase(f"open:cut-{named(step)}-{number}", left)
            if number == 0:
                yield OpenCase(f"open:cut-{named(step)}-{number}-read-only", left, read_only=True)


# -- what only looks ---------------------------------------------------------------------------------------------------
def looks(busy: Scene, sealed: Scene) -> Iterator[Case]:
    for look in (read_all, changes, extents, check, space, metadata, found, deletable):
        yield LookCase(f"busy:{look.__name__}", busy, look, UNFLUSHED)
    for look in (extents, unsealed):
        yield LookCase(f"cold:{look.__name__}", busy, look)
    for look in (read_all, verify, verify_one, reader_beside, reader_of_one, unsealed):
        yield LookCase(f"sealed:{look.__name__}", sealed, look, UNFLUSHED)


def read_all(runner: FaultRunner) -> Any:
    volume = runner.volume
    with volume.open_head(volume.heads()[1]) as clone:
        return (
            volume.pread(volume.size, 0),
            clone.pread(clone.size, 0),
            filled(clone),
            [content_of(each) for each in volume.snapshots()],
            *read_otherwise(volume.snapshots()[1]),
        )


def filled(source: Any) -> bytes:
    """What it reads into memory of ours, at once and by its halves."""
    whole, halves, half = bytearray(source.size), bytearray(source.size), source.size // 2
    source.pread_into(whole, 0)
    source.pread_many(halves, [(0, half), (half, source.size - half)])
    return bytes(whole + halves)


def read_otherwise(snapshot: Any) -> tuple[bytes, bytes]:
    """By the other two ways."""
    with snapshot.open() as file:
        return filled(snapshot), file.read()


def changes(runner: FaultRunner) -> Any:
    snapshots = runner.volume.snapshots()
    return [runner.volume.changed_extents(each).tolist() for each in snapshots] + [
        snapshots[-1].changed_extents(snapshots[0]).tolist()
    ]


def extents(runner: FaultRunner) -> Any:
    snapshots = runner.volume.snapshots()
    return [runner.volume.allocated_extents().tolist(), *(each.allocated_extents().tolist() for each in snapshots)]


def check(runner: FaultRunner) -> Any:
    return runner.volume.check().problems


def verify(runner: FaultRunner) -> Any:
    return sound(runner.volume.verify())


def verify_one(runner: FaultRunner) -> Any:
    return [sound(each.verify()) for each in runner.volume.snapshots()]


def sound(report: Any) -> Any:
    """It goes on where a block cannot be read, and says so."""
    if not report.ok:
        raise StorageError(str(report.problems))
    return report.counts


def space(runner: FaultRunner) -> Any:
    return runner.volume.du(), [each.space() for each in runner.volume.snapshots()]


def unsealed(runner: FaultRunner) -> Any:
    return runner.volume.unsealed_bytes(), runner.volume.stats()["snapshots"]


def metadata(runner: FaultRunner) -> Any:
    return [(each.metadata, each.hold_reason, each.retain_until) for each in runner.volume.snapshots()]


def found(runner: FaultRunner) -> Any:
    volume = runner.volume
    names = [volume.get_snapshot(each.id).name for each in volume.snapshots()]
    return names, [volume.get_snapshot(name).id for name in names], [each.is_anchor for each in volume.snapshots()]


def deletable(runner: FaultRunner) -> Any:
    return [may_go(each) for each in runner.volume.snapshots()]


def may_go(snapshot: Any) -> bool:
    try:
        snapshot.require_deletable()
    except BusyError:
        return False
    return True


def reader_beside(runner: FaultRunner) -> Any:
    with Volume.open(PATH, read_only=True, io=runner.disk, background=False) as reader:
        shown = [(each.name, content_of(each)) for each in reader.snapshots()]
        changed = reader.snapshots()[-1].changed_extents(reader.snapshots()[0]).tolist()
        return shown, changed


def reader_of_one(runner: FaultRunner) -> Any:
    """Everything that a reader beside the owner says of the volume and a snapshot."""
    with Volume.open(PATH, read_only=True, io=runner.disk, background=False) as reader:
        said = reader.heads(), reader.unsealed_bytes(), reader.stats()["snapshots"]
        base, name = [each.name for each in reader.snapshots()][:2]
        one = reader.get_snapshot(name)
        extents = one.allocated_extents().tolist(), one.changed_extents(base).tolist()
        about = one.hold_reason, one.retain_until, one.metadata, one.is_anchor, one.space()
        return said, about, extents, content_of(one), read_otherwise(one), sound(one.verify())
