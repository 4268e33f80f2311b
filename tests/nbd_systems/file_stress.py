"""Files that change all the time, and what is known of them: which are flushed and untouched, and what they hold.

Each thread has a folder of its own and changes it at random: writes, appends, truncates, punches holes, renames,
deletes. A path is known while nobody changes it and all that was done to it is flushed. What is known before and after
a snapshot, without a change in between, must be in the snapshot just so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FILES = 40  # of each thread
LENGTH_MAX = 256 << 10
KEEP_SIZE, PUNCH_HOLE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Known:
    """A path's version, which every change raises, and its digest; None: there is no such file."""

    version: int
    digest: str | None


def digest(data: bytes | bytearray) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass
class Folder:
    """What one thread changes. Paths are relative to the root of the file system."""

    root: Path
    name: str
    seed: int
    known: dict[str, Known | None] = field(default_factory=dict)  # None: somebody is changing it
    data: dict[str, bytearray] = field(default_factory=dict)
    changes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.folder = self.root / self.name
        self.folder.mkdir()
        self.sync_folder()

    def step(self) -> None:
        """One change, flushed at its end."""
        path = f"{self.name}/{self.chance.randrange(FILES)}"
        if path not in self.data:
            self.create(path)
            return
        change = self.chance.choice(
            (self.write, self.write, self.append, self.truncate, self.punch, self.move, self.remove)
        )
        change(path)

    @contextmanager
    def changing(self, *paths: str) -> Iterator[None]:
        """These paths are unknown until the block has ended."""
        with self.lock:
            for path in paths:
                self.known[path] = None
        yield
        self.changes += 1
        with self.lock:
            for path in paths:
                held = self.data.get(path)
                self.known[path] = Known(self.changes, None if held is None else digest(held))

    def create(self, path: str) -> None:
        with self.changing(path):
            data = bytearray(self.random_bytes())
            with open(self.root / path, "xb", buffering=0) as file:
                file.write(data)
                os.fsync(file.fileno())
            self.sync_folder()
            self.data[path] = data

    def write(self, path: str) -> None:
        with self.changing(path), open(self.root / path, "r+b", buffering=0) as file:
            held = self.data[path]
            for _ in range(self.chance.randrange(1, 5)):
                at, piece = self.chance.randrange(len(held) + 1), self.random_bytes(16 << 10)
                file.seek(at)
                file.write(piece)
                held[at : at + len(piece)] = piece
            os.fsync(file.fileno())

    def append(self, path: str) -> None:
        piece = self.random_bytes()
        if len(self.data[path]) > 4 * LENGTH_MAX:
            self.truncate(path)
            return
        with self.changing(path), open(self.root / path, "ab", buffering=0) as file:
            file.write(piece)
            os.fsync(file.fileno())
            self.data[path] += piece

    def truncate(self, path: str) -> None:
        held = self.data[path]
        length = self.chance.randrange(len(held) + 4096)
        with self.changing(path), open(self.root / path, "r+b", buffering=0) as file:
            file.truncate(length)
            os.fsync(file.fileno())
            self.data[path] = held[:length].ljust(length, b"\0")

    def punch(self, path: str) -> None:
        held = self.data[path]
        at, length = self.chance.randrange(len(held) + 1), self.chance.randrange(1, 64 << 10)
        with self.changing(path), open(self.root / path, "r+b", buffering=0) as file:
            wanted = (ctypes.c_int(file.fileno()), KEEP_SIZE | PUNCH_HOLE, ctypes.c_long(at), ctypes.c_long(length))
            assert LIBC.fallocate(*wanted) == 0, os.strerror(ctypes.get_errno())
            os.fsync(file.fileno())
            end = min(at + length, len(held))
            held[at:end] = bytes(max(end - at, 0))

    def move(self, path: str) -> None:
        other = f"{self.name}/{self.chance.randrange(FILES)}"
        if other == path:
            return
        with self.changing(path, other):
            os.rename(self.root / path, self.root / other)
            self.sync_folder()
            self.data[other] = self.data.pop(path)

    def remove(self, path: str) -> None:
        with self.changing(path):
            os.unlink(self.root / path)
            self.sync_folder()
            del self.data[path]

    def random_bytes(self, length_max: int = LENGTH_MAX) -> bytes:
        return self.chance.randbytes(self.chance.randrange(length_max))

    def sync_folder(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class Stress:
    """Threads that change files below `root` from `start` to `stop`."""

    def __init__(self, root: Path, threads: int, seed: int) -> None:
        self.folders = [Folder(root, f"folder{number}", seed + number) for number in range(threads)]
        self.failure: BaseException | None = None
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._change, args=(folder,)) for folder in self.folders]

    def _change(self, folder: Folder) -> None:
        try:
            while not self._end.is_set():
                folder.step()
        except BaseException as error:
            self.failure = error

    @contextmanager
    def running(self) -> Iterator[Stress]:
        """They run until the block ends; what failed in them is raised."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()
        if self.failure is not None:
            raise self.failure

    @property
    def changes(self) -> int:
        return sum(folder.changes for folder in self.folders)

    def known(self) -> dict[str, Known]:
        """All paths of which it is known, now, what they hold."""
        found = {}
        for folder in self.folders:
            with folder.lock:
                found |= {path: known for path, known in folder.known.items() if known is not None}
        return found


def unchanged(before: dict[str, Known], after: dict[str, Known]) -> dict[str, str | None]:
    """The digests of what nobody touched in between."""
    return {path: known.digest for path, known in before.items() if after.get(path) == known}


def differences(root: Path, expected: dict[str, str | None]) -> list[str]:
    """What is not as it must be."""
    found = []
    for path, wanted in expected.items():
        try:
            held = digest((root / path).read_bytes())
        except FileNotFoundError:
            held = None
        if held != wanted:
            found.append(f"{path}: {held} instead of {wanted}")
    return found
