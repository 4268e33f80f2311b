"""Which file system a path or an open file lies on, and what that file system itself stands on.

A file system is named by its device, "major:minor" as /proc/self/mountinfo has it, and not by st_dev: each subvolume of
a btrfs has an st_dev of its own.

Threads: stateless; each question looks anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cowengine.errors import NotFoundError, StorageError

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount: the file system's device, where it is mounted, its type, and the device file that it is on."""

    device: str
    point: str
    type: str
    source: str


class MountTable:
    """The mounts of this process at one moment."""

    def __init__(self) -> None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            self.by_id: dict[int, Mount] = dict(map(_parse, lines))

    def of_fd(self, fd: int) -> Mount | None:
        """Of an open file of this process; None for a socket, a pipe and what else lies on no mount."""
        try:
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
                fields = dict(line.split(":", 1) for line in info if ":" in line)
        except OSError:  # closed since
            return None
        return self.by_id.get(int(fields.get("mnt_id", "-1")))

    def of_path(self, path: str) -> Mount:
        """Of a path, links followed. Raises NotFoundError, StorageError."""
        try:
            fd = os.open(path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError("there is no such file or folder", path) from None
        except OSError as error:
            raise StorageError(f"cannot be looked at: {error.strerror}", path, error.errno or 0) from error
        try:
            mount = self.of_fd(fd)
            status = os.fstat(fd)
        finally:
            os.close(fd)
        # What was unmounted lazily is on no list; its st_dev is the best there is.
        return mount or Mount(f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}", path, "unknown", "unknown")

    def below(self, device: str) -> Iterator[str]:
        """The devices of the file systems that `device` stands on: those of the files behind loop devices."""
        seen: set[str] = set()
        waiting = [device]
        while waiting:
            found = waiting.pop()
            if found in seen:
                continue
            seen.add(found)
            yield found
            waiting += self._next_below(found)

    def _next_below(self, device: str) -> list[str]:
        block = _block_of(device, self.by_id.values()) if device.startswith("0:") else device
        folder = f"/sys/dev/block/{block}" if block else ""
        found: list[str] = []
        if not folder or not os.path.exists(folder):
            return found
        real = os.path.realpath(folder)
        if os.path.exists(f"{real}/partition"):
            found += _lines(f"{os.path.dirname(real)}/dev")
        if os.path.isdir(f"{real}/slaves"):
            for name in os.listdir(f"{real}/slaves"):
                found += _lines(f"{real}/slaves/{name}/dev")
        for path in _lines(f"{real}/loop/backing_file"):
            if os.path.exists(path):  # "(deleted)" is part of the text of one that is gone
                found.append(self.of_path(path).device)
        return found


def all_mounts() -> list[Mount]:
    """What this process sees, in the order in which it was mounted."""
    return [*MountTable().by_id.values()]


def _parse(line: str) -> tuple[int, Mount]:
    mount, _, kind = line.rstrip("\n").partition(" - ")
    number, _, device, _, point = mount.split(" ")[:5]
    type_, source = kind.split(" ")[:2]
    return int(number), Mount(device, _decoded(point), type_, _decoded(source))


def _decoded(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _block_of(device: str, mounts: Iterable[Mount]) -> str | None:
    """The block device of a file system without a device number of its own, such as btrfs."""
    for mount in mounts:
        if mount.device == device and mount.source.startswith("/dev/"):
            try:
                number = os.stat(mount.source).st_rdev
            except OSError:
                continue
            return f"{os.major(number)}:{os.minor(number)}"
    return None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n") for line in file]
    except OSError:
        return []
