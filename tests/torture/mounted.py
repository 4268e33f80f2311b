"""File systems on loop devices, in a namespace of their own: however its process ends, nothing is left behind.

A harness runs in a child with mounts and process numbers of its own. When the child or its parent dies, the kernel
kills every process in there, takes the mounts down with them, and each loop device clears itself at its last close.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from row import Tally, harness_parser, tell

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_REC, MS_PRIVATE, MNT_DETACH = 1 << 14, 1 << 18, 2
PR_SET_PDEATHSIG = 1
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
LOOP_MAJOR = 7
BLKFLSBUF = 0x1261
FS_IOC_SHUTDOWN, NOLOGFLUSH = 0x8004587D, 2
MIB = 1 << 20
PATIENCE_SECONDS = 10


@dataclass(frozen=True)
class FileSystem:
    """`size`: the smallest disk that it takes."""

    name: str
    mkfs: tuple[str, ...]
    size: int
    options: str = ""


# Made as small as they go: no time is lost with logs and tables that are never reached.
EXT4 = FileSystem("ext4", ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-J", "size=4"), 48 * MIB)
XFS = FileSystem("xfs", ("mkfs.xfs", "-q", "-f", "-K"), 300 * MIB)
BTRFS = FileSystem("btrfs", ("mkfs.btrfs", "-q", "-f", "-K", "-m", "single"), 128 * MIB)


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def in_own_namespace(work: Callable[[Path], int]) -> int:
    """The exit status of `work`, which gets an empty folder in memory, in a child that takes along all it made."""
    folder = tempfile.mkdtemp(prefix="cowengine-torture-")
    try:
        checked(LIBC.unshare(CLONE_NEWPID), "unshare")  # for children
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            run_and_exit(work, folder)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except BaseException:  # Ctrl-C, too
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
    finally:
        os.rmdir(folder)


def run_and_exit(work: Callable[[Path], int], folder: str) -> NoReturn:
    """The life of the child: process 1 of its namespace, with which all others die."""
    status = 1
    try:
        checked(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
        checked(LIBC.unshare(CLONE_NEWNS), "unshare")
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount("torture", folder, "tmpfs")
        status = work(Path(folder))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def mount(source: str, place: str | Path, kind: str, flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), str(place).encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    checked(LIBC.mount(*arguments), f"mount {kind or 'private'} at {place}")


def unmount(place: str | Path) -> None:
    """Waits while a process that was killed still lets go of its files."""
    late = time.monotonic() + PATIENCE_SECONDS
    while LIBC.umount2(str(place).encode(), 0) != 0:
        if ctypes.get_errno() != errno.EBUSY or time.monotonic() > late:
            checked(-1, f"umount {place}, in which this process has open: {open_below(place)}")
        time.sleep(0.002)


def open_below(place: str | Path) -> list[str]:
    """What this process has open there: somebody leaks descriptors."""
    found = []
    for number in os.listdir("/proc/thread-self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/thread-self/fd/{number}"))
    return [path for path in found if path.startswith(f"{place}/")]


class Loop:
    """A loop device on a file; `path` is its node. It clears itself when this process and every mount let go of it."""

    def __init__(self, image: Path, nodes: Path) -> None:
        image_fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        # struct loop_config: the descriptor, block size 0 for the usual one, and loop_info64 with nothing but flags
        config = struct.pack("<II 40x IIII 176x 64x", image_fd, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR)
        try:
            while not self._take_a_free_one(nodes, config):
                pass
        finally:
            os.close(image_fd)

    def _take_a_free_one(self, nodes: Path, config: bytes) -> bool:
        """False if somebody else was faster."""
        with open("/dev/loop-control", "rb") as control:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        self.path = str(nodes / f"loop{number}")
        with suppress(FileExistsError):
            os.mknod(self.path, 0o600 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self.fd, LOOP_CONFIGURE, config)
            return True
        except OSError as error:
            os.close(self.fd)
            if error.errno != errno.EBUSY:
                raise
            return False

    def forget(self) -> None:
        """Drops what the system remembers of the device: it may have changed behind its back, or, after a power cut,
        have what never got there.
        """
        fcntl.ioctl(self.fd, BLKFLSBUF)

    def close(self) -> None:
        os.close(self.fd)


class Disk:
    """A file system on a loop device on an image: a file in memory, or one that somebody else serves."""

    def __init__(self, folder: Path, file_system: FileSystem, image: Path | None = None, made: bool = False) -> None:
        """`made`: there is a file system on the image."""
        self.file_system = file_system
        self.place = folder / f"at-{file_system.name}"
        self.place.mkdir(exist_ok=True)
        if image is None:
            image = folder / f"image-{file_system.name}"
            image.write_bytes(b"")
            os.truncate(image, file_system.size)
        self.image = image
        self.loop = Loop(image, folder)
        self.mounted = False
        if not made:
            self.make()

    def make(self) -> None:
        command = [*self.file_system.mkfs, self.loop.path]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if run.returncode:
            raise OSError(f"{command[0]}: {run.stderr or run.stdout}")

    def mount(self) -> None:
        self.loop.forget()
        mount(self.loop.path, self.place, self.file_system.name, options=self.file_system.options)
        self.mounted = True

    def unmount(self) -> None:
        if self.mounted:
            unmount(self.place)
        self.mounted = False

    def power_cut(self) -> None:
        """The file system reaches its disk no more, and what waits in its log is lost. Mount it again to go on."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(fd)

    def close(self) -> None:
        """Also of a file system that is in use, which then goes with its last user."""
        if self.mounted:
            checked(LIBC.umount2(str(self.place).encode(), MNT_DETACH), "umount")
        self.loop.close()


@contextmanager
def disk(*arguments: Any, **options: Any) -> Iterator[Disk]:
    """A Disk that is gone behind the block."""
    made = Disk(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


# -- whether all this can be had --------------------------------------------------------------------------------------
def lacking(folder: Path, file_systems: Sequence[FileSystem], *programs: str) -> str:
    """Why not, or nothing: tries it."""
    wanted = [each.mkfs[0] for each in file_systems] + [*programs]
    missing = [program for program in wanted if shutil.which(program) is None]
    if missing:
        return f"no program {', '.join(missing)}"
    try:
        for file_system in file_systems:
            with disk(folder, file_system) as tried:
                tried.mount()
                (tried.place / "file").write_bytes(b"it works")
    except OSError as error:
        return str(error)
    return ""


def run_harness(work: Callable[[Path, int, float, bool], Tally], description: str, seconds: float, what: str) -> int:
    """The main program of a harness: runs it where it leaves nothing behind, tells what it found; the exit status.

    `work` gets an empty folder, the seed, for how many seconds, and whether a fault is to be planted.
    """
    parser = harness_parser(description, seconds)
    parser.add_argument("--planted", action="store_true", help="with a fault that has to be found")
    arguments = parser.parse_args()

    def run(folder: Path) -> int:
        return tell(work(folder, arguments.seed, arguments.seconds, arguments.planted), arguments, what)

    if os.geteuid() != 0:
        return tell(Tally(skipped="only root can mount"), arguments, what)
    try:
        return in_own_namespace(run)
    except OSError as error:
        return tell(Tally(skipped=str(error)), arguments, what)
