"""Ceph RBD: images in a cluster of one node, through librbd in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from subjects.ceph import PROPOSE_INTERVAL, check, ffi, lacking_for_cluster, libraries, pool, running_cluster
from subjects.daemon import run
from subjects.subject import Disk, Subject

FEATURES = 0b111101  # layering, exclusive-lock, object-map, fast-diff, deep-flatten: what Ceph itself chooses
IMAGE = b"image"
GiB = 1 << 30


class RbdView(Disk):
    """An open image, or a snapshot of it."""

    def __init__(self, pool: Any, snapshot: str = "") -> None:
        _, self._rbd = libraries()
        self._pool = pool
        image = ffi.new("rbd_image_t *")
        open_image = self._rbd.rbd_open_read_only if snapshot else self._rbd.rbd_open
        check(open_image(pool, IMAGE, image, snapshot.encode() or ffi.NULL), "rbd_open")
        self._image = image[0]

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        check(self._rbd.rbd_read(self._image, offset, len(buffer), ffi.from_buffer(buffer)), "rbd_read")

    def differing(self, since: str) -> list[tuple[int, int]]:
        """(offset, length) of each extent that differs from an older snapshot."""
        extents: list[tuple[int, int]] = []
        size = ffi.new("uint64_t *")
        check(self._rbd.rbd_get_size(self._image, size), "rbd_get_size")

        @ffi.callback("rbd_extent_t")
        def keep(offset: int, length: int, _exists: int, _data: Any) -> int:
            extents.append((offset, length))
            return 0

        with_parent, whole_object = 0, 0  # exact extents, not whole objects of 4 MiB
        check(
            self._rbd.rbd_diff_iterate2(
                self._image, since.encode(), 0, size[0], with_parent, whole_object, keep, ffi.NULL
            ),
            "rbd_diff_iterate2",
        )
        return extents

    def close(self) -> None:
        check(self._rbd.rbd_close(self._image), "rbd_close")


class RbdDisk(RbdView):
    """An image that is written to, in a pool of its own."""

    def __init__(self, cluster: Any, name: str, size: int) -> None:
        _, rbd = libraries()
        with ExitStack() as stack:
            own = stack.enter_context(pool(cluster, name))
            check(rbd.rbd_create2(own, IMAGE, size, FEATURES, ffi.new("int *", 0)), "rbd_create")
            super().__init__(own)
            self._stack = stack.pop_all()
        self.flush()  # until the first one, librbd holds back no write

    def pwrite(self, data: bytes, offset: int) -> None:
        check(self._rbd.rbd_write(self._image, offset, len(data), ffi.from_buffer(data)), "rbd_write")

    def flush(self) -> None:
        """The object store acknowledges what it has committed: its log ends in fdatasync of its file."""
        check(self._rbd.rbd_flush(self._image), "rbd_flush")

    def snapshot(self, name: str) -> None:
        """librbd flushes what it holds back before it takes one."""
        check(self._rbd.rbd_snap_create(self._image, name.encode()), "rbd_snap_create")

    def open_snapshot(self, name: str) -> Disk:
        return RbdView(self._pool, name)

    def delete(self, name: str) -> None:
        check(self._rbd.rbd_snap_remove(self._image, name.encode()), "rbd_snap_remove")

    def changed(self, base: str, target: str) -> int:
        newer = RbdView(self._pool, target)
        try:
            return len(newer.differing(base))
        finally:
            newer.close()

    def close(self) -> None:
        super().close()
        self._stack.close()


class Rbd(Subject):
    """RBD images on an object store in a file that is written in full before."""

    name = "Ceph RBD"
    starts_at_once = False

    def __init__(self, room: int = 4 * GiB) -> None:
        """`room` bytes for all disks and Ceph's own data; no less than 1 GiB."""
        self._room = room

    @property
    def settings(self) -> str:
        version = run("ceph-osd", "--version").split()[2]
        return (
            f"Ceph {version}, one monitor and one bluestore OSD in a fully written file, one copy, loopback, no "
            f"authentication, paxos_propose_interval {PROPOSE_INTERVAL} (Ceph's own is 1 s, and a snapshot waits for "
            "it); librbd in process; flush = rbd_flush"
        )

    def why_missing(self) -> str:
        return lacking_for_cluster()

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        with running_cluster(folder, self._room) as self._cluster:
            yield

    def create(self, folder: Path, name: str, size: int) -> Disk:
        return RbdDisk(self._cluster, name, size)
