"""Each operation meets a full disk at each of its steps: it gets so many pages, from none until it succeeds.

Whatever it answers, nothing acknowledged is lost, every snapshot can be deleted on the full disk, the file is sound,
and with room again it goes on.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ledger import BLOCK, SIZE, Ledger
from small_disk import EXT4, XFS, Disk

from cowengine import Volume
from cowengine.errors import NoSpaceError

LOG = 16384
LEFT_MAX = 400  # pages: what no operation here needs
Recorded = Callable[[str, object], None]  # "disks": so many were filled up, for the scoreboard


def nothing(ledger: Ledger) -> None:
    """For operations that need no preparation."""


@dataclass(frozen=True)
class Operation:
    """What is done while there is room, and then with so many pages left. One that `works_always` may not fail."""

    run: Callable[[Ledger], object]
    prepare: Callable[[Ledger], object] = nothing
    works_always: bool = False
    exhausted: bool = True  # whether the volume itself has no free space either
    block_size: int = BLOCK
    step: int = 1  # pages more each time


def write(ledger: Ledger) -> None:
    ledger.write(60_000)
    ledger.volume.flush()


def fill_the_end(ledger: Ledger) -> None:
    """Blocks behind a smaller size, so that a shrink has something to cut off, also inside a block."""
    ledger.write(40 * BLOCK, SIZE - 40 * BLOCK)


def grow(ledger: Ledger) -> None:
    ledger.resize(SIZE + 300 * BLOCK)
    ledger.write(20 * BLOCK, SIZE + 200 * BLOCK)
    ledger.volume.flush()


def displace(ledger: Ledger) -> None:
    """Blocks away from their homes, which are free."""
    ledger.delete("victim")
    ledger.delete("base1")
    ledger.delete("base0")
    ledger.volume.flush()


def flatten(ledger: Ledger) -> None:
    raw = ledger.path.with_name("raw")
    try:
        ledger.volume.flatten(raw)
    except NoSpaceError:
        assert [path.name for path in raw.parent.iterdir() if path.name.startswith("raw")] == []
        raise
    assert raw.read_bytes() == ledger.live
    ledger.disk.io.unlink(str(raw))


def clone(ledger: Ledger) -> None:
    """A clone, written to, with a snapshot of its own, open again with all of that."""
    with ledger.volume.get_snapshot("base0").clone("copy") as copy:
        copy.pwrite(bytes(30_000), 5000)
        contents = copy.pread(SIZE, 0)
        ledger.maybe["of the copy"] = contents
        copy.snapshot("of the copy")
        ledger.snapshots["of the copy"] = ledger.maybe.pop("of the copy")
    with ledger.volume.open_head("copy") as copy:
        assert copy.pread(SIZE, 0) == contents


def delete_clone(ledger: Ledger) -> None:
    ledger.volume.delete_head("copy")
    assert ledger.volume.heads() == ["live"]


def close(ledger: Ledger) -> None:
    """What was written and not flushed may be lost if it says so."""
    ledger.doubtful.append((0, bytes(ledger.live)))
    ledger.write(30_000)
    ledger.reopen()
    ledger.doubtful.clear()


OPERATIONS = {
    "write": Operation(write, step=2),
    "discard": Operation(lambda ledger: (ledger.discard(), ledger.volume.flush()), works_always=True),
    "snapshot": Operation(lambda ledger: (ledger.write(3000), ledger.snapshot("new"))),
    "delete": Operation(lambda ledger: ledger.delete("victim"), works_always=True),
    "anchor": Operation(lambda ledger: ledger.anchor("victim"), works_always=True),
    "rollback": Operation(
        lambda ledger: (ledger.rollback("base1"), ledger.write(9000)), lambda ledger: ledger.write(1)
    ),
    "clone": Operation(clone),
    "delete_clone": Operation(delete_clone, clone, works_always=True),
    "grow": Operation(grow, step=2),
    "shrink": Operation(lambda ledger: ledger.resize(SIZE - 20 * BLOCK - 512), fill_the_end, block_size=16 * BLOCK),
    "compaction": Operation(lambda ledger: ledger.volume.compact(), displace, exhausted=False, step=5),
    "flatten": Operation(flatten, step=24),
    "seal": Operation(lambda ledger: ledger.volume.seal(), works_always=True),  # what has no room is sealed later
    "hold": Operation(lambda ledger: ledger.volume.get_snapshot("base0").hold("audit"), works_always=True),
    "policy": Operation(lambda ledger: ledger.volume.policy(keep_newest=5), works_always=True),
    "close": Operation(close),
}


def cases() -> Iterator[Any]:
    """Every operation with each number of pages on the quota, and with every third on one of the two file systems."""
    for number, operation in enumerate(OPERATIONS):
        yield pytest.param("quota", operation, 1)
        kind = (EXT4, XFS)[number % 2]
        yield pytest.param(*kind.values, operation, 3, marks=kind.marks)


@pytest.mark.parametrize(("disk", "name", "step"), [*cases()], indirect=["disk"])
def test_an_operation_that_gets_so_many_pages(disk: Disk, name: str, step: int, record_property: Recorded) -> None:
    operation = OPERATIONS[name]
    successes = refusals = 0
    for number, left in enumerate(range(0, LEFT_MAX, step * operation.step)):
        record_property("disks", number + 1)
        ledger = Ledger(disk, disk.path / "v", LOG, operation.block_size)
        operation.prepare(ledger)
        ledger.volume.flush()
        if operation.exhausted:
            exhaust(ledger)
        disk.fill(left * BLOCK)
        try:
            operation.run(ledger)
            successes += 1
        except NoSpaceError:
            assert not operation.works_always, f"{name} failed with {left} pages left"
            successes, refusals = 0, refusals + 1
        give_all_back(ledger)
        go_on(ledger)
        ledger.volume.close()
        disk.io.unlink(str(ledger.path))
        if successes == 3:
            assert refusals or operation.works_always, f"{name} never met a full disk"
            return
    pytest.fail(f"{name} never succeeded")


def exhaust(ledger: Ledger) -> None:
    """Uses up what the volume has kept for itself, so that what comes has only what the disk has left."""
    ledger.disk.fill()
    for length in (200_000, 9000, 1):
        with pytest.raises(NoSpaceError):
            for number in range(1000):
                ledger.write(length)
                ledger.snapshot(f"{length} {number}")
        ledger.settle()


def give_all_back(ledger: Ledger) -> None:
    """On the full disk: all that was acknowledged is there, and every clone and snapshot goes."""
    if ledger.volume.closed:
        ledger.volume = Volume.open(ledger.path, io=ledger.disk.io, background=False)
    ledger.disk.fill()
    ledger.verify()
    for name in ledger.volume.heads()[1:]:
        ledger.volume.delete_head(name)
    for snapshot in ledger.volume.snapshots():
        snapshot.release()
        snapshot.delete()
    ledger.snapshots, ledger.maybe = {}, {}
    assert ledger.volume.stats()["reclaims_pending"] == 0
    ledger.verify()
    assert ledger.volume.check().problems == []


def go_on(ledger: Ledger) -> None:
    """With room again."""
    ledger.disk.clear()
    ledger.write(50_000)
    ledger.snapshot("afterwards")
    ledger.write(50_000)
    ledger.reopen()
    ledger.verify()
    assert ledger.volume.check().problems == []


def raw_cases() -> Iterator[Any]:
    yield pytest.param("quota", 1)
    for kind in (EXT4, XFS):
        yield pytest.param(*kind.values, 3, marks=kind.marks)


@pytest.mark.parametrize(("disk", "step"), [*raw_cases()], indirect=["disk"])
def test_adopting_and_flattening_in_place_with_so_many_pages(disk: Disk, step: int, record_property: Recorded) -> None:
    """Either way the file is the raw image, to the byte, or the volume."""
    path, contents = disk.path / "image", random.Random(3).randbytes(SIZE)
    done = {"adopt": 0, "flatten": 0}
    refused = dict.fromkeys(done, 0)
    for number, left in enumerate(range(0, LEFT_MAX, step)):
        record_property("disks", 2 * number + 2)
        for name in done:
            write_raw(disk, path, contents)
            if name == "flatten":
                Volume.adopt(path, io=disk.io, log_size=LOG).close()
            disk.fill(left * BLOCK)
            try:
                if name == "adopt":
                    Volume.adopt(path, io=disk.io, log_size=LOG).close()
                else:
                    with Volume.open(path, io=disk.io, background=False) as volume:
                        volume.flatten()
                done[name] += 1
            except NoSpaceError:
                refused[name] += 1
            disk.clear()
            is_volume = path.read_bytes()[:4] == b"COWE"
            if is_volume:
                with Volume.open(path, io=disk.io, background=False) as volume:
                    assert volume.pread(SIZE, 0) == contents
                    assert volume.check().problems == []
            else:
                assert path.read_bytes() == contents
            for file in disk.path.glob("image*"):
                disk.io.unlink(str(file))
        if min(done.values()) == 3:
            break
    assert min(done.values()) == 3 and refused["adopt"]


def write_raw(disk: Disk, path: Path, contents: bytes) -> None:
    fd = disk.io.open(str(path), os.O_RDWR | os.O_CREAT, 0o600)
    disk.io.pwrite(fd, contents, 0)
    disk.io.fdatasync(fd)
    disk.io.close(fd)
