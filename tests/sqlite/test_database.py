"""The files of a database in its volume: lengths, gaps, space, and which copy of the directory is written."""

from __future__ import annotations

import random

import pytest

import cowengine
from cowengine.errors import FormatError, NoSpaceError, NotFoundError
from cowengine.sqlite.database import JOURNAL_MAGIC, KEPT_BYTES, Database
from cowengine.sqlite.layout import COPY_BYTES, JOURNAL, MAIN, WAL, volume_bytes

CAPACITY = 4 << 20


@pytest.fixture
def volume(store: cowengine.Store) -> cowengine.Volume:
    return store.create_volume("files", volume_bytes(CAPACITY))


def allocated(volume: cowengine.Volume, database: Database, file: int) -> int:
    area = database.areas[file]
    return int(volume.allocated_extents(area.offset, area.capacity)[:, 1].sum())


def test_the_files_behave_like_byte_arrays(volume: cowengine.Volume) -> None:
    """Random writes, truncations and deletions against a model; reopened now and then."""
    randomness = random.Random(7)
    database = Database("files", volume)
    model: dict[int, bytearray] = {}
    for step in range(600):
        file = randomness.choice((MAIN, JOURNAL, WAL))
        action = randomness.random()
        if file not in model:
            database.create(file)
            model[file] = bytearray()
        elif action < 0.6:
            offset, data = randomness.randrange(300_000), randomness.randbytes(randomness.choice((4, 24, 4096, 9000)))
            database.write(file, data, offset)
            model[file].extend(bytes(max(0, offset + len(data) - len(model[file]))))
            model[file][offset : offset + len(data)] = data
        elif action < 0.8:
            length = randomness.randrange(300_000)
            database.truncate(file, length)
            model[file].extend(bytes(max(0, length - len(model[file]))))
            del model[file][length:]
        elif action < 0.9:
            assert database.remove(file)
            del model[file]
        elif step % 3 == 0:
            database = Database("files", volume)
        for each in (MAIN, JOURNAL, WAL):
            assert database.exists(each) == (each in model)
            assert database.length(each) == len(model.get(each, b""))
        if file in model:
            assert database.read(file, len(model[file]) + 10, 0) == model[file]


def test_reading_stops_at_the_end(volume: cowengine.Volume) -> None:
    database = Database("files", volume)
    database.create(MAIN)
    database.write(MAIN, b"x" * 5000, 0)
    assert database.read(MAIN, 4096, 4096) == b"x" * 904
    assert database.read(MAIN, 10, 5000) == b""
    assert database.read(MAIN, 10, 1 << 40) == b""


def test_bytes_of_an_earlier_life_never_come_back(volume: cowengine.Volume) -> None:
    database = Database("files", volume)
    database.create(JOURNAL)
    database.write(JOURNAL, b"secret" * 1000, 0)
    database.remove(JOURNAL)
    database.create(JOURNAL)
    database.write(JOURNAL, b"new", 5997)
    assert database.read(JOURNAL, 6000, 0) == bytes(5997) + b"new"


def end(database: Database, how: str) -> None:
    """What ends a transaction in journal mode DELETE or TRUNCATE."""
    if how == "remove":
        database.remove(JOURNAL)
    else:
        database.truncate(JOURNAL, 0)


@pytest.mark.parametrize("how", ["remove", "truncate"])
def test_the_space_of_a_long_journal_comes_back(volume: cowengine.Volume, how: str) -> None:
    database = Database("files", volume)
    database.create(JOURNAL)
    database.write(JOURNAL, b"j" * (KEPT_BYTES + 1), 0)
    end(database, how)
    assert allocated(volume, database, JOURNAL) == 0


@pytest.mark.parametrize("how", ["remove", "truncate"])
def test_a_short_journal_keeps_its_blocks_and_loses_its_header(volume: cowengine.Volume, how: str) -> None:
    """D4: in place, so that the next transaction has to place nothing."""
    database = Database("files", volume)
    database.create(JOURNAL)
    database.write(JOURNAL, JOURNAL_MAGIC + b"j" * 20_000, 0)
    end(database, how)
    assert allocated(volume, database, JOURNAL) == 20_480
    assert volume.pread(512, database.areas[JOURNAL].offset) == bytes(512)
    database.trim()
    assert allocated(volume, database, JOURNAL) == 0


