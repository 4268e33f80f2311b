"""The peers of the benchmarks do what they are measured at: snapshots keep what they hold, and barriers are real."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from subjects.btrfs import Btrfs
from subjects.loop_mount import lacking_for_mounts, mounted
from subjects.nbdkit_cow import NbdkitCow
from subjects.qcow2 import qcow2_subjects
from subjects.rbd import Rbd
from subjects.reflink import XfsReflink
from subjects.subject import Disk, NotOffered, Subject

BLOCK = 4096
MiB = 1 << 20
SIZE = 4 * MiB
NUMBERS = count()
BENCH = Path(__file__).parents[2] / "bench"

QEMU = pytest.mark.needs("qemu-storage-daemon", "qemu-nbd", "setpriv", libraries=["nbd"])
XFS = pytest.mark.privileged("losetup", "mount", "mkfs.xfs")
BTRFS = pytest.mark.privileged("losetup", "mount", "mkfs.btrfs")
CEPH = pytest.mark.needs("ceph-mon", "ceph-osd", "monmaptool", "setpriv", libraries=["rados", "rbd"])
NBDKIT = pytest.mark.needs("nbdkit", "setpriv", libraries=["nbd"])

INTERNAL, INTERNAL_EXTENDED, OVERLAY, OVERLAY_EXTENDED = qcow2_subjects()
# All whose snapshots last, with the largest number of extents as which five scattered blocks may be listed (0: they
# cannot list what changed).
LASTING = [
    pytest.param((INTERNAL, 0), marks=QEMU, id=INTERNAL.name),
    pytest.param((INTERNAL_EXTENDED, 0), marks=QEMU, id=INTERNAL_EXTENDED.name),
    pytest.param((OVERLAY, 3), marks=QEMU, id=OVERLAY.name),
    pytest.param((OVERLAY_EXTENDED, 4), marks=QEMU, id=OVERLAY_EXTENDED.name),
    pytest.param((XfsReflink(320 * MiB), 0), marks=XFS, id="XFS reflink"),
    pytest.param((Btrfs(160 * MiB), 4), marks=BTRFS, id="btrfs"),
    pytest.param((Rbd(512 * MiB), 4), marks=CEPH, id="Ceph RBD"),
]


@dataclass
class Running:
    """A peer that runs."""

    peer: Subject
    folder: Path
    extents: int
    """The largest number of extents as which five scattered blocks may be listed."""

    @contextmanager
    def disk(self) -> Iterator[Disk]:
        with closing(self.peer.create(self.folder, f"disk{next(NUMBERS)}", SIZE)) as disk:
            yield disk


@contextmanager
def started(peer: Subject, folder: Path, extents: int = 0) -> Iterator[Running]:
    """Starts a peer; nothing of it is left afterwards."""
    assert not peer.why_missing()
    assert "flush" in peer.settings
    try:
        with peer.running(folder):
            yield Running(peer, folder, extents)
    finally:
        assert not leftovers(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where peers run: on a disk that nobody else flushes, if we may have one."""
    folder = tmp_path_factory.mktemp("place")
    if lacking_for_mounts({"mkfs.ext4": "e2fsprogs"}):
        yield folder
        return
    with mounted(folder, 1024 * MiB, ["mkfs.ext4", "-q", "-F", "-E", "nodiscard"], "noatime,nodiscard") as mount:
        yield mount


@pytest.fixture(scope="module", params=LASTING)
def running(request: pytest.FixtureRequest, place: Path) -> Iterator[Running]:
    peer, extents = request.param
    folder = place / peer.name.replace(" ", "-")
    folder.mkdir()
    with started(peer, folder, extents) as result:
        yield result


class Model:
    """A disk beside the bytes that it must hold."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.random = random.Random(20240229)
        self.now = bytearray(SIZE)
        self.snapshots: dict[str, bytes] = {}

    def write(self, offset: int, length: int = BLOCK) -> None:
        data = self.random.randbytes(length)
        self.disk.pwrite(data, offset)
        self.now[offset : offset + length] = data

    def snapshot(self, name: str) -> None:
        self.disk.snapshot(name)
        self.snapshots[name] = bytes(self.now)

    def delete(self, name: str) -> None:
        self.disk.delete(name)
        del self.snapshots[name]

    def check(self) -> None:
        """The disk and all of its snapshots are what they were."""
        assert whole(self.disk) == self.now
        for name, data in self.snapshots.items():
            view = self.disk.open_snapshot(name)
            assert whole(view) == data, name
            view.close()


def whole(disk: Disk) -> bytearray:
    result = bytearray(SIZE)
    for offset in range(0, SIZE, MiB):
        disk.pread_into(memoryview(result)[offset : offset + MiB], offset)
    return result


def leftovers(folder: Path) -> list[str]:
    """What a peer that ran in `folder` might leave behind: processes of ours, mounts, loop devices."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children(os.getpid())]
    return [line for line in [*mounts, *commands] if str(folder) in line] + loops(folder)


