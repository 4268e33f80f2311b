"""btrfs: a disk is a file in a subvolume, a snapshot is a snapshot of that subvolume. All by ioctl, in process."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subjects.daemon import run
from subjects.loop_mount import lacking_for_mounts, mounted
from subjects.raw_file import RawDisk
from subjects.reflink import FileView
from subjects.subject import Disk, Subject

# linux/btrfs.h
SUBVOL_CREATE = 0x5000940E
SNAP_DESTROY = 0x5000940F
SNAP_CREATE_V2 = 0x50009417
INO_LOOKUP = 0xD0009412
WAIT_SYNC = 0x40089416
START_SYNC = 0x80089418
SEND = 0x40489426
READ_ONLY = 1 << 1
NO_FILE_DATA = 1 << 0
FIRST_FREE_OBJECTID = 256
UPDATE_EXTENT = 22  # the command of a stream without data that names a changed extent
NAME = struct.Struct("<q4088s")  # fd, name
NAME_V2 = struct.Struct("<qQQ32x4040s")  # fd, transaction, flags, name
LOOKUP = struct.Struct("<QQ4080s")  # tree, object, name
SEND_TO = struct.Struct("<qQQQQ32x")  # fd, clone sources, their address, parent, flags
STREAM_HEADER = 17  # bytes: magic and version
COMMAND = struct.Struct("<IHI")  # length of what follows, command, checksum

PIPE = 1 << 20  # bytes between the kernel and us; the usual 64 KiB make it wait more often

FILE = "disk"  # the one file of a subvolume
GiB = 1 << 30


def control(descriptor: int, request: int, arguments: bytes) -> bytearray:
    """An ioctl, whose arguments may be longer than Python copies by itself; what the kernel left in them."""
    result = bytearray(arguments)
    fcntl.ioctl(descriptor, request, result)
    return result


def open_folder(path: Path) -> int:
    """A descriptor of a folder."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class BtrfsDisk(RawDisk):
    """A file in a subvolume, and beside it a read-only subvolume for each snapshot."""

    def __init__(self, mount: Path, name: str, size: int) -> None:
        self._mount = mount
        self._name = name
        self._snapshots: set[str] = set()
        self._folder = open_folder(mount)
        control(self._folder, SUBVOL_CREATE, NAME.pack(0, name.encode()))
        self._subvolume = open_folder(mount / name)
        super().__init__(mount / name / FILE, size)

    def snapshot(self, name: str) -> None:
        """The ioctl writes what is dirty back, and commits the transaction: durable on return."""
        arguments = NAME_V2.pack(self._subvolume, 0, READ_ONLY, self._inner(name).encode())
        control(self._folder, SNAP_CREATE_V2, arguments)
        self._snapshots.add(name)

    def open_snapshot(self, name: str) -> Disk:
        return FileView(self._mount / self._inner(name) / FILE)

    def delete(self, name: str) -> None:
        """The ioctl commits nothing; that is asked for, as `btrfs subvolume delete --commit-after` does."""
        control(self._folder, SNAP_DESTROY, NAME.pack(0, self._inner(name).encode()))
        self._snapshots.remove(name)
        self._commit()

    def changed(self, base: str, target: str) -> int:
        """The extents in the stream of `btrfs send --no-data -p`."""
        older, newer = open_folder(self._mount / self._inner(base)), open_folder(self._mount / self._inner(target))
        try:
            stream = send(newer, tree_id(older))
        finally:
            os.close(older)
            os.close(newer)
        return sum(command == UPDATE_EXTENT for command in commands(stream))

    def close(self) -> None:
        super().close()
        os.close(self._subvolume)
        for subvolume in (self._name, *map(self._inner, self._snapshots)):
            control(self._folder, SNAP_DESTROY, NAME.pack(0, subvolume.encode()))
        self._commit()
        os.close(self._folder)

    def _commit(self) -> None:
        transaction = control(self._folder, START_SYNC, bytes(8))
        control(self._folder, WAIT_SYNC, transaction)

    def _inner(self, name: str) -> str:
        return f"{self._name}@{name}"


def tree_id(subvolume: int) -> int:
    """The number of a subvolume's tree."""
    tree, _, _ = LOOKUP.unpack(control(subvolume, INO_LOOKUP, LOOKUP.pack(0, FIRST_FREE_OBJECTID, b"")))
    return int(tree)


def send(subvolume: int, parent: int) -> bytes:
    """The stream, without data, that leads from the parent to a subvolume."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    parts: list[bytes] = []
    with open(reader, "rb") as pipe:
        collector = threading.Thread(target=lambda: parts.append(pipe.read()))
        collector.start()
        try:
            control(subvolume, SEND, SEND_TO.pack(writer, 0, 0, parent, NO_FILE_DATA))
        finally:
            os.close(writer)
            collector.join()
    return parts[0]


def commands(stream: bytes) -> Iterator[int]:
    """The numbers of the commands in a stream."""
    position = STREAM_HEADER
    while position < len(stream):
        length, command, _ = COMMAND.unpack_from(stream, position)
        position += COMMAND.size + length
        yield command


class Btrfs(Subject):
    """btrfs in a loop-mounted image that is written in full before."""

    name = "btrfs"

    def __init__(self, room: int = 4 * GiB) -> None:
        """`room` bytes for all disks; no less than 128 MiB."""
        self._room = room

    @property
    def settings(self) -> str:
        version = run("mkfs.btrfs", "--version").split()[-1]
        return (
            f"btrfs-progs {version}, one copy of its metadata, in a fully written image on a loop device with direct "
            "I/O; snapshots of a subvolume by ioctl, which commits; flush = fdatasync"
        )

    def why_missing(self) -> str:
        return lacking_for_mounts({"mkfs.btrfs": "btrfs-progs"})

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        make = ["mkfs.btrfs", "-q", "-K", "-m", "single", "-d", "single"]
        with mounted(folder, self._room, make, "noatime,nodiscard") as self._mount:
            yield

    def create(self, folder: Path, name: str, size: int) -> Disk:
        return BtrfsDisk(self._mount, name, size)
