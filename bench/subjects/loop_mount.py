"""A file system of its own for a subject: in an image file in the subject's folder, mounted through a loop device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subjects.daemon import lacking, run

MiB = 1 << 20


def lacking_for_mounts(programs: dict[str, str]) -> str:
    """What is missing for file systems that these programs make; empty if nothing is."""
    missing = lacking({"losetup": "mount", "mount": "mount", **programs})
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


@contextmanager
def mounted(folder: Path, size: int, make: list[str], options: str) -> Iterator[Path]:
    """The mount point of a new file system that `make` makes; image, device and mount are gone after the block.

    The device reads and writes the image directly: a page cache below the one of the mounted file system would only
    copy. `make` and `options` must forbid discards, which would make holes in the image.
    """
    image, point = folder / "image", folder / "mount"
    device = ""
    try:
        write_zeros(image, size)
        run(*make, image)
        point.mkdir()
        device = run("losetup", "--find", "--show", "--direct-io=on", image).strip()
        run("mount", "-o", options, device, point)
        yield point
    finally:
        if point.is_mount():
            run("umount", "--lazy", point)
        for line in run("losetup", "--noheadings", "--output=NAME", "--associated", image).split():
            run("losetup", "--detach", line)
        image.unlink(missing_ok=True)