def loops(folder: Path) -> list[str]:
    """The files in `folder` that loop devices use."""
    files = []
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it has just ended
            files.append(device.read_text())
    return [file for file in files if file.startswith(str(folder))]


def children(pid: int) -> list[int]:
    """The processes that the first thread of a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def flushes(folder: Path) -> int:
    """How often the disk below a folder was told to make durable what it has."""
    device = os.stat(folder).st_dev
    return int(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()[15])


def test_a_peer_keeps_what_its_snapshots_hold(running: Running) -> None:
    with running.disk() as disk:
        model = Model(disk)
        for offset in range(0, SIZE, MiB):
            model.write(offset, MiB)
        model.snapshot("first")
        for block in (0, 1, 17, 500, 1023):
            model.write(block * BLOCK)
        model.snapshot("second")  # nothing was flushed before: what was written belongs to it all the same
        for block in (1, 2):
            model.write(block * BLOCK)
        disk.flush()
        model.snapshot("third")
        model.write(18 * BLOCK)
        model.check()
        if running.extents:
            assert 1 < disk.changed("first", "second") <= running.extents
            assert disk.changed("second", "third") == 1
        else:
            with pytest.raises(NotOffered):
                disk.changed("first", "second")
        for name in ("second", "third", "first"):
            model.delete(name)
            model.check()
        model.snapshot("last")
        model.write(0)
        model.check()


@pytest.mark.privileged("losetup", "mount", "mkfs.ext4")
def test_what_a_peer_says_is_durable_ended_in_a_barrier(running: Running) -> None:
    def reaches_the_disk(step: Callable[[], None]) -> None:
        before = flushes(running.folder)
        step()
        assert flushes(running.folder) > before

    with running.disk() as disk:
        for number in range(3):
            block = bytes([number + 1]) * BLOCK
            for end in (disk.flush, lambda name=str(number): disk.snapshot(name)):
                disk.pwrite(block, number * BLOCK)
                reaches_the_disk(end)
        for name in ("1", "2", "0"):
            reaches_the_disk(lambda name=name: disk.delete(name))


@pytest.mark.parametrize("peer", [*LASTING, pytest.param((NbdkitCow(), 0), marks=NBDKIT, id="nbdkit cow")])
def test_an_interrupted_run_leaves_nothing_behind(peer: tuple[Subject, int], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), started(peer[0], tmp_path) as running, running.disk() as disk:
        disk.snapshot("held")
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", [pytest.param("qcow2 internal", marks=QEMU), pytest.param("XFS reflink", marks=XFS)])
def test_daemons_and_mounts_end_with_a_run_that_was_killed(name: str, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from subjects.field import all_subjects\n"
        "[peer] = [each for each in all_subjects() if each.name == sys.argv[2]]\n"
        "with peer.running(Path(sys.argv[1])): print('running', flush=True); time.sleep(600)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, name],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{BENCH}:{os.environ.get('PYTHONPATH', '')}"},
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"running\n"
        daemons = children(run.pid)
        assert daemons or loops(tmp_path)
        run.send_signal(signal.SIGKILL)
    while any(map(is_alive, daemons)) or loops(tmp_path):
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@NBDKIT
def test_nbdkit_keeps_its_one_snapshot_and_offers_no_more(tmp_path: Path) -> None:
    with started(NbdkitCow(), tmp_path) as running, running.disk() as disk:
        model = Model(disk)
        model.write(0, MiB)
        disk.flush()
        model.snapshot("only")
        model.write(5 * BLOCK)
        model.check()
        for refused in (disk.flush, lambda: disk.snapshot("more"), lambda: disk.delete("only")):
            with pytest.raises(NotOffered):
                refused()
