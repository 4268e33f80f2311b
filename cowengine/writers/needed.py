"""What this process must be able to write while a file system stands still, and so what must not be frozen.

Whoever freezes a file system that it then writes to itself waits for its own thaw. Reading goes on while a file system
is frozen; what counts here is where this process keeps files open for writing, or is likely to write at any moment.

Threads: stateless; each question looks anew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

from cowengine.errors import CowEngineError, WriterError
from cowengine.mounts import Mount, MountTable


def check_not_needed(target: Mount, table: MountTable, paths: Sequence[str] = ()) -> None:
    """Raise WriterError if freezing `target` could block this process, or what lies under the files of `paths`."""
    for device, what in _needed(table, paths):
        for below in table.below(device):
            if below == target.device:
                where = "lies" if below == device else "lies on a device whose data lies"
                raise WriterError(
                    f"{target.point} must not be frozen: {what} {where} there, and whoever thaws it may need that; "
                    "move it to another file system"
                )


def _needed(table: MountTable, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each file system that is needed, once, and for what."""
    seen: set[str] = set()
    for device, what in _all_needed(table, paths):
        if device not in seen:
            seen.add(device)
            yield device, what


def _all_needed(table: MountTable, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    named = [("/", "the root file system")]
    named += [(path, f"{path} of the store") for path in paths]
    named += [(os.curdir, "the working directory"), (tempfile.gettempdir(), "the folder for temporary files")]
    named += [("/tmp", "the folder for temporary files")]
    named += [(path, "the Python installation") for path in _python_paths()]
    for path, what in named:
        try:
            yield table.of_path(path).device, what
        except CowEngineError:
            continue  # it is not there, so nobody writes to it
    yield from _open_for_writing(table)
    yield from _mapped_for_writing()


def _python_paths() -> set[str]:
    modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    folders = {os.path.dirname(path) for path in modules if isinstance(path, str)}
    return {sys.prefix, sys.base_prefix, sys.executable, os.path.dirname(__file__), *folders} - {""}


def _open_for_writing(table: MountTable) -> Iterator[tuple[str, str]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            with open(f"/proc/self/fdinfo/{name}", encoding="ascii") as info:
                flags = next((int(line.split()[1], 8) for line in info if line.startswith("flags:")), 0)
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        mount = table.of_fd(int(name)) if flags & os.O_ACCMODE != os.O_RDONLY else None
        if mount is not None and not flags & os.O_PATH:
            yield mount.device, f"{path}, which this process has open for writing,"


def _mapped_for_writing() -> Iterator[tuple[str, str]]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[1].startswith("rw") and fields[1].endswith("s"):
                major, minor = (int(part, 16) for part in fields[3].split(":"))
                yield f"{major}:{minor}", f"{fields[5].strip()}, which this process has mapped for writing,"
