"""FileSystemWriter on real file systems: what stands still, who thaws it whatever happens, and what is never frozen."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_mounts import PATIENCE_SECONDS, Scribe, goes_on, mounted, run, stands_still

from cowengine.errors import BusyError, NotFoundError, OutOfRangeError, WriterError, WriterTimeout, WriterVeto
from cowengine.mounts import MountTable
from cowengine.store import Store
from cowengine.vss import EngineProvider, JobView, Requestor, load_writers
from cowengine.writers import FileSystemWriter
from cowengine.writers.filesystem import writers_of_argument
from cowengine.writers.watchdog import FIFREEZE, FITHAW

MakeJob = Callable[..., JobView]

pytestmark = pytest.mark.privileged("losetup", "mount", "fsfreeze", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def any_point(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", tmp_path / "mnt", request.param) as point:
        yield point


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", tmp_path / "mnt") as point:
        yield point


def watchdog_of(writer: FileSystemWriter) -> int:
    [guard] = writer._guards.values()
    return guard.pid


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.02)
    return time.monotonic() - began


def test_it_stands_still_from_freeze_to_thaw(any_point: Path, job: MakeJob) -> None:
    writer = FileSystemWriter(any_point, ("data",))
    (any_point / "dirty").write_bytes(os.urandom(1 << 20))
    assert writer.prepare_snapshot(job()) == {"filesystem": MountTable().of_path(str(any_point)).type}
    assert goes_on(any_point)
    writer.freeze(job())
    scribe = Scribe(any_point)
    assert not scribe.done(0.5)
    writer.thaw(job())
    assert scribe.done(PATIENCE_SECONDS)
    writer.backup_shutdown(job())
    assert not writer._guards


def test_what_was_written_before_is_on_the_device(tmp_path: Path, job: MakeJob) -> None:
    """A copy of the device while it stands still needs no journal: fsck finds it clean, with all the data."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    with mounted(disk, tmp_path / "mnt") as point:
        writer = FileSystemWriter(point)
        data = os.urandom(3 << 20)
        (point / "file").write_bytes(data)
        writer.prepare_snapshot(job())
        writer.freeze(job())
        shutil.copyfile(disk, copy)
        writer.thaw(job())
    assert "needs_recovery" not in run("dumpe2fs", "-h", copy)
    run("e2fsck", "-fn", copy)
    with mounted(copy, tmp_path / "mnt", make=False) as point:
        assert (point / "file").read_bytes() == data


def test_abort_thaws_any_number_of_times_and_ends_the_watchdog(point: Path, job: MakeJob) -> None:
    writer = FileSystemWriter(point)
    writer.abort(job())
    writer.prepare_snapshot(job())
    pid = watchdog_of(writer)
    writer.freeze(job())
    writer.abort(job())
    writer.abort(job())
    assert goes_on(point)
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(WriterError, match="not prepared"):
        writer.freeze(job())
    writer.thaw(job())


def test_the_watchdog_thaws_when_the_time_has_passed(point: Path, job: MakeJob) -> None:
    writer = FileSystemWriter(point)
    writer.prepare_snapshot(job())
    short = job(seconds=4.0)
    writer.freeze(short)
    scribe = Scribe(point)
    assert not scribe.done(0.5)
    assert scribe.done(PATIENCE_SECONDS)
    assert time.monotonic() > short.deadline - 0.1
    with pytest.raises(WriterError, match="thawed by its watchdog, as the freeze limit had passed"):
        writer.thaw(job())


def test_a_watchdog_that_is_killed_leaves_nothing_frozen(point: Path, job: MakeJob) -> None:
    writer = FileSystemWriter(point)
    writer.prepare_snapshot(job())
    writer.freeze(job())
    os.kill(watchdog_of(writer), signal.SIGKILL)
    wait_until(lambda: not stands_still(point))
    with pytest.raises(WriterError, match="watchdog was killed"):
        writer.thaw(job())
    writer.abort(job())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_watchdog_that_is_told_to_end_thaws_first(point: Path, job: MakeJob, number: int) -> None:
    """Ctrl-C and a lost terminal are not meant for it."""
    writer = FileSystemWriter(point)
    writer.prepare_snapshot(job())
    writer.freeze(job())
    pid = watchdog_of(writer)
    os.kill(pid, number)
    if number == signal.SIGTERM:
        wait_until(lambda: not stands_still(point))
        with pytest.raises(WriterError):
            writer.thaw(job())
        writer.abort(job())
    else:
        assert stands_still(point)
        writer.thaw(job())
    assert not Path(f"/proc/{pid}").exists()


def test_a_watchdog_that_is_stopped_goes_on_to_thaw(point: Path, job: MakeJob) -> None:
    writer = FileSystemWriter(point)
    writer.prepare_snapshot(job())
    writer.freeze(job())
    os.kill(watchdog_of(writer), signal.SIGSTOP)
    with pytest.raises(WriterTimeout, match="hangs"):
        writer.thaw(job(seconds=1.0))
    assert goes_on(point)
    writer.abort(job())


