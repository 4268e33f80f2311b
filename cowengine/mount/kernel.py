"""What the kernel says: what is mounted where, which loop devices stand on which file, who uses a path."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import glob
from typing import Final

from cowengine.mounts import all_mounts

USERS_MAX: Final = 5
SCAN_SECONDS_MAX: Final = 3.0


def is_mounted(place: str, source: str | None = None) -> bool:
    """Whether something, or that device, is mounted at exactly that path."""
    return any(each.point == place and source in (None, each.source) for each in all_mounts())


def loop_devices(file: str) -> list[str]:
    """The loop devices that stand on a file, by its path; also when whoever serves the file is gone."""
    found = []
    for entry in glob("/sys/block/loop*/loop/backing_file"):
        with suppress(OSError), open(entry, encoding="utf-8", errors="surrogateescape") as about:
            if about.read().rstrip("\n") == file:
                found.append(f"/dev/{entry.split('/')[3]}")
    return found


def users_of(paths: Iterable[str], below: str | None = None) -> list[str]:
    """Who has one of the paths, or anything below a folder, open or as a working folder: at most a few of them, in
    words for a person; looks for some seconds at most. Also mounts and loop devices that stand on them.
    """
    wanted = set(paths)

    def meant(path: str) -> bool:
        return path in wanted or (below is not None and (path == below or path.startswith(below.rstrip("/") + "/")))

    found = [f"mounted at {each.point}" for each in all_mounts() if each.source in wanted]
    found += [
        f"mounted at {each.point}" for each in all_mounts() if below and each.point != below and meant(each.point)
    ]
    for entry in glob("/sys/block/loop*/loop/backing_file"):
        with suppress(OSError), open(entry, encoding="utf-8", errors="surrogateescape") as about:
            if below is not None and meant(about.read().rstrip("\n")):
                found.append(f"loop device {entry.split('/')[3]} on a file in it")
    late = time.monotonic() + SCAN_SECONDS_MAX
    for number in filter(str.isdigit, os.listdir("/proc")):
        if len(found) >= USERS_MAX or time.monotonic() > late:
            break
        if any(meant(path) for path in _open_paths(number)):
            found.append(f"process {number} ({_name(number)})")
    return found


def _open_paths(number: str) -> Iterator[str]:
    links = [f"/proc/{number}/{what}" for what in ("cwd", "root", "exe")]
    with suppress(OSError):
        links += [f"/proc/{number}/fd/{each}" for each in os.listdir(f"/proc/{number}/fd")]
    for link in links:
        with suppress(OSError):
            yield os.readlink(link)


def _name(number: str) -> str:
    with suppress(OSError), open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return "it has just ended"
