"""PostgreSQLWriter with a real server: where its files lie decides what is done, what goes wrong is a clear veto."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import USER, PostgreSQL, owned, scratch
from loop_mounts import mounted, run

from cowengine.errors import (
    ExistsError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
    WriterError,
    WriterTimeout,
    WriterVeto,
)
from cowengine.filesystems import START_BYTES, probe
from cowengine.vss import JobView, Requestor, load_writers
from cowengine.writers import PostgreSQLWriter, write_labels
from cowengine.writers.devices import offset_of_device, uuid_of_device
from cowengine.writers.postgresql import writers_of_argument

MakeJob = Callable[..., JobView]

pytestmark = [
    pytest.mark.privileged("losetup", "mount", "mkfs.ext4", "pg_ctlcluster"),
    pytest.mark.needs(modules=["psycopg"]),
]

DISK_BYTES = 400 << 20


class Site:
    """A cluster on an ext4 of its own (volume "data"), beside a second ext4 (volume "wal")."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.wal = folder / "data", folder / "wal"
        self.server = PostgreSQL(self.data / "cluster", folder / "run")

    @property
    def both(self) -> dict[str, str]:
        return {"data": str(self.data), "wal": str(self.wal)}

    def give_superblocks(self, store: Any) -> bytes:
        """What tells a file system from others, onto the volumes that stand for the two disks; that of "data"."""
        starts = {}
        for name in ("data", "wal"):
            with (self.folder / f"{name}.img").open("rb") as file:
                starts[name] = file.read(4096)
            store.open_volume(name).pwrite(starts[name], 0)
        return starts["data"]

    def writer(self, volumes: Any = None, **options: Any) -> PostgreSQLWriter:
        return PostgreSQLWriter(self.server.conninfo, self.both if volumes is None else volumes, **options)


@contextmanager
def site() -> Iterator[Site]:
    with scratch() as folder:
        for name in ("data", "wal"):
            with (folder / f"{name}.img").open("w") as file:
                file.truncate(DISK_BYTES)
        with (
            mounted(folder / "data.img", folder / "data") as data,
            mounted(folder / "wal.img", folder / "wal") as wal,
        ):
            data.chmod(0o755)
            wal.chmod(0o755)
            made = Site(folder)
            (folder / "archive").mkdir()
            owned(folder / "archive")
            made.server.create(f"archive_command = 'cp %p {folder}/archive/%f'", "archive_timeout = 0").start()
            try:
                yield made
            finally:
                made.server.stop("immediate")


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    """For tests that leave the server as it was."""
    with site() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture
def both(job: MakeJob) -> JobView:
    return job(volumes=("data", "wal"))


# ---- the mode "atomic" ---------------------------------------------------------------------------------------------


def test_all_on_one_volume_is_atomic_after_a_checkpoint(shared: Site, both: JobView) -> None:
    shared.server.sql("CREATE TABLE IF NOT EXISTS t (v int); INSERT INTO t VALUES (1)")
    before = shared.server.sql("SELECT redo_lsn FROM pg_control_checkpoint()")
    writer = shared.writer()
    notes = writer.prepare_snapshot(both)
    assert notes["mode"] == "atomic"
    assert notes["places"] == {"data directory": {"volume": "data", "path": "cluster"}}
    assert notes["server_version"] >= 150000
    assert shared.server.sql("SELECT redo_lsn FROM pg_control_checkpoint()") != before
    assert writer.post_snapshot(both) == {"verified_volumes": []}
    assert not writer._servers
    assert writer.identify().volumes == ("data", "wal")


def test_one_name_alone_stands_for_the_file_system_of_the_data_directory(shared: Site, job: MakeJob) -> None:
    assert shared.writer(["data"]).prepare_snapshot(job())["mode"] == "atomic"
    with pytest.raises(OutOfRangeError, match="say where each volume is mounted"):
        shared.writer(["data", "wal"])


def test_wal_behind_a_link_and_tablespaces_are_found(own: Site, both: JobView, job: MakeJob) -> None:
    own.server.stop()
    owned(own.wal / "moved")
    run("cp", "-a", own.server.data / "pg_wal", own.wal / "moved")
    shutil.rmtree(own.server.data / "pg_wal")
    (own.server.data / "pg_wal").symlink_to(own.wal / "moved" / "pg_wal")
    own.server.start()
    for name in ("inside", "outside"):
        owned({"inside": own.data, "outside": own.folder}[name] / name)
    own.server.sql(f"CREATE TABLESPACE inside LOCATION '{own.data}/inside'")
    notes = own.writer().prepare_snapshot(both)
    assert notes["mode"] == "atomic"
    assert notes["places"]["WAL"] == {"volume": "wal", "path": "moved/pg_wal"}
    assert notes["places"]["tablespace inside"] == {"volume": "data", "path": "inside"}
    with pytest.raises(WriterError, match=r"the WAL lies on .*/wal, which is no volume of the set"):
        own.writer({"data": own.data}, mode="atomic").prepare_snapshot(job())
    # What is moved away while the snapshot is taken is noticed behind it.
    writer = own.writer()
    writer.prepare_snapshot(both)
    own.server.sql(f"CREATE TABLESPACE outside LOCATION '{own.folder}/outside'")
    with pytest.raises(WriterError, match="the tablespace outside lies on"):
        writer.post_snapshot(both)
    with pytest.raises(WriterError, match=r"tablespace outside .* archive_mode is off"):
        own.writer().prepare_snapshot(both)


