"""The store log alone: its chain, its ring, damage anywhere, and crashes at every barrier."""

from __future__ import annotations

import errno
import random
import uuid
from pathlib import Path
from typing import Any

import pytest
from memory_disk import MemoryDisk, instants, sector_count

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.errors import (
    BusyError,
    CorruptionError,
    CowEngineError,
    FormatError,
    OutOfRangeError,
    PoisonedError,
    UnsupportedVersionError,
)
from cowengine.store import layout
from cowengine.store.layout import Record, RecordMember
from cowengine.store.log import StoreLog, create_log

RING = 16 * 1024
STORE_UUID = bytes(range(16))


def make_record(number: int, members: int = 1) -> Record:
    return Record(
        type=layout.TYPE_SET,
        set_id=uuid.UUID(int=number).bytes,
        created_ns=number,
        name=f"set {number}",
        metadata=b"m" if number % 2 else b"",
        members=tuple(
            RecordMember(
                volume_uuid=uuid.UUID(int=index).bytes, snapshot_id=number, epoch=number, sequence=index, tag=2**64 - 1
            )
            for index in range(members)
        ),
    )


def bytes_of(record: Record) -> int:
    return layout.record_bytes(len(record.members), len(record.name.encode()), len(record.metadata))


def append(log: StoreLog, record: Record) -> None:
    assert log.reserve(bytes_of(record))
    log.append(record)
    log.release(bytes_of(record))


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = str(tmp_path / "store.log")
    create_log(KERNEL, file, STORE_UUID, RING)
    return file


def test_records_come_back_after_reopening_whatever_was_recycled(path: str) -> None:
    chance = random.Random(1)
    log = StoreLog(KERNEL, path)
    for number in range(1, 400):
        record = make_record(number, chance.randint(1, 60))
        while not log.reserve(bytes_of(record)):
            log.advance(chance.choice(log.entries).sequence)
        log.append(record)
        log.release(bytes_of(record))
        if number % 23 == 0:
            known = log.snapshot_entries()
            log.close()
            log = StoreLog(KERNEL, path)
            assert log.snapshot_entries() == known
            assert log.entries[-1].record == record
    log.close()


def test_a_reservation_keeps_room_whatever_is_appended_before_it(path: str) -> None:
    chance = random.Random(2)
    log = StoreLog(KERNEL, path)
    for number in range(1, 300):
        held = []
        while log.reserve(bytes_of(record := make_record(number, chance.randint(1, 70)))):
            held.append(record)
        chance.shuffle(held)
        for record in held:
            log.append(record)
            log.release(bytes_of(record))
        log.advance(chance.choice(log.entries).sequence)
    log.close()


def test_a_second_owner_is_refused_and_a_reader_is_not(path: str) -> None:
    log = StoreLog(KERNEL, path)
    append(log, make_record(1))
    with pytest.raises(BusyError, match="owned"):
        StoreLog(KERNEL, path)
    reader = StoreLog(KERNEL, path, read_only=True)
    assert reader.entries == log.entries
    reader.close()
    log.close()
    StoreLog(KERNEL, path).close()


def test_reading_only_writes_nothing(path: str) -> None:
    log = StoreLog(KERNEL, path)
    append(log, make_record(1))
    log.close()
    before = Path(path).read_bytes()
    StoreLog(KERNEL, path, read_only=True).close()
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("size", [0, -1, 4096, 16384 + 512, 128 * 1024 * 1024])
def test_an_impossible_log_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(OutOfRangeError, match="16 KiB"):
        create_log(KERNEL, str(tmp_path / "new.log"), STORE_UUID, size)
    assert not list(tmp_path.iterdir())


# ---- damage ----


def filled_log(path: str, records: int) -> None:
    log = StoreLog(KERNEL, path)
    for number in range(1, records + 1):
        append(log, make_record(number))
    log.close()
    StoreLog(KERNEL, path).close()  # which confirms them


def test_a_bit_flip_anywhere_is_an_error_or_harmless_and_never_another_answer(path: str) -> None:
    filled_log(path, 5)
    good = Path(path).read_bytes()
    log = StoreLog(KERNEL, path, read_only=True)
    known = log.entries
    log.close()
    used = layout.RING_OFFSET + known[-1].end
    refused = 0
    for position in range(0, used, 7):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        Path(path).write_bytes(damaged)
        try:
            found = StoreLog(KERNEL, path, read_only=True)
        except (FormatError, CorruptionError):
            refused += 1
            continue
        assert found.entries == known, position
        found.close()
    assert refused > 5 * 100 // 7


