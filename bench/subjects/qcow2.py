"""qcow2, QEMU's image format: internal snapshots (in the image) and overlays (a new file on top of the old one).

One qemu-storage-daemon for all disks of a subject: requests go through its NBD server by libnbd, snapshots through QMP.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path

from subjects import nbd
from subjects.daemon import daemon, lacking, listens, run, short_path
from subjects.nbd import Connection, View
from subjects.qmp import Monitor
from subjects.subject import Disk, NotOffered, Subject

PROGRAMS = {
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-nbd": "qemu-utils",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
}
DEPTH = "qemu:allocation-depth"  # for each extent: 1 if it is stored in the layer itself, 2 in the one below, ...
KiB = 1 << 10
MiB = 1 << 20

_numbers = count()


@dataclass(frozen=True)
class Layout:
    """How an image is laid out."""

    cluster: int
    extended: bool  # L2 entries with a bit for each 32nd of a cluster: a write then copies no whole cluster

    def __str__(self) -> str:
        return f"{self.cluster // KiB} KiB clusters" + (", extended L2 (4 KiB subclusters)" if self.extended else "")

    def caches(self, size: int) -> dict[str, int]:
        """Metadata caches that hold all of an image's map, so that no request waits for a piece of it."""
        entries = size // self.cluster * (16 if self.extended else 8)
        return {"l2-cache-size": max(2 * entries, MiB), "refcount-cache-size": max(entries, MiB)}


PLAIN = Layout(64 * KiB, extended=False)
EXTENDED = Layout(128 * KiB, extended=True)  # 32 subclusters of 4 KiB, the size of the rows' writes


class Daemon:
    """A running qemu-storage-daemon."""

    def __init__(self, monitor: Monitor, socket: Path, layout: Layout, aio: str) -> None:
        self.monitor = monitor
        self.socket = socket
        self.layout = layout
        self.aio = aio

    def add_image(self, path: Path, size: int, backing: Path | None = None) -> str:
        """Creates an image and opens it; the name of its node. An overlay is not yet connected with what it covers."""
        node = f"node{next(_numbers)}"
        path.touch(exist_ok=False)
        self.monitor("blockdev-add", driver="file", node_name=f"{node}.file", filename=str(path), aio=self.aio)
        options: dict[str, object] = {
            "driver": "qcow2",
            "file": f"{node}.file",
            "size": size,
            "cluster-size": self.layout.cluster,
            "extended-l2": self.layout.extended,
        }
        below: dict[str, object] = {}
        if backing is not None:
            options |= {"backing-file": str(backing), "backing-fmt": "qcow2"}
            below = {"backing": None}
        self.monitor.job("blockdev-create", options=options)
        caches = self.layout.caches(size)
        self.monitor("blockdev-add", driver="qcow2", node_name=node, file=f"{node}.file", **caches, **below)
        return node

    def remove_image(self, node: str, path: Path) -> None:
        """Closes an image and removes its file."""
        self.monitor("blockdev-del", node_name=node)
        self.monitor("blockdev-del", node_name=f"{node}.file")
        path.unlink()

    @contextmanager
    def exported(self, node: str, context: str = "", *, writable: bool = False) -> Iterator[Connection]:
        """A connection to a node. What is exported writable stays with the newest layer when overlays come on top."""
        export = f"export{next(_numbers)}"
        self.monitor(
            "block-export-add", type="nbd", id=export, node_name=node, name=export, writable=writable,
            allocation_depth=context == DEPTH,
        )  # fmt: skip
        try:
            with closing(Connection(self.socket, export, context)) as connection:
                yield connection
        finally:
            self.monitor.remove_export(export)


class ImageDisk(Disk):
    """An image that is open in the daemon, and a connection to it: what both kinds of snapshots have in common."""

    def __init__(self, daemon: Daemon, path: Path, size: int) -> None:
        self.daemon = daemon
        self.size = size
        self.path = path
        self.node = daemon.add_image(path, size)
        self._stack = ExitStack()
        self.connection = self._stack.enter_context(daemon.exported(self.node, writable=True))

    def pwrite(self, data: bytes, offset: int) -> None:
        self.connection.pwrite(data, offset)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        self.connection.pread_into(buffer, offset)

    def flush(self) -> None:
        self.connection.flush()

    def close(self) -> None:
        self._stack.close()
        self.daemon.remove_image(self.node, self.path)


class InternalDisk(ImageDisk):
    """Snapshots in the image: QEMU copies the top of the map and adds one to the reference count of every cluster.

    It ends each of these steps with fdatasync of the image, which holds the data as well.
    """

    def snapshot(self, name: str) -> None:
        self.daemon.monitor("blockdev-snapshot-internal-sync", device=self.node, name=name)

    def open_snapshot(self, name: str) -> Disk:
        """The daemon cannot open one, qemu-nbd can: a process for each, which is there before anything is measured."""
        return View(self._served(name))

    @contextmanager
    def _served(self, name: str) -> Iterator[Connection]:
        caches = "".join(f",{key}={value}" for key, value in self.daemon.layout.caches(self.size).items())
        # What a snapshot holds does not change, so another process may read it although the daemon has the image open.
        file = f"file.driver=file,file.filename={str(self.path).replace(',', ',,')},file.locking=off"
        image = ["--read-only", "--image-opts", f"driver=qcow2,{file}{caches}", f"--load-snapshot=snapshot.name={name}"]
        with short_path("nbd") as socket:
            argv, log = ["qemu-nbd", "--persistent", f"--socket={socket}", *image], socket.with_suffix(".log")
            with daemon(argv, log, lambda: listens(socket)), closing(Connection(socket)) as connection:
                yield connection

    def delete(self, name: str) -> None:
        self.daemon.monitor("blockdev-snapshot-delete-internal-sync", device=self.node, name=name)

    def changed(self, base: str, target: str) -> int:
        raise NotOffered("qcow2 knows no difference between internal snapshots")