def test_settings_that_defeat_recovery_are_a_veto(own: Site, both: JobView) -> None:
    for name in ("fsync", "full_page_writes"):
        own.server.sql(f"ALTER SYSTEM SET {name} = off")
        own.server.sql("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 60
        while own.server.sql(f"SHOW {name}") != "off" and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(WriterError, match=f"{name} is off"):
            own.writer().prepare_snapshot(both)
        own.server.sql(f"ALTER SYSTEM RESET {name}")
        own.server.sql("SELECT pg_reload_conf()")


def test_a_mount_that_is_not_on_the_volume_is_noticed(shared: Site, store: Any, both: JobView) -> None:
    """By the UUID in the superblock of the snapshot."""
    start = shared.give_superblocks(store)
    job = replace(both, snapshot_set=store.snapshot(["data", "wal"], "same"))
    assert shared.writer().post_snapshot(job) == {"verified_volumes": ["data"]}
    changed = bytearray(start)
    changed[1024 + 104] ^= 1
    for name, text in (("other", bytes(changed)), ("none", bytes(4096))):
        store.open_volume("data").pwrite(text, 0)
        job = replace(both, snapshot_set=store.snapshot(["data", "wal"], name))
        with pytest.raises(WriterError, match="is not volume 'data' of the set"):
            shared.writer().post_snapshot(job)


def test_a_file_system_is_known_by_where_it_begins(shared: Site, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    run("mkfs.ext4", "-q", "-F", "-E", f"offset={4 << 20}", disk, "8M")
    with disk.open("rb") as file:
        assert not probe(file.read(START_BYTES)).uuid
        file.seek(4 << 20)
        assert probe(file.read(START_BYTES)).uuid
    device = run("findmnt", "-no", "SOURCE", shared.data)
    assert (offset_of_device(device), offset_of_device("/dev/null")) == (0, None)
    assert uuid_of_device(device) == bytes.fromhex(run("findmnt", "-no", "UUID", shared.data).replace("-", ""))


def test_an_atomic_set_under_load_recovers(own: Site, store: Any) -> None:
    """Copies of both disks at one instant (both file systems stand still) are a cluster that starts and is sound."""
    from cowengine.vss import EngineProvider
    from cowengine.writers import FileSystemWriter

    class Copying(EngineProvider):
        def commit(self, job: JobView) -> Any:
            for name in ("data", "wal"):
                run("cp", "--sparse=always", own.folder / f"{name}.img", own.folder / f"{name}-copy.img")
            return super().commit(job)

    run(*_pgbench_init(own.server))
    own.give_superblocks(store)
    freezing = [FileSystemWriter(own.both[name], (name,), store=store) for name in ("data", "wal")]
    with own.server.load():
        taken = Requestor(store, [own.writer(), *freezing], Copying(store)).snapshot(["data", "wal"])
    assert taken.ledger["writer_notes"]["postgresql"]["mode"] == "atomic"
    own.server.stop("immediate")
    run("umount", own.data)
    with mounted(own.folder / "data-copy.img", own.data, make=False):
        own.server.forget_the_one_before()
        own.server.start()
        assert own.server.invariant() > 0
        own.server.check()
        own.server.stop()
    run("mount", "-o", "loop", own.folder / "data.img", own.data)


def _pgbench_init(server: PostgreSQL) -> list[str]:
    from clusters import program

    return [program("pgbench"), "-h", str(server.run), "-U", USER, "-i", "-q", "-s", "2", "postgres"]


# ---- the mode "backup" ---------------------------------------------------------------------------------------------


def test_without_an_archive_backup_mode_is_refused(shared: Site, both: JobView) -> None:
    with pytest.raises(WriterError, match="archive_mode is off"):
        shared.writer(mode="backup").prepare_snapshot(both)


def test_copies_of_two_instants_recover_with_the_labels(own: Site, store: Any, tmp_path: Path) -> None:
    """A tablespace beside the volumes is copied later than the rest: the labels and the archive make it one again."""
    own.server.sql("ALTER SYSTEM SET archive_mode = on")
    own.server.stop()
    own.server.start()
    owned(own.folder / "space")
    own.server.sql(f"CREATE TABLESPACE space LOCATION '{own.folder}/space'")
    run(*_pgbench_init(own.server), "--tablespace=space")

    copies = own.folder / "copies"
    copies.mkdir()

    class Copying(PostgreSQLWriter):
        """Copies the data directory, and a while later the tablespace, between start and stop of the backup."""

        def thaw(self, job: JobView) -> None:
            run("cp", "-a", own.server.data, copies / "cluster")
            time.sleep(0.5)
            run("cp", "-a", own.folder / "space", copies / "space")

    writer = Copying(own.server.conninfo, {"data": own.data})
    with own.server.load():
        backup = Requestor(store, [writer]).backup(tmp_path / "backups", volumes=["data"])
    taken = store.snapshot_sets()[-1]
    notes = taken.ledger["writer_notes"]["postgresql"]
    assert notes["mode"] == "backup"
    assert notes["backup_label"].startswith("START WAL LOCATION")
    assert str(own.folder / "space") in notes["tablespace_map"]
    assert backup.id
    own.server.stop("immediate")

    restored = PostgreSQL(copies / "cluster", own.folder / "run2")
    restored.forget_the_one_before()
    moved = {**notes, "tablespace_map": notes["tablespace_map"].replace(f"{own.folder}/space", f"{copies}/space")}
    assert write_labels(restored.data, moved) == ["backup_label", "tablespace_map"]
    assert (restored.data / "backup_label").read_bytes() == notes["backup_label"].encode()
    assert (restored.data / "backup_label").stat().st_uid == restored.data.stat().st_uid
    with (restored.data / "postgresql.conf").open("a") as file:
        file.write(f"restore_command = 'cp {own.folder}/archive/%f %p'\narchive_mode = off\n")
    (restored.data / "recovery.signal").touch()
    shutil.chown(restored.data / "recovery.signal", USER, USER)
    restored.start()
    deadline = time.monotonic() + 60
    while restored.sql("SELECT pg_is_in_recovery()") == "t":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    try:
        assert restored.invariant() > 0
        restored.check()
    finally:
        restored.stop("immediate")


def test_a_job_that_fails_ends_the_backup(own: Site, both: JobView) -> None:
    own.server.sql("ALTER SYSTEM SET archive_mode = on")
    own.server.stop()
    own.server.start()
    writer = own.writer(mode="backup")
    assert writer.prepare_snapshot(both)["mode"] == "backup"
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cowengine'"
    assert own.server.sql(count) == "1"
    writer.abort(both)
    writer.abort(both)
    deadline = time.monotonic() + 60
    while own.server.sql(count) != "0":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(WriterError):  # and another job's backup is no end of it
        writer.prepare_snapshot(replace(both, deadline=time.monotonic() - 1))
    # The connection is lost between start and stop.
    writer.prepare_snapshot(both)
    own.server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cowengine'")
    with pytest.raises(WriterError, match="connection to PostgreSQL was lost"):
        writer.post_snapshot(both)
    writer.backup_shutdown(both)
    assert not writer._servers


def test_an_archive_that_does_not_take_the_wal_is_given_up_in_time(own: Site, both: JobView) -> None:
    own.server.sql("ALTER SYSTEM SET archive_mode = on")
    own.server.sql("ALTER SYSTEM SET archive_command = 'false'")
    own.server.stop()
    own.server.start()
    writer = own.writer(mode="backup")
    writer.prepare_snapshot(both)
    began = time.monotonic()
    with pytest.raises(WriterTimeout):
        writer.post_snapshot(replace(both, deadline=began + 2.0))
    assert time.monotonic() - began < 60
    writer.abort(both)


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_server_that_hangs_is_cut_off_in_time(own: Site, both: JobView) -> None:
    writer = own.writer()
    server = own.server.pid
    os.kill(server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(WriterError):
            writer.prepare_snapshot(replace(both, deadline=began + 2.0))
        assert time.monotonic() - began < 60
    finally:
        os.kill(server, signal.SIGCONT)
    # The same with a connection that stands already, whose own process stops.
    own.server.sql("ALTER SYSTEM SET archive_mode = on")
    own.server.stop()
    own.server.start()
    backup = own.writer(mode="backup")
    backup.prepare_snapshot(both)
    pid = int(own.server.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'cowengine'"))
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(WriterTimeout):
            backup.post_snapshot(replace(both, deadline=began + 2.0))
        assert 1.0 < time.monotonic() - began < 60
    finally:
        os.kill(pid, signal.SIGCONT)
    backup.abort(both)


def test_a_server_that_is_down_or_elsewhere_is_a_clear_error(shared: Site, both: JobView, tmp_path: Path) -> None:
    with pytest.raises(WriterError, match="cannot connect to PostgreSQL") as caught:
        PostgreSQLWriter(f"host={tmp_path}", shared.both).prepare_snapshot(both)
    assert (caught.value.writer, caught.value.phase) == ("postgresql", "prepare_snapshot")
    with pytest.raises(WriterError, match="nothing is mounted at"):
        shared.writer({"data": shared.folder}).prepare_snapshot(both)
    with pytest.raises(NotFoundError):
        shared.writer({"data": shared.folder / "none"}).prepare_snapshot(both)


def test_a_data_directory_of_another_server_is_refused(shared: Site) -> None:
    from cowengine.writers.postgresql_places import places_of
    from cowengine.writers.postgresql_server import Server

    server = Server(shared.server.conninfo, time.monotonic() + 20)
    cluster = server.describe()
    server.close()
    with pytest.raises(WriterError, match="belongs to another server"):
        places_of(replace(cluster, system_identifier=1), {})
    with pytest.raises(NotFoundError, match="not on this machine"):
        places_of(replace(cluster, data_directory="/nowhere"), {})


def test_users_without_the_right_to_are_told_what_it_takes(shared: Site, both: JobView) -> None:
    shared.server.sql("CREATE ROLE nobody_special LOGIN; CREATE ROLE backer LOGIN")
    shared.server.sql("GRANT pg_checkpoint, pg_read_all_settings TO backer")
    conninfo = shared.server.conninfo.replace(f"user={USER}", "user={}")
    with pytest.raises(WriterError, match=r"refuses this to its user.*pg_checkpoint"):
        PostgreSQLWriter(conninfo.format("nobody_special"), shared.both).prepare_snapshot(both)
    writer = PostgreSQLWriter(conninfo.format("backer"), shared.both)
    assert writer.prepare_snapshot(both)["mode"] == "atomic"


def test_a_standby_is_a_veto(own: Site, both: JobView) -> None:
    own.server.stop()
    (own.server.data / "standby.signal").touch()
    shutil.chown(own.server.data / "standby.signal", USER, USER)
    own.server.start()
    with pytest.raises(WriterError, match="standby"):
        own.writer().prepare_snapshot(both)


def test_a_job_reports_a_refusal_and_leaves_no_set(shared: Site, store: Any) -> None:
    writer = shared.writer({"data": shared.data, "wal": shared.wal}, mode="backup")
    with pytest.raises(WriterVeto, match=r"'postgresql' refused at prepare_snapshot.*archive_mode"):
        Requestor(store, [writer]).snapshot()
    assert store.snapshot_sets() == []


def test_without_the_driver_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('none')")
    program = (
        "from cowengine.writers import PostgreSQLWriter\n"
        "try: PostgreSQLWriter()\n"
        "except ImportError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    assert "pip install 'cowengine[postgresql]'" in done.stdout


# ---- labels and arguments ------------------------------------------------------------------------------------------


def test_labels_go_into_the_right_cluster_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").write_bytes((77).to_bytes(8, "little"))
    notes = {"mode": "backup", "system_identifier": "77", "backup_label": "A\nB\n", "tablespace_map": ""}
    assert write_labels(data, {**notes, "mode": "atomic"}) == []
    assert write_labels(data, notes) == ["backup_label"]
    assert write_labels(data, notes) == ["backup_label"]
    assert sorted(path.name for path in data.iterdir()) == ["backup_label", "global"]
    with pytest.raises(ExistsError):
        write_labels(data, {**notes, "backup_label": "C"})
    with pytest.raises(OutOfRangeError, match="cluster 78"):
        write_labels(data, {**notes, "system_identifier": "78"})
    with pytest.raises(NotFoundError):
        write_labels(tmp_path, notes)
    for broken in ({}, {"mode": "backup"}, {**notes, "backup_label": None}):
        with pytest.raises(FormatError):
            write_labels(data, broken)


def test_the_text_of_the_command_line_names_volumes_and_connection(store: Any) -> None:
    [writer] = writers_of_argument(store, "data:/mnt/data,wal:/mnt/wal host=/run/pg user=backup")
    assert isinstance(writer, PostgreSQLWriter)
    assert writer.volumes == {"data": "/mnt/data", "wal": "/mnt/wal"}
    assert writer.conninfo == "host=/run/pg user=backup"
    [writer] = load_writers("postgresql=data", store)
    assert (writer.volumes, writer.conninfo) == ({"data": None}, "")  # type: ignore[attr-defined]
    with pytest.raises(OutOfRangeError, match="VOLUME:MOUNT_POINT"):
        load_writers("postgresql=data:/mnt/data,wal", store)
    for wrong in ({"mode": "quick"}, {"volumes": "data"}):
        with pytest.raises(OutOfRangeError):
            PostgreSQLWriter("", **wrong)  # type: ignore[arg-type]
