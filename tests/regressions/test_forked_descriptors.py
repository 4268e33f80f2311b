"""The child of a fork closes the volumes' descriptors, and none of another kind that has the same number."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest
from memory_disk import MemoryDisk

from cowengine import Volume
from cowengine.errors import CorruptionError
from cowengine.format import SLOT_BYTES, decode_superblock


def test_a_child_leaves_alone_what_has_the_number_of_a_volume_on_another_table() -> None:
    """A disk in memory counts its files itself; its volume's number is open as something else here."""
    reading, writing = os.pipe()
    with Volume.create("/disk/volume", 1 << 20, io=MemoryDisk(recorded=False), background=False) as volume:
        number = volume.engine.fd
        before = None
        with suppress(OSError):
            before = os.fstat(number)
        if before is None:
            os.dup2(writing, number)
        child = os.fork()
        if child == 0:
            try:
                os.fstat(number)
            except OSError:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if before is None:
            os.close(number)
    os.close(reading)
    os.close(writing)


def test_a_child_leaves_alone_what_has_the_number_of_a_volume_that_was_not_opened_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with Volume.create(path, 1 << 20, background=False) as volume:
        volume.snapshot("one")
    with path.open("r+b") as file:
        for slot in (0, 1):
            file.seek(slot * SLOT_BYTES)
            file.seek(decode_superblock(file.read(SLOT_BYTES)).lineage_root.slot * SLOT_BYTES)
            file.write(b"damage")
    gc.disable()
    try:
        with pytest.raises(CorruptionError):
            Volume.open(path)
        numbers = os.pipe()  # they take the number that the failed open had
        child = os.fork()
        if child == 0:
            try:
                for number in numbers:
                    os.fstat(number)
            except OSError:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        gc.enable()
    for number in numbers:
        os.close(number)
