"""kill -9 in the middle of transactions: what was acknowledged is there, nothing is half there.

A child process commits transaction after transaction and says so on its standard output after each COMMIT. It is killed
at a random moment. Then the store is opened again and every transaction that was announced must be there; at most one
more may be.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cowengine
from cowengine.sqlite import VFS

KILLS = 8

CHILD = """
import os, sys
import cowengine
from cowengine.sqlite import VFS
path, mode = sys.argv[1:]
store = cowengine.Store.open(path)
vfs = VFS(store)
connection = vfs.connect("k.db", create=False, exclusive=mode == "wal")
connection.pragma("journal_mode", mode)
connection.pragma("cache_size", 10)
(number,) = connection.execute("SELECT coalesce(max(id), 0) FROM t").fetchall()[0]
volume = store.open_volume("k.db")
while True:
    number += 1
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(100)))
    connection.execute("UPDATE t SET v = randomblob(500) WHERE id % 11 = ?", (number % 11,))
    connection.execute("UPDATE total SET v = v + 1")
    connection.execute("COMMIT")
    os.write(1, b"%d\\n" % number)
    if number % 13 == 0:
        volume.snapshot(f"at-{number}-{os.getpid()}")
"""


def make(path: Path, mode: str) -> None:
    with cowengine.Store.create(path) as store, VFS(store, capacity=1 << 30) as vfs:
        connection = vfs.connect("k.db", exclusive=mode == "wal")
        connection.pragma("journal_mode", mode)
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE total (v)")
        connection.execute("INSERT INTO total VALUES (0)")
        connection.close()


def run_and_kill(path: Path, mode: str, seconds: float) -> int:
    """The last transaction that was announced; 0 if none was."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), mode], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        first = child.stdout.readline()
        time.sleep(seconds)
        child.kill()
        # Only whole lines: the last one may be cut.
        lines = (first + child.stdout.read()).split(b"\n")[:-1]
    assert first, f"the child ended with status {child.returncode} before it committed anything"
    return int(lines[-1])


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_a_killed_process_loses_no_acknowledged_transaction(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "store"
    make(path, mode)
    randomness = random.Random(mode)
    for kill in range(KILLS):
        acknowledged = run_and_kill(path, mode, randomness.uniform(0, 0.06))
        with cowengine.Store.open(path) as store, VFS(store) as vfs:
            assert store.open_volume("k.db").check().ok
            connection = vfs.connect("k.db", create=False, exclusive=mode == "wal")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], f"kill {kill}"
            ((count, last, total),) = connection.execute(
                "SELECT count(*), max(id), (SELECT v FROM total) FROM t"
            ).fetchall()
            assert count == last == total, f"kill {kill}: half a transaction"
            assert acknowledged <= last <= acknowledged + 1, f"kill {kill}"
            connection.close()
