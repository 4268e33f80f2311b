"""Commits of one barrier: when they are taken, what they vouch for, and what waits until they are confirmed."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from memory_disk import MemoryDisk, Write, instants
from scarce_memory import ScarceMemory
from small_disk_table import SmallDisk

from cowengine import Store, Volume
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.vouching import VOUCHED_BYTES
from cowengine.errors import NoSpaceError, OutOfRangeError, PoisonedError

BLOCK = 4096
PATH = "/disk/volume"
MANY = VOUCHED_BYTES // BLOCK
SIZE = 2 * VOUCHED_BYTES


def filled(letter: str, blocks: int = 1) -> bytes:
    return letter.encode() * (blocks * BLOCK)


OPEN: list[Volume] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Closes in the end what a test leaves open to be killed."""
    yield
    while OPEN:
        OPEN.pop().close()


def new_volume(io: IOTable | None = None, path: str = PATH, **settings: Any) -> Volume:
    OPEN.append(Volume.create(path, SIZE, io=io or MemoryDisk(), background=False, **settings))
    return OPEN[-1]


@contextmanager
def costing(volume: Volume, barriers: int, vouching: int) -> Iterator[None]:
    """What is done takes so many barriers, and so many of its records vouch for blocks."""
    counters = volume.engine.counters
    before = counters["barriers"], counters["one_barrier_commits"]
    yield
    assert (counters["barriers"] - before[0], counters["one_barrier_commits"] - before[1]) == (barriers, vouching)


def place(volume: Volume, block: int) -> int:
    return volume.engine.path.place(block)[0]


def after_power_cut(disk: MemoryDisk, arrived: Callable[[int], bool] = lambda _: True) -> MemoryDisk:
    """The disk as a power cut within the last barrier leaves it, with those writes before it that `arrived`."""
    *_, before_last, _ = ((i, i.durable.copy()) for i in instants(disk.start, disk.journal))
    instant, durable = before_last
    for change in instant.pending:
        if not isinstance(change, Write) or arrived(change.offset):
            durable.apply(change)
    return MemoryDisk(durable)


def reopened(disk: MemoryDisk) -> Volume:
    OPEN.append(Volume.open(PATH, io=disk, background=False))
    assert OPEN[-1].check().ok
    return OPEN[-1]


# -- how many ----------------------------------------------------------------------------------------------------------
def test_what_is_placed_and_flushed_or_frozen_takes_one_barrier() -> None:
    volume = new_volume()
    volume.pwrite(filled("a", 3), 0)
    with costing(volume, 1, 1):
        volume.flush()
    volume.pwrite(b"b" * 700, 5 * BLOCK + 100)  # a part of a block vouches for the whole of it
    with costing(volume, 1, 1):
        volume.snapshot("one")
    with costing(volume, 1, 0):
        volume.snapshot("quiet")
    volume.pwrite(filled("c", MANY), 0)
    with costing(volume, 1, 1):
        volume.flush()


def test_a_flush_of_nothing_confirms_nothing() -> None:
    volume = new_volume()
    volume.pwrite(filled("a"), 0)
    volume.flush()
    with costing(volume, 0, 0):
        volume.flush()


def test_a_volume_opened_with_two_barriers_never_takes_one(tmp_path: Path) -> None:
    with new_volume(KERNEL, str(tmp_path / "v"), barriers=2) as volume:
        volume.pwrite(filled("a"), 0)
        with costing(volume, 2, 0):
            volume.flush()
    with Volume.open(tmp_path / "v", barriers=2, background=False) as volume:
        volume.pwrite(filled("b"), BLOCK)
        with costing(volume, 2, 0):
            volume.snapshot("s")
    for wrong in (0, 3):
        with pytest.raises(OutOfRangeError):
            Volume.open(tmp_path / "v", barriers=wrong)


def test_much_data_and_much_that_is_freed_take_two() -> None:
    volume = new_volume()
    volume.pwrite(filled("a", MANY + 1), 0)
    with costing(volume, 2, 0):
        volume.flush()
    volume.discard(0, (MANY + 1) * BLOCK)
    volume.pwrite(filled("b"), 100 * BLOCK)
    with costing(volume, 2, 0):
        volume.flush()


def test_a_snapshot_of_what_was_written_in_place_takes_two_and_a_flush_one() -> None:
    volume = new_volume(barriers=2)
    volume.pwrite(filled("a", 4), 0)
    volume.flush()
    volume.engine.vouching.barriers = 1
    for take, barriers in (volume.flush, 1), (lambda: volume.snapshot("s"), 2):
        volume.pwrite(filled("b"), 0)
        volume.pwrite(filled("c"), (60 + barriers) * BLOCK)
        with costing(volume, barriers, 2 - barriers):
            take()