@pytest.mark.parametrize("how", ["remove", "truncate"])
def test_a_journal_with_many_headers_leaves_none_of_them(volume: cowengine.Volume, how: str) -> None:
    database = Database("files", volume)
    database.create(JOURNAL)
    database.write(JOURNAL, bytes(20_000), 0)
    database.write(JOURNAL, JOURNAL_MAGIC + b"\0\0\0\1", 8192)
    end(database, how)
    assert allocated(volume, database, JOURNAL) == 0


def test_what_was_invalidated_is_durable_before_the_file_grows_again(volume: cowengine.Volume) -> None:
    """D4: TRUNCATE mode with synchronous=NORMAL asks for no sync in between."""
    database = Database("files", volume)
    database.create(WAL)
    database.write(WAL, b"w" * 100_000, 0)
    database.flush()
    database.truncate(WAL, 0)
    before = volume.stats()["barriers"]
    database.write(WAL, b"w", 0)
    assert volume.stats()["barriers"] > before
    before = volume.stats()["barriers"]
    database.write(WAL, b"w", 1)
    assert volume.stats()["barriers"] == before


def test_a_shorter_main_file_keeps_nothing_beyond_its_last_block(volume: cowengine.Volume) -> None:
    database = Database("files", volume)
    database.create(MAIN)
    database.write(MAIN, b"m" * (2 << 20), 0)
    database.truncate(MAIN, 4097)
    assert allocated(volume, database, MAIN) == 8192
    assert database.read(MAIN, 1 << 20, 0) == b"m" * 4097


def test_opening_gives_back_what_no_file_uses(volume: cowengine.Volume) -> None:
    database = Database("files", volume)
    database.create(JOURNAL)
    database.write(JOURNAL, b"j" * 100_000, 0)
    database.remove(JOURNAL)
    database.create(MAIN)
    database.write(MAIN, b"m" * 5000, 0)
    database.truncate(MAIN, 4097)
    volume.pwrite(b"left by a crash", database.areas[MAIN].offset + 4200)
    again = Database("files", volume)
    assert allocated(volume, again, JOURNAL) == 0
    assert volume.pread(4096, database.areas[MAIN].offset + 4096) == b"m" + bytes(4095)


def test_a_file_ends_where_its_area_ends(volume: cowengine.Volume) -> None:
    database = Database("files", volume)
    database.create(MAIN)
    database.write(MAIN, b"x", CAPACITY - 1)
    with pytest.raises(NoSpaceError, match=str(CAPACITY)):
        database.write(MAIN, b"xy", CAPACITY - 1)
    with pytest.raises(NoSpaceError):
        database.truncate(MAIN, CAPACITY + 1)
    assert database.length(MAIN) == CAPACITY
    assert not database.exists(JOURNAL)
    assert database.read(JOURNAL, 1, 0) == b""


def test_a_directory_write_spares_the_copy_that_was_flushed(volume: cowengine.Volume) -> None:
    """D2: tear the copy that was written since the last flush, and the flushed state is there."""
    database = Database("files", volume)
    database.create(MAIN)
    database.write(MAIN, b"flushed", 0)
    database.flush()
    before = volume.pread(2 * COPY_BYTES, 0)
    for number in range(5):
        database.write(MAIN, b"not flushed", 7 + number * 11)
    after = volume.pread(2 * COPY_BYTES, 0)
    changed = [copy for copy in (0, 1) if before[copy * 512 : copy * 512 + 512] != after[copy * 512 : copy * 512 + 512]]
    assert len(changed) == 1
    volume.pwrite(b"torn" * 64, changed[0] * COPY_BYTES + 128)
    assert Database("files", volume).length(MAIN) == 7


def test_growing_a_deleted_file_is_refused(volume: cowengine.Volume) -> None:
    database = Database("files", volume)
    with pytest.raises(NotFoundError):
        database.write(JOURNAL, b"x", 0)
    assert not database.remove(JOURNAL)


@pytest.mark.parametrize("offset", [0, 600, 5_000_000])
def test_a_volume_with_other_data_is_no_database(volume: cowengine.Volume, offset: int) -> None:
    volume.pwrite(b"somebody else's", offset)
    with pytest.raises(FormatError):
        Database("files", volume)
    assert volume.pread(15, offset) == b"somebody else's"
