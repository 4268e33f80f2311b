"""Nodes that a replay will need are on their way before it begins; what is wrong with them is told by the replay."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import CorruptionError, Volume
from cowengine import format as f
from cowengine.core.iotable import IOTable
from cowengine.core.readahead import read_ahead

BLOCK = 4096
BLOCKS = 1 << 16  # a root of level 2
WRITTEN = sorted(random.Random(1).sample(range(1 << 15), 60))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A volume that was closed, with scattered blocks in its first half."""
    with Volume.create(tmp_path / "v", BLOCKS * BLOCK, background=False) as volume:
        volume.snapshot("s")
        for block in WRITTEN:
            volume.pwrite(b"x" * BLOCK, block * BLOCK)
    return tmp_path / "v"


@pytest.fixture
def volume(path: Path) -> Iterator[Volume]:
    with Volume.open(path, background=False) as opened:
        yield opened


def delta(block: int, head: int = 0) -> bytes:
    return f.encode_delta(block, 1, f.POINTER_RUN, 99, 1, head)


def test_what_leads_to_the_leaves_is_in_memory_and_they_are_not(volume: Volume) -> None:
    path = volume.engine.path
    assert path.map.node_count == 0
    for _ in range(2):  # the second time all is there
        read_ahead(path, b"".join(delta(block) for block in WRITTEN))
        assert path.map.node_count == 1 + len({block >> 15 for block in WRITTEN})
    for block in WRITTEN:
        assert volume.pread(1, block * BLOCK) == b"x"
    before = path.map.node_count
    read_ahead(path, delta(WRITTEN[0]))
    assert path.map.node_count == before


def test_a_way_that_ends_is_gone_as_far_as_it_goes(volume: Volume) -> None:
    path = volume.engine.path
    read_ahead(path, delta(1 << 40) + delta(0, head=7))
    assert path.map.node_count == 0
    read_ahead(path, delta(BLOCKS - 1))  # nothing was written there
    assert path.map.node_count == 1


def test_who_has_calls_of_his_own_is_asked_for_what_is_needed_only(path: Path) -> None:
    class Own(IOTable):
        pass

    with Volume.open(path, background=False, io=Own()) as volume:
        read_ahead(volume.engine.path, delta(WRITTEN[0]))
        assert volume.engine.path.map.node_count == 0


def test_a_node_that_is_damaged_is_left_to_who_needs_it(path: Path) -> None:
    with Volume.open(path, background=False) as volume:
        volume.pread(1, WRITTEN[0] * BLOCK)
        pointer = f.Pointer.decode(volume.engine.path.live.pointer)
    with open(path, "r+b") as file:
        file.seek(pointer.slot * BLOCK)
        file.write(b"damage")
    with Volume.open(path, read_only=True, background=False) as volume:
        read_ahead(volume.engine.path, delta(WRITTEN[0]))
        assert volume.engine.path.map.node_count == 0
        with pytest.raises(CorruptionError):
            volume.pread(1, WRITTEN[0] * BLOCK)


def test_after_a_kill_everything_is_there(path: Path, tmp_path: Path) -> None:
    """Scattered writes in several records, over nodes that are on the disk only."""
    killed = tmp_path / "killed"
    with Volume.open(path, background=False) as volume:
        for number, block in enumerate(WRITTEN):
            volume.pwrite(bytes([number]) * BLOCK, block * BLOCK)
            if number % 7 == 0:
                volume.snapshot(f"s{number}")
        volume.flush()
        shutil.copyfile(path, killed)
    with Volume.open(killed, background=False) as again:
        assert again.engine.recovered["records"] == 10
        assert [again.pread(1, block * BLOCK)[0] for block in WRITTEN] == list(range(len(WRITTEN)))
        assert again.get_snapshot("s14").pread(1, WRITTEN[14] * BLOCK) == b"\x0e"
        assert again.get_snapshot("s14").pread(1, WRITTEN[15] * BLOCK) == b"x"
        assert again.check().problems == []
