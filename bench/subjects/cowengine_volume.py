"""cowengine itself, as an embedder uses it: in process, with the defaults of `Volume.create` unless a row says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from subjects.subject import Disk, Subject

import cowengine


class View(Disk):
    """A snapshot, read by its own method: no call of this class is around it, as none is around the raw file's."""

    def __init__(self, snapshot: cowengine.Snapshot) -> None:
        self.pread_into = snapshot.pread_into

    def close(self) -> None:
        """A snapshot has nothing to close."""


class VolumeDisk(Disk):
    """A volume; the calls that are timed are its own methods."""

    def __init__(self, volume: cowengine.Volume) -> None:
        self.volume = volume
        self.pwrite, self.pread_into = volume.pwrite, volume.pread_into
        self.flush, self.snapshot = volume.flush, volume.snapshot

    def open_snapshot(self, name: str) -> View:
        return View(self.volume.get_snapshot(name))

    def delete(self, name: str) -> None:
        self.volume.get_snapshot(name).delete()

    def changed(self, base: str, target: str) -> int:
        return len(self.volume.get_snapshot(target).changed_extents(base))

    def close(self) -> None:
        self.volume.close()
        os.unlink(self.volume.path)


class CowengineVolume(Subject):
    """The engine of this checkout."""

    name = "cowengine"
    settings = f"version {cowengine.__version__}, in process, blocks of 4 KiB, defaults; flush = Volume.flush"

    def __init__(self, **options: Any) -> None:
        """`options` are those of `Volume.create`."""
        self.options = options

    def create(self, folder: Path, name: str, size: int) -> VolumeDisk:
        return VolumeDisk(cowengine.Volume.create(folder / name, size, **self.options))
