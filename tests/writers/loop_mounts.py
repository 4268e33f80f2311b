"""Real file systems on loop devices, and whether one of them stands still."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 60.0
MAKE = {
    "ext4": (["mkfs.ext4", "-q", "-F"], 32 << 20),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320 << 20),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 128 << 20),
}


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def mounted(file: Path, point: Path, kind: str = "ext4", *, make: bool = True) -> Iterator[Path]:
    """A file with a file system in it, made anew unless told, mounted at `point` through a loop device."""
    command, size = MAKE[kind]
    if make:
        if not file.exists():
            file.touch()
            os.truncate(file, size)
        run(*command, file)
    point.mkdir(exist_ok=True)
    device = run("losetup", "-f", "--show", file)
    try:
        run("mount", device, point)
        try:
            yield point
        finally:
            subprocess.run(["fsfreeze", "-u", str(point)], capture_output=True)  # a test that failed may leave it so
            _unmount(point)
    finally:
        run("losetup", "-d", device)


def _unmount(point: Path) -> None:
    """A process that was killed just now may hold it for a moment longer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while subprocess.run(["umount", str(point)], capture_output=True).returncode != 0:
        assert time.monotonic() < deadline, f"{point} stays in use"
        time.sleep(0.05)


class Scribe:
    """Writes to a file system in a thread of its own; done() tells whether that has come through."""

    def __init__(self, point: Path) -> None:
        self._path = point / f"scribe-{time.monotonic_ns()}"
        self._thread = threading.Thread(target=self._path.write_bytes, args=(b"written",), daemon=True)
        self._thread.start()

    def done(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


def stands_still(point: Path) -> bool:
    """Whether a write waits. It goes on waiting, and comes through at the thaw."""
    return not Scribe(point).done(0.5)


def goes_on(point: Path) -> bool:
    """Whether a write comes through, on however slow a machine; the time limit of a job is longer than that."""
    return Scribe(point).done(PATIENCE_SECONDS)
