"""A file system of its own for a subject: in an image file in the subject's folder, mounted through a loop device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cffi
from subjects.daemon import lacking, run

MiB = 1 << 20
CLONE_NEWNS, MS_SLAVE, MS_REC = 0x20000, 1 << 19, 1 << 14

ffi = cffi.FFI()
ffi.cdef(
    """
int unshare(int flags);
int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data);
"""
)


def lacking_for_mounts(programs: dict[str, str]) -> str:
    """What is missing for file systems that these programs make; empty if nothing is."""
    missing = lacking({"losetup": "mount", "mount": "mount", "findmnt": "util-linux", **programs})
    if os.geteuid() != 0:
        missing.append("root, to mount its file system (run as root)")
    elif not Path("/dev/loop-control").exists():
        missing.append("loop devices (modprobe loop)")
    return ", ".join(missing)


def write_zeros(path: Path, size: int) -> None:
    """A file whose every byte is written: whoever stores in it never waits for its file system to allocate."""
    with path.open("xb") as file:
        for _ in range(size // MiB):
            file.write(bytes(MiB))
        os.fsync(file.fileno())


@cache
def keep_mounts_private() -> None:
    """Mounts are seen by this process and its children only from now on, and so end with them, however they end."""
    libc = ffi.dlopen(None)
    recursively = MS_SLAVE | MS_REC  # others' mounts are seen here still
    if libc.unshare(CLONE_NEWNS) or libc.mount(ffi.NULL, b"/", ffi.NULL, recursively, ffi.NULL):
        raise OSError(ffi.errno, os.strerror(ffi.errno))


@contextmanager
def mounted(folder: Path, size: int, make: list[str], options: str) -> Iterator[Path]:
    """The mount point of a new file system that `make` makes; image, device and mount are gone after the block.

    The device reads and writes the image directly: a page cache below the one of the mounted file system would only
    copy. `make` and `options` must forbid discards, which would make holes in the image. `mount` makes the device, and
    the kernel ends it with the mount.
    """
    keep_mounts_private()
    image, point = folder / "image", folder / "mount"
    try:
        write_zeros(image, size)
        run(*make, image)
        point.mkdir()
        run("mount", "-o", f"loop,{options}", image, point)
        run("losetup", "--direct-io=on", run("findmnt", "--noheadings", "--nofsroot", "--output=SOURCE", point).strip())
        yield point
    finally:
        if point.is_mount():
            run("umount", "--lazy", point)
        image.unlink(missing_ok=True)
