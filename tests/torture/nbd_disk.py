"""A disk served by nbdkit: it writes down what reaches it, and fails on demand. This file is also nbdkit's plugin.

As a plugin it keeps the disk in memory, in pages. Every change goes to a log, one entry each: `ENTRY`, then the data of
a write. A file named read, write or flush in the folder of faults makes such calls fail with EIO while it is there; it
holds the probability. nbdfuse makes a file of the disk, which a loop device can stand on, so that the kernel's own
file systems see real errors of a real block device.
"""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import nbdkit  # only within nbdkit
except ImportError:
    nbdkit = None

API_VERSION = 2
PAGE = 4096
ENTRY = struct.Struct("<cQQ")  # kind, offset, length
WRITE, ZERO, FLUSH = b"w", b"z", b"f"
FAULTS = ("read", "write", "flush")
PATIENCE_SECONDS = 30


# -- the plugin -------------------------------------------------------------------------------------------------------
class Pages:
    """The contents of a disk: pages that were never written, or zeroed, are not there."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Page by page: its number, and from where to where in it."""
        end = offset + length
        while offset < end:
            begin = offset % PAGE
            stop = min(PAGE, begin + end - offset)
            yield offset // PAGE, begin, stop
            offset += stop - begin

    def read_into(self, buffer: Any, offset: int) -> None:
        at = 0
        for number, begin, stop in self.parts(offset, len(buffer)):
            page = self.pages.get(number)
            buffer[at : at + stop - begin] = page[begin:stop] if page is not None else bytes(stop - begin)
            at += stop - begin

    def write(self, data: Any, offset: int) -> None:
        at = 0
        for number, begin, stop in self.parts(offset, len(data)):
            page = self.pages.setdefault(number, bytearray(PAGE))
            page[begin:stop] = data[at : at + stop - begin]
            at += stop - begin

    def zero(self, offset: int, length: int) -> None:
        for number, begin, stop in self.parts(offset, length):
            if stop - begin == PAGE:
                self.pages.pop(number, None)
            elif number in self.pages:
                self.pages[number][begin:stop] = bytes(stop - begin)


disk = Pages()
settings: dict[str, str] = {}
log_fd = -1
chance = random.Random(1)


def config(key: str, value: str) -> None:
    global log_fd
    settings[key] = value
    if key == "log":
        log_fd = os.open(value, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS)


def open(readonly: bool) -> int:
    return 1


def get_size(handle: int) -> int:
    return int(settings["size"])


def can_flush(handle: int) -> bool:
    return True


def fail_on_demand(name: str) -> None:
    try:
        fault = os.open(f"{settings['faults']}/{name}", os.O_RDONLY)
    except FileNotFoundError:
        return
    probability = float(os.read(fault, 20))
    os.close(fault)
    if chance.random() < probability:
        nbdkit.set_error(errno.EIO)
        raise OSError(errno.EIO, "as demanded")


def note(kind: bytes, offset: int, length: int, data: Any = b"") -> None:
    if log_fd >= 0:
        os.writev(log_fd, [ENTRY.pack(kind, offset, length), data])


def pread(handle: int, buffer: Any, offset: int, flags: int) -> None:
    fail_on_demand("read")
    disk.read_into(buffer, offset)


def pwrite(handle: int, buffer: Any, offset: int, flags: int) -> None:
    fail_on_demand("write")
    disk.write(buffer, offset)
    note(WRITE, offset, len(buffer), buffer)


def zero(handle: int, count: int, offset: int, flags: int) -> None:
    fail_on_demand("write")
    disk.zero(offset, count)
    note(ZERO, offset, count)


trim = zero


def flush(handle: int, flags: int) -> None:
    fail_on_demand("flush")
    note(FLUSH, 0, 0)


# -- its user ---------------------------------------------------------------------------------------------------------
@dataclass
class Served:
    """A disk that nbdkit serves: `image` is its file, `log` what reached it."""

    image: Path
    log: Path
    faults: Path

    def fail(self, name: str, probability: float = 1.0) -> None:
        """From now on calls of this kind fail."""
        written = self.faults / "new"
        written.write_text(f"{probability}")
        written.rename(self.faults / name)

    def heal(self) -> None:
        """Nothing fails any more."""
        for name in FAULTS:
            (self.faults / name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Drops what the kernel remembers of the image, so that reads reach it."""
        fd = os.open(self.image, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@contextmanager
def served(folder: Path, name: str, size: int, logged: bool = False) -> Iterator[Served]:
    """The disk is gone behind the block."""
    base = folder / f"nbd-{name}"
    for each in (base, base / "at", base / "faults"):
        each.mkdir()
    made = Served(base / "at" / "disk", base / "log", base / "faults")
    plugin = ["nbdkit", "-s", "--exit-with-parent", "python", __file__, f"size={size}", f"faults={made.faults}"]
    plugin += [f"log={made.log}"] if logged else []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    said = base / "said"
    with said.open("wb") as messages:
        process = subprocess.Popen(
            ["nbdfuse", str(made.image), "--command", *plugin],
            env=environment, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages,
        )  # fmt: skip
    try:
        late = time.monotonic() + PATIENCE_SECONDS
        while not made.image.exists():
            if process.poll() is not None or time.monotonic() > late:
                raise OSError(errno.ENODEV, f"nbdfuse: {said.read_text().strip() or 'it did not begin'}")
            time.sleep(0.01)
        yield made
    finally:
        process.terminate()
        process.wait()
