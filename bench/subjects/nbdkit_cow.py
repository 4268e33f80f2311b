"""nbdkit's cow filter: what is written goes to a temporary overlay that is lost when nbdkit ends.

So a disk has one snapshot, the file below the filter, and after it nothing is durable. Both servers of a disk are there
from the start: a plain one for the time before the snapshot and to read it, and one with the filter for the time after.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from pathlib import Path

from subjects import nbd
from subjects.daemon import daemon, lacking, listens, run, short_path
from subjects.nbd import Connection, View
from subjects.subject import Disk, NotOffered, Subject

BLOCK = 4096  # the smallest that the filter takes, and the size of the rows' writes


class CowDisk(Disk):
    """A file, a server without the filter and one with it."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        folder.mkdir()
        disk = folder / "disk"
        with disk.open("xb") as file:
            file.truncate(size)
        self._stack = ExitStack()
        self._sockets: dict[str, Path] = {}
        self._taken = False
        try:
            self._head = self._plain = self._served("plain", ["file", str(disk)])
            self._filtered = self._served("cow", ["--filter=cow", "file", str(disk), f"cow-block-size={BLOCK}"])
        except BaseException:
            self.close()
            raise

    def _served(self, kind: str, words: list[str]) -> Connection:
        """A connection to a server of its own; TMPDIR is where the filter's file lies."""
        socket = self._sockets[kind] = self._stack.enter_context(short_path(kind))
        argv = ["env", f"TMPDIR={self._folder}", "nbdkit", "--foreground", f"--unix={socket}", *words]
        self._stack.enter_context(daemon(argv, self._folder / f"{kind}.log", lambda: listens(socket)))
        return self._stack.enter_context(closing(Connection(socket)))

    def pwrite(self, data: bytes, offset: int) -> None:
        self._head.pwrite(data, offset)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        self._head.pread_into(buffer, offset)

    def flush(self) -> None:
        if self._taken:
            raise NotOffered("the filter ignores flushes: nothing is durable after its one snapshot")
        self._plain.flush()

    def snapshot(self, name: str) -> None:
        """The file below is durable, and is not written to from now on."""
        if self._taken:
            raise NotOffered("it has one snapshot, made when the filter starts")
        self._plain.flush()
        self._head, self._taken = self._filtered, True

    def open_snapshot(self, name: str) -> Disk:
        return View(closing(Connection(self._sockets["plain"])))

    def delete(self, name: str) -> None:
        raise NotOffered("its one snapshot is the file below the filter")

    def changed(self, base: str, target: str) -> int:
        raise NotOffered("it has one snapshot")

    def close(self) -> None:
        self._stack.close()
        shutil.rmtree(self._folder)


class NbdkitCow(Subject):
    """Two nbdkit servers for each disk."""

    name = "nbdkit cow"

    @property
    def settings(self) -> str:
        version = run("nbdkit", "--version").split()[1]
        return (
            f"nbdkit {version}, file plugin, cow-block-size {BLOCK}, page cache, NBD on a Unix socket by libnbd; one "
            "snapshot, what follows is temporary and has no flush"
        )

    def why_missing(self) -> str:
        return ", ".join(lacking({"nbdkit": "nbdkit", "setpriv": "util-linux"}) + nbd.lacking())

    def create(self, folder: Path, name: str, size: int) -> Disk:
        return CowDisk(folder / name, size)