@dataclass
class Layer:
    """One file of a chain."""

    node: str
    path: Path


class OverlayDisk(ImageDisk):
    """Snapshots by overlays: a new file takes what is written from now on, the one below it is the snapshot."""

    def __init__(self, daemon: Daemon, path: Path, size: int) -> None:
        super().__init__(daemon, path, size)
        self._layers = [Layer(self.node, path)]  # the oldest first; the last one is written to
        self._names: dict[str, Layer] = {}
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def snapshot(self, name: str) -> None:
        """The daemon ends its work on both files with fdatasync; that the new one has a name is left to us."""
        head = self._layers[-1]
        path = self.path.with_name(f"{self.path.name}.{next(_numbers)}")
        node = self.daemon.add_image(path, self.size, head.path)
        self.daemon.monitor("blockdev-snapshot", node=head.node, overlay=node)
        os.fsync(self._folder)
        self._layers.append(Layer(node, path))
        self._names[name] = head

    def open_snapshot(self, name: str) -> Disk:
        return View(self.daemon.exported(self._names[name].node))

    def delete(self, name: str) -> None:
        """Merges the layer above into the snapshot's own: what was written after it is copied, never the whole disk."""
        below, head = self._names.pop(name), self._layers[-1]
        index = self._layers.index(below)
        above = self._layers.pop(index + 1)
        self.daemon.monitor.job(
            "block-commit", device=head.node, top_node=above.node, base_node=below.node, auto_dismiss=False
        )
        self._names = {each: below if layer is above else layer for each, layer in self._names.items()}
        with self.daemon.exported(below.node) as merged:
            merged.flush()
        if above is not head:  # the next one above names another file in its header now
            with self._layers[index + 1].path.open("rb") as file:
                os.fdatasync(file.fileno())
        self.daemon.remove_image(above.node, above.path)
        os.fsync(self._folder)

    def changed(self, base: str, target: str) -> int:
        """What is stored in a layer above that of `base`."""
        newer, older = (self._layers.index(self._names[name]) for name in (target, base))
        with self.daemon.exported(self._names[target].node, DEPTH) as connection:
            extents = connection.extents()
        return sum(differ for differ, _ in groupby(0 < depth <= newer - older for _, depth in extents))

    def close(self) -> None:
        self._stack.close()
        for layer in reversed(self._layers):
            self.daemon.remove_image(layer.node, layer.path)
        os.close(self._folder)


def fastest_aio(monitor: Monitor, folder: Path) -> str:
    """How the daemon reads and writes files: io_uring saves a change of threads, where it is allowed."""
    probe = folder / "probe"
    probe.touch()
    try:
        monitor("blockdev-add", driver="file", node_name="probe", filename=str(probe), aio="io_uring")
    except RuntimeError:
        return "threads"
    monitor("blockdev-del", node_name="probe")
    return "io_uring"


class Qcow2(Subject):
    """qcow2 with one kind of snapshots and one layout."""

    def __init__(self, kind: str, disk: type[ImageDisk], layout: Layout) -> None:
        self.name = f"qcow2 {kind}" + (" extended" if layout.extended else "")
        self._disk = disk
        self._layout = layout
        self._aio = "threads or io_uring"

    @property
    def settings(self) -> str:
        version = run("qemu-img", "--version").split()[2]
        return (
            f"QEMU {version}, {self._layout}, all of its map cached, page cache, aio={self._aio}; one "
            "qemu-storage-daemon, NBD on a Unix socket by libnbd, snapshots by QMP; flush = fdatasync of the image"
        )

    def why_missing(self) -> str:
        return ", ".join(lacking(PROGRAMS) + nbd.lacking())

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        with ExitStack() as stack:
            control, socket = (stack.enter_context(short_path(name)) for name in ("monitor", "nbd"))
            argv = [
                "qemu-storage-daemon",
                f"--chardev=socket,id=control,path={control},server=on,wait=off",
                "--monitor=control",
                f"--nbd-server=addr.type=unix,addr.path={socket},max-connections=0",
            ]
            stack.enter_context(daemon(argv, folder / "log", lambda: listens(control) and listens(socket)))
            monitor = stack.enter_context(closing(Monitor(control)))
            self._aio = fastest_aio(monitor, folder)
            self._daemon = Daemon(monitor, socket, self._layout, self._aio)
            yield

    def create(self, folder: Path, name: str, size: int) -> Disk:
        return self._disk(self._daemon, folder / name, size)


def qcow2_subjects() -> list[Subject]:
    """Both kinds of snapshots, in both layouts."""
    return [
        Qcow2("internal", InternalDisk, PLAIN),
        Qcow2("internal", InternalDisk, EXTENDED),
        Qcow2("overlay", OverlayDisk, PLAIN),
        Qcow2("overlay", OverlayDisk, EXTENDED),
    ]
