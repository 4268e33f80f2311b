"""A full disk in the middle of anything a volume does: typed, nothing acknowledged lost, and a delete makes room."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ledger import BLOCK, SIZE, VICTIM, Ledger
from small_disk import EXT4, MIB, XFS, Disk

from cowengine import Volume
from cowengine.errors import NoSpaceError, NotFoundError

OPERATIONS: dict[str, Callable[[Ledger, int], None]] = {
    "write": lambda ledger, number: ledger.write(ledger.random.randrange(1, 200_000)),
    "write of one byte": lambda ledger, number: ledger.write(1),
    "snapshot": lambda ledger, number: (ledger.write(3000), ledger.snapshot(f"s{number}"))[0],
    "rollback": lambda ledger, number: (ledger.write(9000), ledger.rollback("base1"))[0],
    "discard": lambda ledger, number: (ledger.discard(), ledger.write(9000), ledger.volume.flush())[0],
    "flush": lambda ledger, number: (ledger.write(5000), ledger.volume.flush())[0],
    "checkpoint": lambda ledger, number: (ledger.write(5000), ledger.volume.engine.checkpoint())[0],
    "reopen": lambda ledger, number: (ledger.write(5000), ledger.reopen())[0],
}


SMALLEST_LOG, DEFAULT_LOG = 16384, 262144


@pytest.fixture
def ledger(disk: Disk, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A volume with three snapshots on a disk with room; with the smallest log, unless told."""
    ledger = Ledger(disk, disk.path / "v", getattr(request, "param", SMALLEST_LOG))
    yield ledger
    if not ledger.volume.closed:
        ledger.volume.close()


def cases() -> Iterator[Any]:
    """Every operation on the quota, and on one of the two file systems."""
    for number, operation in enumerate(OPERATIONS):
        yield pytest.param("quota", operation)
        kind = (EXT4, XFS)[number % 2]
        yield pytest.param(*kind.values, operation, marks=kind.marks)


@pytest.mark.parametrize(("disk", "operation"), [*cases()], indirect=["disk"])
def test_a_full_disk_loses_nothing_and_a_delete_makes_room(disk: Disk, ledger: Ledger, operation: str) -> None:
    numbers = itertools.count()
    for left in (0, 20 * BLOCK):
        disk.fill(left)
        with pytest.raises(NoSpaceError):
            for _ in range(3000):
                OPERATIONS[operation](ledger, next(numbers))
        if ledger.volume.closed:
            ledger.volume = Volume.open(ledger.path, io=disk.io, background=False)
        ledger.verify()
        disk.fill()
        before = disk.free()
        ledger.delete("victim")
        assert disk.free() - before >= VICTIM - 20 * BLOCK, "the delete gave nothing back"
        ledger.write(5000)
        ledger.snapshot(f"after {left}")
        ledger.volume.flush()
        ledger.verify()
        disk.clear()
        ledger.reopen()
        ledger.verify()
        report = ledger.volume.check()
        assert report.ok, report.problems
        ledger.make_victim()


def test_reads_and_in_place_writes_go_on_at_a_full_disk(disk: Disk, ledger: Ledger) -> None:
    ledger.volume.flush()
    offset, data = 40 * BLOCK, bytes(range(256)) * 16
    for number in range(2):
        ledger.volume.pwrite(data, offset)
        ledger.live[offset : offset + BLOCK] = data
        ledger.volume.flush()
        if number == 0:
            disk.fill()
    for _ in range(50):
        data = ledger.random.randbytes(BLOCK)
        ledger.volume.pwrite(data, offset)  # its place is its own since the last snapshot
        ledger.live[offset : offset + BLOCK] = data
    ledger.volume.flush()
    ledger.verify()
    assert len(ledger.volume.changed_extents("victim")) > 0
    assert ledger.volume.check().ok


@pytest.mark.parametrize("ledger", [SMALLEST_LOG, DEFAULT_LOG], indirect=True)
def test_all_snapshots_can_be_deleted_at_a_full_disk(disk: Disk, ledger: Ledger) -> None:
    """Half of them become anchors first."""
    for number in range(40):
        ledger.write(6000)
        ledger.snapshot(f"s{number}")
    disk.fill()
    names = ledger.random.sample(sorted(ledger.snapshots), len(ledger.snapshots))
    for name in names[::2]:
        ledger.volume.get_snapshot(name).to_anchor()
    for name in names:
        ledger.delete(name)
    ledger.volume.flush()
    assert disk.free() > MIB // 8
    ledger.verify()
    assert ledger.volume.snapshots() == []
    with pytest.raises(NotFoundError):
        ledger.volume.get_snapshot("base0")
    ledger.reopen()
    ledger.verify()
    assert ledger.volume.check().ok


def test_a_volume_that_has_no_room_is_not_made(disk: Disk) -> None:
    for left in (0, BLOCK, 3 * BLOCK, 6 * BLOCK):
        disk.fill(left)
        with pytest.raises(NoSpaceError):
            Volume.create(disk.path / "new", SIZE, io=disk.io)
        assert not (disk.path / "new").exists()
    disk.clear()
    with Volume.create(disk.path / "new", SIZE, io=disk.io) as volume:
        assert volume.check().ok


def test_a_volume_closed_on_a_full_disk_opens_on_it(disk: Disk, ledger: Ledger) -> None:
    ledger.write(50_000)
    ledger.snapshot("last")
    disk.fill()
    with pytest.raises(NoSpaceError):
        for _ in range(1000):
            ledger.write(50_000)
    ledger.settle()
    for _ in range(3):
        ledger.reopen()
        ledger.verify()
        ledger.volume.close()
        with Volume.open(ledger.path, read_only=True, io=disk.io) as reader:
            assert reader.get_snapshot("last").pread(SIZE, 0) == ledger.snapshots["last"]
        ledger.volume = Volume.open(ledger.path, io=disk.io, background=False)
    assert ledger.volume.check().ok
