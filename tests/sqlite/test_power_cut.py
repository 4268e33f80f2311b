"""A power cut in the middle of transactions, at every barrier, with any part of what was pending on the disk.

kill -9 sees no missing barrier; a recorded disk does. Transactions run on a store in memory. At every barrier images of
the disk are built in which some pending writes arrived, some not, some torn at 512 bytes; from each the store and the
database are opened.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

import cowengine
from cowengine.errors import CowEngineError
from cowengine.sqlite import VFS

sys.path.insert(0, str(Path(__file__).parent.parent / "crash"))

from memory_disk import Change, Durable, Instant, MemoryDisk, Write, instants, sector_count

PATH = "/disk/store"
TRANSACTIONS = 4
IMAGES_PER_BARRIER = 4


# Journal mode and pages in the cache: with few, a transaction spills and its journal has many headers.
Mode = tuple[str, int]
MODES: list[Mode] = [("delete", 3), ("delete", 100), ("truncate", 3), ("persist", 100), ("wal", 3)]


def connect(vfs: VFS, mode: Mode) -> apsw.Connection:
    connection = vfs.connect("p.db", exclusive=mode[0] == "wal")
    connection.pragma("journal_mode", mode[0])
    connection.pragma("cache_size", mode[1])
    return connection


def record(mode: Mode) -> MemoryDisk:
    """Transactions on a recorded disk; the notes say how many were acknowledged."""
    disk = MemoryDisk()
    randomness = random.Random(3)
    with cowengine.Store.create(PATH, io=disk, background=False) as store, VFS(store, capacity=1 << 20) as vfs:
        connection = connect(vfs, mode)
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        with connection:
            connection.executemany("INSERT INTO t VALUES (?, ?)", [(-n, bytes(900)) for n in range(1, 41)])
        disk.note(0)
        for number in range(1, TRANSACTIONS + 1):
            with connection:
                connection.execute("INSERT INTO t VALUES (?, ?)", (number, randomness.randbytes(2000)))
                connection.execute("UPDATE t SET v = ? WHERE id < -30 * ?", (bytes([number]) * 900, number % 2))
            disk.note(number)
            if number == 2:
                store.open_volume("p.db").snapshot("in between")
                # In WAL mode: the next transaction begins a new WAL where this one lay.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
    return disk


def check(image: Durable, mode: Mode, acknowledged: int) -> None:
    """Open what a power cut left: sound, with every acknowledged transaction, and no half one."""
    disk = MemoryDisk(image, recorded=False)
    with cowengine.Store.open(PATH, io=disk, background=False) as store, VFS(store) as vfs:
        connection = connect(vfs, mode)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ((last,),) = connection.execute("SELECT coalesce(max(id), 0) FROM t WHERE id > 0").fetchall()
        assert acknowledged <= last <= acknowledged + 1
        for marked, number in (("id < -30", last), ("id BETWEEN -30 AND -1", last - last % 2)):
            assert connection.execute(f"SELECT DISTINCT v FROM t WHERE {marked}").fetchall() == [
                (bytes([number]) * 900,)
            ]
        connection.close()


def arrivals(pending: list[Change], randomness: random.Random) -> Iterator[tuple[int | None, ...]]:
    """Ways in which pending changes may have arrived: 0 not, None whole, else a mask of the 512-byte sectors."""
    yield (0,) * len(pending)
    yield (None,) * len(pending)
    for _ in range(IMAGES_PER_BARRIER):
        share = randomness.random()
        choice: list[int | None] = []
        for change in pending:
            sectors = sector_count(change) if isinstance(change, Write) else 1
            torn = randomness.random() < 0.2
            whole = None if randomness.random() < share else 0
            choice.append(randomness.getrandbits(sectors) if torn and sectors > 1 else whole)
        yield tuple(choice)


def build(instant: Instant, arrived: tuple[int | None, ...]) -> Durable:
    image = instant.durable.copy()
    for change, sectors in zip(instant.pending, arrived, strict=True):
        if sectors != 0:
            image.apply(change, sectors)
    return image


def images(disk: MemoryDisk, keeps: Callable[[int], bool]) -> Iterator[tuple[Durable, int]]:
    randomness = random.Random(4)
    for instant in instants(disk.start, disk.journal, keeps):
        if instant.note is not None:
            for arrived in dict.fromkeys(arrivals(instant.pending, randomness)):
                yield build(instant, arrived), instant.note


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode)))
def test_a_power_cut_loses_no_acknowledged_transaction(mode: Mode) -> None:
    """Every other transaction is small, so that journals of many lengths lie on top of each other."""
    number = 0
    for image, acknowledged in images(record(mode), lambda position: True):
        check(image, mode, acknowledged)
        number += 1
    assert number > 50


def test_a_power_cut_under_barriers_that_do_nothing_is_noticed() -> None:
    """The check above can fail: with a disk that ignores barriers it does."""
    disk = record(MODES[0])
    start = next(position for position, event in enumerate(disk.journal) if type(event).__name__ == "Note")
    failures = 0
    for image, acknowledged in images(disk, lambda position: position < start):
        try:
            check(image, MODES[0], acknowledged)
        except (AssertionError, apsw.Error, CowEngineError):
            failures += 1
            if failures == 3:
                return
    pytest.fail("no image broke anything")