def test_somebody_else_who_freezes_or_thaws_is_noticed(point: Path, job: MakeJob) -> None:
    writer = FileSystemWriter(point)
    writer.prepare_snapshot(job())
    run("fsfreeze", "-f", point)
    with pytest.raises(BusyError, match="somebody else has frozen"):
        writer.freeze(job())
    assert stands_still(point)
    run("fsfreeze", "-u", point)
    writer.prepare_snapshot(job())
    writer.freeze(job())
    run("fsfreeze", "-u", point)
    with pytest.raises(WriterError, match="by somebody else before the set was finished"):
        writer.thaw(job())


# ---- what is refused -----------------------------------------------------------------------------------------------


def refused(job: JobView, point: object, match: str, kind: type[Exception] = WriterError, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        FileSystemWriter(str(point), **options).prepare_snapshot(job)


def test_what_is_no_mount_or_cannot_be_frozen_is_refused(point: Path, job: MakeJob, tmp_path: Path) -> None:
    refused(job(), tmp_path / "none", "no such", NotFoundError)
    (point / "folder").mkdir()
    refused(job(), point / "folder", "nothing is mounted")
    (tmp_path / "memory").mkdir()
    run("mount", "-t", "tmpfs", "none", tmp_path / "memory")
    try:
        refused(job(), tmp_path / "memory", "cannot be frozen")
    finally:
        run("umount", tmp_path / "memory")
    with pytest.raises(OutOfRangeError, match="not one string"):
        FileSystemWriter(point, "data")


def test_an_overlay_is_refused(point: Path, job: MakeJob, tmp_path: Path) -> None:
    for name in ("upper", "work", "lower"):
        (point / name).mkdir()
    (tmp_path / "over").mkdir()
    options = f"lowerdir={point}/lower,upperdir={point}/upper,workdir={point}/work"
    run("mount", "-t", "overlay", "none", tmp_path / "over", "-o", options)
    try:
        refused(job(), tmp_path / "over", "cannot be frozen")
    finally:
        run("umount", tmp_path / "over")


def test_the_root_file_system_is_refused(job: MakeJob) -> None:
    refused(job(), "/", "root file system")


def test_the_file_system_of_the_store_is_refused(point: Path, job: MakeJob, tmp_path: Path) -> None:
    with Store.create(point / "store") as store:
        store.create_volume("data", 1 << 20)
        refused(job(), point, "of the store lies there", store=store)
        refused(job(), point, "open for writing", WriterError)
    refused(job(), point, "of the store lies there", store=point / "store")
    FileSystemWriter(point).abort(job())


def test_a_file_system_below_that_of_the_store_is_refused(point: Path, job: MakeJob, tmp_path: Path) -> None:
    """The store lies on a file system whose disk is a file on this one."""
    (point / "inner").touch()
    os.truncate(point / "inner", 16 << 20)
    with mounted(point / "inner", tmp_path / "upper") as upper:
        Store.create(upper / "store").close()
        refused(job(), point, "lies on a device whose data lies there", store=upper / "store")


def test_where_this_process_writes_is_refused(
    any_point: Path, job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = any_point
    with (point / "log").open("w"):
        refused(job(), point, "open for writing")
    with (point / "log").open("r"):
        writer = FileSystemWriter(point)
        writer.prepare_snapshot(job())
        writer.abort(job())
    monkeypatch.setenv("TMPDIR", str(point))
    monkeypatch.setattr("tempfile.tempdir", None)
    refused(job(), point, "temporary files")
    monkeypatch.undo()
    monkeypatch.chdir(point)
    refused(job(), point, "working directory")
    monkeypatch.chdir(tmp_path)
    (point / "extra_module.py").write_text("")
    monkeypatch.syspath_prepend(point)
    __import__("extra_module")
    refused(job(), point, "Python installation")
    del sys.modules["extra_module"]


def test_a_subvolume_is_the_same_file_system(tmp_path: Path, job: MakeJob) -> None:
    with mounted(tmp_path / "disk", tmp_path / "mnt", "btrfs") as point:
        run("btrfs", "subvolume", "create", point / "sub")
        with (point / "sub" / "log").open("w"):
            refused(job(), point, "open for writing")


def test_without_the_right_to_it_is_refused_at_prepare(point: Path) -> None:
    program = (
        "import sys, time; from cowengine.writers import FileSystemWriter; from cowengine.vss import JobView\n"
        "try: FileSystemWriter(sys.argv[1]).prepare_snapshot(JobView('j', 'snapshot', (), deadline=1e9))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    done = subprocess.run(
        [*drop, sys.executable, "-P", "-c", program, str(point)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("WriterError")
    assert "CAP_SYS_ADMIN" in done.stdout


# ---- in a job ------------------------------------------------------------------------------------------------------


def test_in_a_job_it_freezes_around_the_set(point: Path, store: Any) -> None:
    seen: list[bool] = []

    class Watching(EngineProvider):
        def commit(self, job: JobView) -> Any:
            seen.append(stands_still(point))
            return super().commit(job)

    writer = FileSystemWriter(point, ("data",), store=store)
    taken = Requestor(store, [writer], Watching(store)).snapshot(["data"])
    assert seen == [True]
    assert goes_on(point)
    assert taken.ledger["writer_notes"] == {"filesystem:data": {"filesystem": "ext4"}}
    ledger = Requestor(store, [writer]).rehearse(["data"])
    assert ledger["predicted_freeze_seconds"] > 0
    assert goes_on(point)
    fd = os.open(point, os.O_RDONLY)
    fcntl.ioctl(fd, FIFREEZE, 0)  # nobody has left it frozen
    fcntl.ioctl(fd, FITHAW, 0)
    os.close(fd)


STUCK = """
import sys, time
from cowengine import Requestor, Store
from cowengine.vss import EngineProvider
from cowengine.writers import FileSystemWriter

class Stuck(EngineProvider):
    def commit(self, job):
        print("frozen", flush=True)
        time.sleep(100)

store = Store.create(sys.argv[1])
store.create_volume("data", 1 << 20)
writer = FileSystemWriter(sys.argv[2], freeze_limit=float(sys.argv[3]))
Requestor(store, [writer], Stuck(store), hold_limit=90).snapshot()
"""


@pytest.mark.parametrize(
    ("number", "limit"),
    [(signal.SIGKILL, 80.0), (signal.SIGSTOP, 6.0), (signal.SIGTERM, 80.0)],
    ids=["killed", "stopped", "ended"],
)
def test_whatever_happens_to_the_coordinator_it_is_thawed(
    point: Path, tmp_path: Path, number: int, limit: float
) -> None:
    command = [sys.executable, "-P", "-c", STUCK, str(tmp_path / "stuck"), str(point), str(limit)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        scribe = Scribe(point)
        assert not scribe.done(0.3)
        process.send_signal(number)
        assert scribe.done(PATIENCE_SECONDS)
        process.kill()
    # Nor does it come back: what was stopped finds its freeze gone.
    assert goes_on(point)


# ---- a device that hangs -------------------------------------------------------------------------------------------


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A mounted ext4 whose device is served by a process, and that process."""
    disk, folder, socket = tmp_path / "served", tmp_path / "fuse", tmp_path / "socket"
    disk.touch()
    os.truncate(disk, 32 << 20)
    folder.mkdir()
    server = subprocess.Popen(["nbdkit", "-f", "--exit-with-parent", "-U", str(socket), "file", str(disk)])
    try:
        wait_until(socket.exists)
        client = subprocess.Popen(["nbdfuse", str(folder), f"nbd+unix:///?socket={socket}"])
        try:
            wait_until((folder / "nbd").exists)
            with mounted(folder / "nbd", tmp_path / "mnt") as point:
                try:
                    yield point, server.pid
                finally:
                    os.kill(server.pid, signal.SIGCONT)
        finally:
            run("fusermount3", "-u", folder)
            client.wait(30)
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.privileged("nbdkit", "nbdfuse", "fusermount3")
def test_a_freeze_that_hangs_is_given_up_in_time_and_thawed_when_it_returns(
    hanging: tuple[Path, int], store: Any
) -> None:
    point, server = hanging
    writer = FileSystemWriter(point, freeze_limit=3.0)

    class Stopping(EngineProvider):
        """What is written after prepare has to be written by the freeze; the device hangs from then on."""

        def end_prepare(self, job: JobView) -> None:
            (point / "dirty").write_bytes(os.urandom(1 << 20))
            os.kill(server, signal.SIGSTOP)

    requestor = Requestor(store, [writer], Stopping(store), abort_limit=3.0)
    began = time.monotonic()
    with pytest.raises(WriterError, match=r"freeze.* hangs"):
        requestor.snapshot()
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert store.snapshot_sets() == []
    os.kill(server, signal.SIGCONT)
    wait_until(lambda: not stands_still(point))
    requestor = Requestor(store, [writer])
    wait_until(lambda: _snapshots(requestor))
    assert goes_on(point)


def _snapshots(requestor: Requestor) -> bool:
    """The mount is free again: the watchdog of the job before has ended."""
    try:
        requestor.snapshot()
    except WriterVeto:
        return False
    return True


# ---- from the command line -----------------------------------------------------------------------------------------


def test_the_text_of_the_command_line_names_mount_and_volume(store: Any) -> None:
    [writer] = writers_of_argument(store, "data:/mnt/data")
    assert isinstance(writer, FileSystemWriter)
    assert (writer.volumes, writer.mount_point, writer.name) == (("data",), "/mnt/data", "filesystem:data")
    [writer] = load_writers("filesystem=/mnt/a:b", store)
    assert isinstance(writer, FileSystemWriter)
    assert (writer.volumes, writer.mount_point) == ((), "/mnt/a:b")