def test_an_overwrite_between_the_batch_and_its_barrier_is_not_lost_from_sight() -> None:
    """I50: a commit without a barrier must not count what was written in place meanwhile as synced."""
    volume = new_volume(barriers=2)
    volume.pwrite(filled("a"), 0)
    volume.flush()
    volume.engine.vouching.barriers = 1
    path = volume.engine.path
    take, taken = path.take_batch, list[Any]()

    class Path:
        def __getattr__(self, name: str) -> Any:
            return getattr(path, name)

        def take_batch(self, *arguments: Any) -> Any:
            batch = take(*arguments)
            if not taken:
                taken.append(path.pwrite(filled("b"), 0))
            return batch

    volume.engine.path = Path()  # type: ignore[assignment]
    with costing(volume, 0, 0):
        volume.flush()
    volume.engine.path = path
    volume.pwrite(filled("c"), BLOCK)
    with costing(volume, 2, 0):
        volume.snapshot("s")


def test_a_block_that_is_flushed_over_and_over_comes_to_rest() -> None:
    volume = new_volume()
    places = []
    for number, (barriers, vouching) in enumerate(((1, 1), (2, 0), (1, 0), (1, 0))):
        volume.pwrite(filled(str(number)), 0)
        places.append(place(volume, 0))
        with costing(volume, barriers, vouching):
            volume.flush()
    assert places[0] != places[1] and len(set(places[1:])) == 1


def test_members_of_a_set_take_one_barrier_each(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", background=False) as store:
        volumes = [store.create_volume(name, SIZE) for name in "ab"]
        for number in range(3):
            for volume in volumes:
                volume.pwrite(filled("x"), number * BLOCK)
            with costing(volumes[0], 1, 1), costing(volumes[1], 1, 1):
                store.snapshot(["a", "b"], f"set{number}")


# -- after a crash -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["all", "only the record", "only the data", "all but one block"])
def test_a_record_whose_data_is_missing_is_dropped_and_told(what: str, caplog: pytest.LogCaptureFixture) -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("a", 3), 0)
    volume.snapshot("first")
    for block in range(3):
        volume.pwrite(filled("b"), block * BLOCK)
    slots = [place(volume, block) for block in range(3)]
    volume.snapshot("second")
    lost = {
        "all": lambda offset: False,
        "only the record": lambda offset: offset // BLOCK in slots,
        "only the data": lambda offset: offset // BLOCK not in slots,
        "all but one block": lambda offset: offset // BLOCK == slots[1],
    }[what]
    with caplog.at_level(logging.WARNING, "cowengine"):
        later = reopened(after_power_cut(disk, lambda offset: not lost(offset)))
    is_there = what == "all"
    assert [snapshot.name for snapshot in later.snapshots()] == ["first", "second"][: 1 + is_there]
    assert later.get_snapshot("first").pread(3 * BLOCK, 0) == filled("a", 3)
    if is_there:
        assert later.get_snapshot("second").pread(3 * BLOCK, 0) == filled("b", 3)
    told = "record 2 with snapshot 'second', changes of 3 blocks"
    assert later.engine.recovered["dropped"] == ("" if is_there or what == "only the data" else told)
    assert (told in caplog.text) == bool(later.engine.recovered["dropped"])
    later.pwrite(filled("c", 3), 0)
    later.snapshot("third")
    assert later.check().ok


def test_what_was_dropped_stays_dropped_at_the_next_crash() -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("a"), 0)
    slot = place(volume, 0)
    volume.flush()
    disk = after_power_cut(disk, lambda offset: offset // BLOCK != slot)
    later = reopened(disk)
    later.pwrite(filled("a"), 0)  # the same bytes in the same place: the checks of the dropped record would hold
    assert place(later, 0) == slot
    disk.fdatasync(later.engine.fd)
    again = reopened(MemoryDisk(disk.cache.copy()))
    assert again.pread(BLOCK, 0) == bytes(BLOCK) and again.engine.recovered["dropped"] == ""


def test_what_an_open_confirmed_is_overwritten_and_not_looked_at_again() -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("a"), 0)
    with costing(volume, 1, 1):
        volume.flush()
    later = reopened(after_power_cut(disk))
    home = place(later, 0)
    later.pwrite(filled("b"), 0)
    assert place(later, 0) == home
    report = later.check()
    assert report.ok and report.counts["dropped"] == 0


