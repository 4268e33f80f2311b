"""A real PostgreSQL under load on ext4 on served volumes: every snapshot set of it is sound, and a crash loses nothing.

Its data and its WAL lie on a volume each, both served by one `cowengine serve`; the sets are taken through the store's
control socket, with a PostgreSQLWriter and a FileSystemWriter for each volume.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from clusters import USER, PostgreSQL, as_user, owned, program
from served import MIB, Bench, bench, cowengine, run, served_store

from cowengine import Requestor, connect
from cowengine.mount import Record, mount_volume, unmount
from cowengine.writers import FileSystemWriter, PostgreSQLWriter

pytestmark = [
    pytest.mark.privileged("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "nbdkit", "setpriv", "pg_ctlcluster"),
    pytest.mark.needs(modules=["psycopg"]),
]

SETS = 20
VOLUMES = ("data", "wal")


class Site:
    """A store with a cluster on two of its volumes, and what is mounted of them."""

    def __init__(self, made: Bench) -> None:
        self.bench = made
        made.folder.chmod(0o755)
        self.store = made.store("store", data=640 * MIB, wal=640 * MIB)
        self.points = {name: made.directory(name) for name in VOLUMES}
        self.server = PostgreSQL(self.points["data"] / "cluster", made.folder / "run")

    def mount(self) -> list[Record]:
        return [mount_volume(name, str(self.points[name]), store=str(self.store)) for name in VOLUMES]

    def create(self) -> None:
        """A new cluster with pgbench's tables and one of our own, under load from the first moment."""
        for name in VOLUMES:
            self.bench.format(name, "mkfs.ext4", "-q", store=self.store)
        self.mount()
        for point in self.points.values():
            point.chmod(0o755)
        wal = owned(self.points["wal"] / "files")
        owned(self.server.data)
        self.server.create("checkpoint_timeout = 30s", waldir=wal / "pg_wal")
        self.server.start()
        as_user(program("pgbench"), "-h", self.server.run, "-U", USER, "-i", "-q", "-s", "2", "postgres")
        self.server.sql("CREATE TABLE acknowledged (client int, number int, PRIMARY KEY (client, number))")

    def take(self, name: str) -> float:
        """A set with everybody asked first; seconds that the file systems stood still."""
        with connect(str(self.store)) as store:
            mounts = {volume: str(point) for volume, point in self.points.items()}
            writers = [PostgreSQLWriter(self.server.conninfo, mounts)]
            freezing = [FileSystemWriter(point, (volume,), store=store) for volume, point in mounts.items()]
            taken = Requestor(store, [*writers, *freezing], freeze_limit=120.0).snapshot(list(VOLUMES), name)
            ledger = taken.ledger
            notes = ledger["writer_notes"]["postgresql"]
            assert (notes["mode"], notes["verified_volumes"]) == ("atomic", list(VOLUMES))
            return float(ledger["freeze_window_seconds"])

    def take_by_command(self, name: str) -> Any:
        """The same from the command line."""
        places = ",".join(f"{volume}:{point}" for volume, point in self.points.items())
        writers = [f"postgresql={places} {self.server.conninfo}"]
        writers += [f"filesystem={volume}:{point}" for volume, point in self.points.items()]
        options = [word for writer in writers for word in ("--writer", writer)]
        return cowengine("set", "create", self.store, name, *VOLUMES, *options)

    @contextmanager
    def restored(self, name: str) -> Iterator[PostgreSQL]:
        """A server of its own on the two snapshots of a set, which stay as they are."""
        points = {volume: self.bench.directory(f"{name}-{volume}") for volume in VOLUMES}
        records = [
            mount_volume(volume, str(point), store=str(self.store), snapshot=name, writable=True)
            for volume, point in points.items()
        ]
        try:
            found = PostgreSQL(points["data"] / "cluster", self.bench.folder / "run2")
            found.forget_the_one_before()
            (found.data / "pg_wal").unlink()
            (found.data / "pg_wal").symlink_to(points["wal"] / "files" / "pg_wal")
            found.start()
            try:
                yield found
            finally:
                found.stop("immediate")
        finally:
            for record in records:
                unmount(record.id)


