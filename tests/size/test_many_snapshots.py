"""What a volume of many snapshots keeps in memory is bounded, and what has changed is never dropped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cowengine import NotFoundError, Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import memory

MIB = 1 << 20
COUNT = 3000
LEAVES_MAX = MIB // memory.NODE_BYTES // memory.SHARE_OF_TABLES


class Unsynced(IOTable):
    def fdatasync(self, fd: int) -> None:
        """Nothing: no power is cut here."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "v"
    with Volume.create(path, MIB, background=False, io=Unsynced()) as volume:
        for number in range(COUNT):
            volume.snapshot(f"s{number}")
    return path


def test_looking_up_all_snapshots_keeps_few_records(many: Path) -> None:
    with Volume.open(many, cache_size=MIB, background=False, io=Unsynced()) as volume:
        for number in range(COUNT):
            assert volume.get_snapshot(f"s{number}").id == number + 1
            assert volume.engine.lineage.loaded_leaves() <= LEAVES_MAX + 2
        for start in range(0, COUNT, 100):
            page = volume.snapshots(start, 100)
            assert [snapshot.name for snapshot in page] == [f"s{number}" for number in range(start, start + 100)]
            assert volume.engine.lineage.loaded_leaves() <= LEAVES_MAX + 24
        assert memory.used(volume.engine) < MIB


def test_what_changed_survives_that_the_rest_is_dropped(many: Path) -> None:
    rng = random.Random(1)
    with Volume.open(many, cache_size=MIB, background=False, io=Unsynced()) as volume:
        gone = rng.sample(range(COUNT), 40)
        for number in gone:
            volume.get_snapshot(f"s{number}").delete()
            volume.get_snapshot(f"s{rng.choice([n for n in range(COUNT) if n not in gone])}")
            volume.engine.lineage.unload_records(0)
        held = volume.get_snapshot("s7" if 7 not in gone else "s8")
        held.hold("a test")
        taken = volume.snapshot("new", metadata={"a": 1})
        volume.engine.lineage.unload_records(0)
        assert held.hold_reason == "a test"
        assert volume.get_snapshot("new").id == taken.id
        for number in gone:
            with pytest.raises(NotFoundError):
                volume.get_snapshot(f"s{number}")
        wanted = [snapshot.id for snapshot in volume.snapshots()]
        assert len(wanted) == COUNT - 40 + 1
        volume.engine.checkpoint()
        volume.engine.lineage.unload_records(0)
        assert [snapshot.id for snapshot in volume.snapshots()] == wanted
        assert volume.check().problems == []