def test_a_block_of_zeros_that_the_file_does_not_reach_is_not_there() -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("a"), 0)
    volume.snapshot("first")
    behind = disk.size(volume.engine.fd)
    volume.pwrite(filled("\0"), 0)
    assert place(volume, 0) * BLOCK >= behind
    volume.snapshot("second")
    later = reopened(after_power_cut(disk, lambda offset: offset < behind))
    assert [snapshot.name for snapshot in later.snapshots()] == ["first"]
    assert later.pread(BLOCK, 0) == filled("a")


# -- until it is confirmed ---------------------------------------------------------------------------------------------
def test_what_the_last_record_vouches_for_is_not_overwritten_until_the_next_is_durable() -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("a", 3), 0)
    places = [place(volume, block) for block in range(3)]
    volume.flush()
    volume.pwrite(filled("b"), BLOCK)
    assert place(volume, 1) != places[1] and [place(volume, 0), place(volume, 2)] == places[::2]
    volume.pwrite(filled("c", 3), 0)  # in three pieces: the middle one is its own again
    assert all(place(volume, block) != places[block] for block in range(3))
    later = reopened(MemoryDisk(disk.cache.copy()))
    assert later.pread(3 * BLOCK, 0) == filled("a", 3) and later.engine.recovered["dropped"] == ""
    volume.flush()
    places = [place(volume, block) for block in range(3)]
    volume.pwrite(filled("d", 3), 0)
    assert [place(volume, block) for block in range(3)] == places


def test_what_is_on_its_way_is_not_overwritten_either() -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("a"), 0)
    before = place(volume, 0)

    def intrude(_inode: int) -> None:
        disk.before_barrier = None
        volume.pwrite(filled("b"), 0)
        assert place(volume, 0) != before

    disk.before_barrier = intrude
    with costing(volume, 1, 1):
        volume.flush()
    assert disk.before_barrier is None
    later = reopened(MemoryDisk(disk.cache.copy()))
    assert later.pread(BLOCK, 0) == filled("a") and later.engine.recovered["dropped"] == ""


@pytest.mark.parametrize("flushed", [True, False])
def test_of_blocks_that_lie_together_each_goes_where_it_may(flushed: bool) -> None:
    """The first two are vouched for while the others are not flushed, the last two when they are."""
    volume = new_volume()
    volume.pwrite(filled("a", 2), 0)
    volume.flush()
    volume.pwrite(filled("b", 2), 2 * BLOCK)
    if flushed:
        volume.flush()
    places = [place(volume, block) for block in range(4)]
    assert places == list(range(places[0], places[0] + 4))
    volume.pwrite(filled("c", 4), 0)
    assert [place(volume, block) == places[block] for block in range(4)] == [flushed] * 2 + [not flushed] * 2
    assert volume.pread(4 * BLOCK, 0) == filled("c", 4)


@pytest.mark.parametrize("between", ["nothing", "a checkpoint", "a flush of what is in place"])
def test_what_the_last_record_freed_is_not_given_out_until_the_next_is_durable(between: str) -> None:
    disk = MemoryDisk()
    volume = new_volume(disk)
    volume.pwrite(filled("x"), 9 * BLOCK)
    volume.engine.vouching.barriers = 2
    volume.flush()
    volume.engine.vouching.barriers = 1
    volume.pwrite(filled("a"), 0)
    home = place(volume, 0)
    volume.discard(0, BLOCK)
    volume.pwrite(filled("b"), BLOCK)
    with costing(volume, 1, 1):
        volume.flush()  # it vouches for the bytes of block 0, too
    if between == "a checkpoint":
        volume.engine.checkpoint()
    elif between != "nothing":
        volume.pwrite(filled("y"), 9 * BLOCK)
        with costing(volume, 1, 0):
            volume.flush()
    volume.pwrite(filled("c"), 0)
    assert place(volume, 0) != home
    volume.pwrite(filled("d"), BLOCK)
    later = reopened(MemoryDisk(disk.cache.copy()))
    assert later.pread(2 * BLOCK, 0) == filled("\0") + filled("b")
    volume.flush()
    volume.discard(0, BLOCK)
    volume.flush()
    volume.pwrite(filled("e"), 0)
    assert place(volume, 0) == home


def test_on_a_full_file_system_a_flush_makes_the_next_writes_go_where_the_block_lies(tmp_path: Path) -> None:
    disk = SmallDisk()
    volume = new_volume(disk, str(tmp_path / "v"))
    volume.pwrite(filled("a"), 0)
    volume.flush()
    assert volume.engine.path.unconfirmed.block_count == 1
    disk.free = 0
    with pytest.raises(NoSpaceError):
        volume.pwrite(filled("b"), 0)
    with costing(volume, 1, 0):
        volume.flush()  # a record of nothing: it confirms the last one
    for letter in "bcd":
        volume.pwrite(filled(letter), 0)
        with costing(volume, 1, 0):
            volume.flush()
    assert volume.pread(BLOCK, 0) == filled("d")
    disk.free = 1 << 40
    volume.pwrite(filled("e"), BLOCK)
    with costing(volume, 2, 0):
        volume.flush()