@pytest.fixture
def site() -> Iterator[Site]:
    with bench() as made:
        found = Site(made)
        try:
            yield found
        finally:
            found.server.kill()


class Clients:
    """Clients that write down each commit that was acknowledged to them."""

    def __init__(self, conninfo: str, count: int) -> None:
        self._conninfo = conninfo
        self.acknowledged = [0] * count  # by client, the last number
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._insert, args=(number,), daemon=True) for number in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for_more(self) -> None:
        """Until each of them has committed some more."""
        wanted = [number + 5 for number in self.acknowledged]
        deadline = time.monotonic() + 180
        while any(number < least for number, least in zip(self.acknowledged, wanted, strict=True)):
            assert time.monotonic() < deadline, f"{self.acknowledged} of {wanted}"
            time.sleep(0.02)

    def _insert(self, client: int) -> None:
        import psycopg

        try:
            with psycopg.connect(self._conninfo, autocommit=True) as connection:
                while not self._ending.is_set():
                    number = self.acknowledged[client] + 1
                    connection.execute("INSERT INTO acknowledged VALUES (%s, %s)", [client, number])
                    self.acknowledged[client] = number
        except psycopg.Error:
            return  # the server is gone; what it has acknowledged is written down


def missing(server: PostgreSQL, acknowledged: list[int]) -> list[str]:
    """Commits that were acknowledged and are not there."""
    found = []
    for client, last in enumerate(acknowledged):
        count = int(server.sql(f"SELECT count(*) FROM acknowledged WHERE client = {client} AND number <= {last}"))
        if count != last:
            found.append(f"client {client}: {last} acknowledged, {count} there")
    return found


def test_twenty_sets_under_load_are_sound(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    windows, before = [], []
    with served_store(site.store):
        site.create()
        with site.server.load(), Clients(site.server.conninfo, 1) as clients:
            for number in range(SETS):
                clients.wait_for_more()
                before.append(list(clients.acknowledged))
                windows.append(site.take(f"set-{number}"))
            clients.wait_for_more()
        transactions = [0]
        for number in range(SETS):
            with site.restored(f"set-{number}") as server:
                assert missing(server, before[number]) == []
                transactions.append(server.invariant())
                server.check()
        assert transactions == sorted(transactions)
        assert transactions[-1] > transactions[1]
        site.server.stop("immediate")
        unmount_all(site)
    windows.sort()
    with capsys.disabled():
        print(
            f"\n{SETS} sets of PostgreSQL under load, freeze window: p50 {windows[len(windows) // 2] * 1000:.0f} ms,"
            f" p99 {windows[-1] * 1000:.0f} ms; {transactions[-1]} transactions in the last"
        )


def test_a_killed_server_loses_no_acknowledged_commit(site: Site) -> None:
    with served_store(site.store) as first:
        site.create()
        with site.server.load(), Clients(site.server.conninfo, 3) as clients:
            clients.wait_for_more()
            taken = site.take_by_command("under-load")
            assert taken["ledger"]["writer_notes"]["postgresql"]["mode"] == "atomic"
            clients.wait_for_more()
            time.sleep(2)
            first.kill()
        acknowledged = list(clients.acknowledged)
        assert min(acknowledged) > 0
        site.server.kill()
        unmount_all(site)
    with served_store(site.store):
        for name in VOLUMES:
            check_file_system(site, name)
        site.mount()
        site.server.forget_the_one_before()
        site.server.start()
        assert missing(site.server, acknowledged) == []
        assert site.server.invariant() > 0
        site.server.check()
        with site.restored("under-load") as server:
            assert server.invariant() > 0
        site.server.stop()
        unmount_all(site)
        assert cowengine("store", "check", site.store)


def unmount_all(site: Site) -> None:
    for point in site.points.values():
        unmount(str(point), force=True)


def check_file_system(site: Site, name: str) -> None:
    """The journal is replayed, as a mount would do; then e2fsck finds nothing to mend."""
    record = mount_volume(name, store=str(site.store), loop=True)
    try:
        done = subprocess.run(["e2fsck", "-p", record.device or ""], capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        run("e2fsck", "-f", "-n", record.device)
    finally:
        unmount(record.id)
