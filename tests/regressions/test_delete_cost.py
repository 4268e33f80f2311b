"""What deleting a snapshot once cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cowengine import Volume
from cowengine.core.iotable import IOTable

GIB = 1 << 30
MIB = 1 << 20


class NoData(IOTable):
    """Leaves out large writes beyond a point, so that a test of the map needs no gigabytes."""

    data_from = 1 << 62

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if len(data) < MIB or offset < self.data_from:
            super().pwrite(fd, data, offset)


def test_deleting_costs_what_it_frees_and_not_what_the_volume_holds(tmp_path: Path) -> None:
    """A volume written in sequence is a few runs high in the map. Reclaim compared nodes only and so went through each
    leaf of a run that both sides share: one commit for every 64 MiB of the volume.
    """
    table = NoData()
    with Volume.create(tmp_path / "v", 4 * GIB, background=False, io=table) as volume:
        table.data_from = 16 * MIB
        for start in range(0, 4 * GIB, 16 * MIB):
            volume.pwrite(bytes(16 * MIB), start)
        volume.engine.checkpoint()
        snapshot = volume.snapshot("s")
        volume.pwrite(b"x" * 4096, GIB + 5 * 4096)
        volume.flush()
        before = volume.stats()["commits"]
        snapshot.delete()
        assert volume.stats()["commits"] - before <= 5
        assert volume.check().problems == []
