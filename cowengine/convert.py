"""Images of other formats in and out: qcow2, VHDX and VMDK, converted by qemu-img.

No format is parsed here, none is guessed, and no file is followed that an image names (a backing file, data in another
file): such an image is refused. On its way an image is a sparse raw file in a directory of its own beside the target;
an import adopts it from there; an export flattens into it, which takes no space where the file system can share it.

Threads   no state; everything may be called from any thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from cowengine.core.iotable import KERNEL
from cowengine.engine.files import give_name
from cowengine.errors import (
    ExistsError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
)
from cowengine.names import check_path, shown
from cowengine.oserrors import typed
from cowengine.snapshot import Snapshot
from cowengine.store import Store
from cowengine.volume import Volume

FORMATS = ("qcow2", "vhdx", "vmdk")
MESSAGE_MAX = 500
FOLDER_PREFIX = ".cowengine-convert-"


def import_image(
    image: str | os.PathLike[str], path: str | os.PathLike[str], *, format: str, block_size: int = 4096,
    store: Store | None = None,
) -> Volume:  # fmt: skip
    """Makes a new volume at `path` of an image in `format` (qcow2, vhdx or vmdk); durable when it returns.

    With a store, `path` is the volume's name there. The image stays as it is; what it does not allocate is a hole.
    Needs qemu-img. Raises NotFoundError (no image, no directory, no qemu-img), FormatError (damaged, or its data lies
    in other files too), ExistsError, OutOfRangeError, NoSpaceError, StorageError.
    """
    source, target = _checked(image, format), check_path(path)
    if not os.path.isfile(source):
        raise NotFoundError("there is no such file", source)
    folder = os.path.dirname(os.path.abspath(target)) if store is None else store.path
    if store is None and os.path.lexists(target):
        raise ExistsError("something is in the way; choose another name or remove it", target)
    tool = find_tool()
    _require_self_contained(tool, source, format)
    with typed(folder), _work_folder(folder) as place:
        _require_space(folder, _data_bytes(tool, source, format))
        raw = _new_file(place, "raw")
        _run(tool, "convert", "-f", format, "-O", "raw", source, raw, image=source)
        if store is not None:
            return store.adopt_volume(target, raw, block_size=block_size, raw=True)
        return Volume.adopt(raw, target, block_size=block_size, raw=True)


def export_image(view: Volume | Snapshot, image: str | os.PathLike[str], *, format: str) -> None:
    """Writes a volume, or a snapshot of one, into a new image in `format`; durable when it returns, mode 0600.

    Holes stay holes. Needs qemu-img, and room for a raw copy where the file system cannot share space. Raises
    ExistsError, NotFoundError (no directory, no qemu-img), OutOfRangeError, NoSpaceError, StorageError.
    """
    target = _checked(image, format)
    if os.path.lexists(target):
        raise ExistsError("something is in the way; choose another name or remove it", target)
    tool, folder = find_tool(), os.path.dirname(target)
    with typed(folder), _work_folder(folder) as place:
        _require_space(folder, int(view.allocated_extents()[:, 1].sum()))
        raw, made = os.path.join(place, "raw"), _new_file(place, "image")
        view.flatten(raw)
        _run(tool, "convert", "-f", "raw", "-O", format, raw, made, image=None)
        fd = KERNEL.open(made, os.O_RDWR)
        try:
            KERNEL.fdatasync(fd)
        finally:
            KERNEL.close(fd)
        give_name(KERNEL, made, target)


def find_tool() -> str:
    """The path of qemu-img. Raises NotFoundError that says what to install."""
    tool = shutil.which("qemu-img")
    if tool is None:
        raise NotFoundError(
            "qemu-img is not installed; images of other formats need it (Debian, Ubuntu: qemu-utils; Fedora: qemu-img)"
        )
    return tool


# -- around qemu-img ---------------------------------------------------------------------------------------------------
def _checked(image: str | os.PathLike[str], format: str) -> str:
    if format not in FORMATS:
        raise OutOfRangeError(f"format {format!r}: one of {', '.join(FORMATS)} is needed; no format is ever guessed")
    return os.path.abspath(check_path(image))  # which qemu-img takes for no option and no protocol


@contextmanager
def _work_folder(folder: str) -> Iterator[str]:
    """A directory for what must not stay; a crash leaves it."""
    try:
        made = TemporaryDirectory(prefix=FOLDER_PREFIX, dir=folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("there is no such directory", folder) from None
    with made as place:
        os.chmod(place, 0o700)  # whatever the umask
        yield place


def _new_file(place: str, name: str) -> str:
    """An empty file with the mode that what is written into it shall have."""
    path = os.path.join(place, name)
    KERNEL.close(KERNEL.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    return path


def _run(tool: str, *words: str, image: str | None) -> str:
    """What qemu-img says. What it complains about is a FormatError of the image that it reads, or a StorageError."""
    run = subprocess.run(
        [tool, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if run.returncode == 0:
        return run.stdout
    message = run.stderr.strip()[:MESSAGE_MAX] or f"it ended with {run.returncode}"
    if "No space left" in message or "Disk quota exceeded" in message:
        raise NoSpaceError(f"the file system is full ({message})")
    if image is not None:
        raise FormatError(f"{image}: {message}")
    raise StorageError(f"the image could not be written: {message}")


def _require_self_contained(tool: str, image: str, format: str) -> None:
    """An image that somebody else made must not bring other files of this machine into the volume."""
    about: dict[str, Any] = json.loads(_run(tool, "info", "--output=json", "-f", format, image, image=image))
    details = about.get("format-specific", {}).get("data", {})
    extents = [extent.get("filename", "") for extent in details.get("extents", [])]
    named = [about.get("full-backing-filename"), about.get("backing-filename"), details.get("data-file"), *extents]
    others = [name for name in named if name and os.path.abspath(name) != image]
    if others:
        raise FormatError(
            f"{image}: has data in another file ({shown(str(others[0]))}); make one image of them first, with "
            "qemu-img convert"
        )


def _data_bytes(tool: str, image: str, format: str) -> int:
    """How much an image allocates, as raw data."""
    if format == "vhdx":  # never compressed, and its map calls everything data
        return os.stat(image).st_blocks * 512
    parts: list[dict[str, Any]] = json.loads(_run(tool, "map", "--output=json", "-f", format, image, image=image))
    return sum(int(part["length"]) for part in parts if part["data"] and not part["zero"])


def _require_space(folder: str, needed: int) -> None:
    try:
        state = os.statvfs(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("there is no such directory", folder) from None
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise NoSpaceError(f"{needed} bytes are needed and {free} are free", folder)
