"""The child of a fork closes the volumes' descriptors, and none of another kind that has the same number."""

from __future__ import annotations

import os
from contextlib import suppress

from memory_disk import MemoryDisk

from cowengine import Volume


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