# -- the checks --------------------------------------------------------------------------------------------------------
class Held(IOTable):
    """Holds the next write of a block of this letter until it is let go."""

    letter = b""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if self.letter and bytes(data[:1]) == self.letter:
            self.letter = b""
            self.reached.set()
            assert self.go.wait(60)
        super().pwrite(fd, data, offset)


@pytest.mark.parametrize("block", [0, 1])
def test_checks_wait_for_a_write_to_their_block_and_for_no_other(tmp_path: Path, block: int) -> None:
    table = Held()
    volume = new_volume(table, str(tmp_path / "v"))
    volume.pwrite(filled("a"), 0)
    table.letter = b"b"
    writer = threading.Thread(target=volume.pwrite, args=(filled("b"), block * BLOCK))
    writer.start()
    assert table.reached.wait(60)
    flusher = threading.Thread(target=volume.flush)
    flusher.start()
    flusher.join(0.2 if block == 0 else 60)
    assert flusher.is_alive() == (block == 0)
    volume.pwrite(filled("c"), 7 * BLOCK)  # it begins behind the batch
    table.go.set()
    writer.join(60)
    flusher.join(60)
    assert volume.engine.counters["one_barrier_commits"] == 1
    (tmp_path / "killed").write_bytes((tmp_path / "v").read_bytes())
    with Volume.open(tmp_path / "killed", background=False) as later:
        assert later.engine.recovered["dropped"] == ""
        assert later.pread(BLOCK, 0) == filled("b" if block == 0 else "a")
    volume.close()


def test_a_volume_that_fails_while_checks_wait_says_so(tmp_path: Path) -> None:
    table, told = Held(), list[Exception]()
    volume = new_volume(table, str(tmp_path / "v"))
    volume.pwrite(filled("a"), 0)
    table.letter = b"b"

    def told_of(call: Callable[[], object]) -> None:
        try:
            call()
        except PoisonedError as error:
            told.append(error)

    calls: list[Callable[[], object]] = [lambda: volume.pwrite(filled("b"), 0), volume.flush]
    threads = [threading.Thread(target=told_of, args=(call,)) for call in calls]
    threads[0].start()
    assert table.reached.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    volume.engine.poison(OSError("planted"))
    threads[1].join(60)
    assert len(told) == 1
    table.go.set()
    threads[0].join(60)


def test_what_cannot_be_read_is_not_vouched_for(tmp_path: Path) -> None:
    class Unreadable(IOTable):
        failing = False

        def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
            if self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().pread_into(fd, buffer, offset)

    table = Unreadable()
    with new_volume(table, str(tmp_path / "v")) as volume:
        volume.pwrite(filled("a"), 0)
        table.failing = True
        with costing(volume, 2, 0):
            volume.flush()
        table.failing = False
        assert volume.pread(BLOCK, 0) == filled("a")


@pytest.mark.parametrize(("kernel", "allocation"), [("unconfirmed", 1), ("unconfirmed", 2), ("radix", 1)])
def test_without_memory_for_checks_there_are_none(kernel: str, allocation: int) -> None:
    volume = new_volume()
    volume.pwrite(filled("a"), 0)
    with ScarceMemory((kernel,), allocation) as scarce, costing(volume, 2, 0):
        volume.flush()
    assert scarce.count >= allocation


def test_large_blocks_are_vouched_for_as_far_as_the_limit_goes() -> None:
    for block_size, blocks, vouching in ((64 << 10, 16, 1), (512 << 10, 2, 1), (512 << 10, 3, 0)):
        volume = Volume.create(PATH, 8 << 20, io=MemoryDisk(), background=False, block_size=block_size)
        for block in range(blocks):
            volume.pwrite(filled("a"), block * block_size)
        with costing(volume, 2 - vouching, vouching):
            volume.flush()
        volume.close()


# -- readers -----------------------------------------------------------------------------------------------------------
def test_a_reader_believes_an_announced_record_whatever_became_of_its_blocks(tmp_path: Path) -> None:
    """The owner may be a commit further when the reader looks at them."""
    with new_volume(KERNEL, str(tmp_path / "v")) as volume:
        volume.pwrite(filled("a"), 0)
        volume.snapshot("s")
        with open(tmp_path / "v", "r+b") as file:
            file.seek(place(volume, 0) * BLOCK)
            file.write(filled("?"))
        with Volume.open(tmp_path / "v", read_only=True) as reader:
            assert [snapshot.name for snapshot in reader.snapshots()] == ["s"]
