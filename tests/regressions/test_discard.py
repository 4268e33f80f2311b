"""What discards once got wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cowengine import Volume
from cowengine.core.iotable import IOTable

MIB = 1 << 20


class NoData(IOTable):
    """Leaves out large writes beyond a point, so that a test of the map needs no gigabytes."""

    data_from = 1 << 62

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if len(data) < MIB // 4 or offset < self.data_from:
            super().pwrite(fd, data, offset)


def test_a_discard_of_very_many_runs_takes_as_many_records_as_it_needs(tmp_path: Path) -> None:
    """Runs high in the map were freed without a look at the room in the record.

    One discard over some hundred of them made a record larger than what the log keeps room for, and the commit poisoned
    the volume (I9).
    """
    table = NoData()
    with Volume.create(tmp_path / "v", 1000 * MIB, log_size=16384, background=False, io=table) as volume:
        table.data_from = MIB
        for number in range(0, 1000, 2):  # with gaps, so that they stay runs of their own
            volume.pwrite(bytes(MIB), number * MIB)
        volume.engine.checkpoint()  # which turns each of them into one pointer
        volume.discard(0, 1000 * MIB)
        volume.flush()
        assert volume.check().problems == []
        assert len(volume.allocated_extents()) == 0