def test_both_headers_damaged_is_a_format_error(path: str) -> None:
    raw = bytearray(Path(path).read_bytes())
    raw[100] ^= 1
    raw[4196] ^= 1
    Path(path).write_bytes(raw)
    with pytest.raises(FormatError, match="not a store log"):
        StoreLog(KERNEL, path)


def test_a_truncated_log_is_corruption(path: str) -> None:
    raw = Path(path).read_bytes()
    for length in (len(raw) - 1, layout.RING_OFFSET):
        Path(path).write_bytes(raw[:length])
        with pytest.raises(CorruptionError, match="truncated"):
            StoreLog(KERNEL, path)
    for length in (0, 100, 4095):
        Path(path).write_bytes(raw[:length])
        with pytest.raises(FormatError):
            StoreLog(KERNEL, path)


def test_an_acknowledged_record_that_rotted_is_corruption_though_no_header_confirms_it(path: str) -> None:
    log = StoreLog(KERNEL, path)
    for number in range(1, 6):
        append(log, make_record(number))
    log.close()
    raw = bytearray(Path(path).read_bytes())
    raw[layout.RING_OFFSET + 2 * 512 + 30] ^= 4  # record 3 of 5, all of them beyond the header's tip
    Path(path).write_bytes(raw)
    with pytest.raises(CorruptionError, match="what leads to it is not"):
        StoreLog(KERNEL, path)


@pytest.mark.parametrize(("offset", "value"), [(8, 2), (16, 1)])
def test_a_newer_format_or_feature_is_refused(path: str, offset: int, value: int) -> None:
    raw = bytearray(Path(path).read_bytes())
    for slot in (0, 4096):
        raw[slot + offset] = value
        raw[slot + 4088 : slot + 4096] = layout.xxh64(bytes(raw[slot : slot + 4088])).to_bytes(8, "little")
    Path(path).write_bytes(raw)
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        StoreLog(KERNEL, path, read_only=True)


def test_a_feature_that_only_readers_may_ignore_refuses_the_owner(path: str) -> None:
    raw = bytearray(Path(path).read_bytes())
    for slot in (0, 4096):
        raw[slot + 24] = 1
        raw[slot + 4088 : slot + 4096] = layout.xxh64(bytes(raw[slot : slot + 4088])).to_bytes(8, "little")
    Path(path).write_bytes(raw)
    with pytest.raises(UnsupportedVersionError, match="read-only"):
        StoreLog(KERNEL, path)
    StoreLog(KERNEL, path, read_only=True).close()


class FailingTable(IOTable):
    """Fails the n-th fdatasync from now on."""

    def __init__(self) -> None:
        self.left = -1

    def fdatasync(self, fd: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, "injected")
        super().fdatasync(fd)


def test_a_failed_sync_poisons_and_a_failed_sync_at_open_refuses(path: str) -> None:
    table = FailingTable()
    log = StoreLog(table, path)
    append(log, make_record(1))
    table.left = 1
    assert log.reserve(bytes_of(make_record(2)))
    with pytest.raises(OSError, match="injected"):
        log.append(make_record(2))
    for attempt in (lambda: log.append(make_record(3)), lambda: log.reserve(200), lambda: log.advance(1)):
        with pytest.raises(PoisonedError):
            attempt()
    log.close()
    for call in (1, 2, 3):  # the first sync of recovery, and one for each header slot
        table.left = call
        with pytest.raises(OSError, match="injected"):
            StoreLog(table, path)
    log = StoreLog(KERNEL, path)
    assert len(log.entries) in (1, 2)
    log.close()


# ---- crashes ----


def crashed(instant: Any, chance: random.Random, fate: str) -> MemoryDisk:
    """A disk as a power cut leaves it: of what no barrier covered nothing, all, only records, or torn parts."""
    durable = instant.durable.copy()
    for change in instant.pending:
        if fate == "records" and getattr(change, "offset", 0) >= layout.RING_OFFSET:
            durable.apply(change)
        if fate == "everything" or (fate == "some" and chance.random() < 0.5):
            torn = fate == "some" and hasattr(change, "data") and chance.random() < 0.5
            durable.apply(change, chance.getrandbits(sector_count(change)) if torn else None)
    return MemoryDisk(durable)


def run(disk: MemoryDisk, steps: int, seed: int) -> None:
    """Appends, recycling and reopening; after each acknowledged record its number is noted."""
    chance = random.Random(seed)
    log = StoreLog(disk, "/disk/store.log")
    for number in range(log.tip_sequence + 1, log.tip_sequence + 1 + steps):
        record = make_record(number, chance.choice([1, 1, 8, 60]))
        while not log.reserve(bytes_of(record)):
            log.advance(log.entries[len(log.entries) // 2].sequence)
        log.append(record)
        log.release(bytes_of(record))
        disk.note(number)
        if chance.random() < 0.1:
            log.close()
            log = StoreLog(disk, "/disk/store.log")
    log.close()


@pytest.mark.parametrize("fate", ["nothing", "everything", "some"])
def test_after_any_power_cut_the_log_ends_with_the_last_acknowledged_record_or_the_one_in_flight(fate: str) -> None:
    chance = random.Random(3)
    disk = MemoryDisk()
    create_log(disk, "/disk/store.log", STORE_UUID, RING)
    disk.sync_directory("/disk")
    run(disk, 90, 4)
    seen = 0
    for instant in instants(disk.start, disk.journal):
        if "/disk/store.log" not in instant.durable.entries:
            continue
        after = crashed(instant, chance, fate)
        log = StoreLog(after, "/disk/store.log")
        acknowledged = instant.note or 0
        assert log.tip_sequence in (acknowledged, acknowledged + 1)
        sequences = [entry.sequence for entry in log.entries]
        assert sequences == list(range(log.header.base_sequence + 1, log.tip_sequence + 1))
        assert all(entry.record.created_ns == entry.sequence for entry in log.entries)
        tip = log.tip_sequence
        log.close()
        after.journal.clear()
        run(after, 3, seen)  # it can go on, and a second crash brings nothing back
        log = StoreLog(after, "/disk/store.log")
        assert log.tip_sequence == tip + 3
        seen += 1
    assert seen > 100


@pytest.mark.parametrize("dropped", ["append", "first header", "second header"])
def test_without_any_one_barrier_a_crash_shows(dropped: str) -> None:
    """The barriers are needed: with one of them switched off some crash breaks the promise above."""
    assert any(shows(dropped, seed) for seed in range(12))


def shows(dropped: str, seed: int) -> bool:
    """Whether some crash breaks the promise if the barriers of this kind are switched off."""
    disk = MemoryDisk()
    create_log(disk, "/disk/store.log", STORE_UUID, RING)
    disk.sync_directory("/disk")
    roles = mark_barriers(disk)
    run(disk, 60, seed)
    chance = random.Random(seed)
    for instant in instants(disk.start, disk.journal, lambda position: roles.get(position) != dropped):
        if "/disk/store.log" not in instant.durable.entries:
            continue
        images = [crashed(instant, chance, fate) for fate in ("nothing", "some")]
        images += [rotted(crashed(instant, chance, "records"), slot) for slot in (0, 1)]
        if not all(survives(image, instant.note or 0) for image in images):
            return True
    return False


def test_a_power_cut_and_the_loss_of_one_header_lose_no_record() -> None:
    disk = MemoryDisk()
    create_log(disk, "/disk/store.log", STORE_UUID, RING)
    disk.sync_directory("/disk")
    run(disk, 90, 4)
    chance = random.Random(5)
    for instant in instants(disk.start, disk.journal):
        if "/disk/store.log" in instant.durable.entries:
            for fate in ("nothing", "records"):
                for slot in (0, 1):
                    assert survives(rotted(crashed(instant, chance, fate), slot), instant.note or 0)


def rotted(disk: MemoryDisk, slot: int) -> MemoryDisk:
    """The same disk with one header slot gone."""
    content = disk.cache.files[disk.cache.entries["/disk/store.log"]]
    content[slot * 4096 : slot * 4096 + 512] = bytes(512)
    return disk


def mark_barriers(disk: MemoryDisk) -> dict[int, str]:
    """Position in the journal -> what the barrier there is for, filled in while the disk is used."""
    roles: dict[int, str] = {}
    start = len(disk.journal)
    headers = 0

    def before(inode: int) -> None:
        nonlocal headers
        last = disk.journal[-1]
        if len(disk.journal) <= start or not hasattr(last, "offset"):
            return
        if last.offset >= layout.RING_OFFSET:
            roles[len(disk.journal)] = "append"
        else:
            headers += 1
            roles[len(disk.journal)] = "first header" if headers % 2 else "second header"

    disk.before_barrier = before
    return roles


def survives(disk: MemoryDisk, acknowledged: int) -> bool:
    try:
        log = StoreLog(disk, "/disk/store.log")
    except CowEngineError:
        return False
    kept = log.tip_sequence >= acknowledged
    log.close()
    return kept
