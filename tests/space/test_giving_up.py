"""Which snapshot a policy gives up first, and when it finds none; on a file system with room, where a limit asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import NoSpaceError, Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import space

BLOCK = 4096


class Table(IOTable):
    """The file system may not say how full it is."""

    silent = False

    def space(self, fd: int) -> tuple[int, int, int]:
        if self.silent:
            raise OSError(38, os.strerror(38))
        return super().space(fd)


@pytest.fixture(params=[2, 100])
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Volume]:
    """Seven snapshots that hold four blocks each, looked through so many at a time."""
    monkeypatch.setattr(space, "PAGE", request.param)
    with Volume.create(tmp_path / "v", 64 * BLOCK, background=False, io=Table()) as made:
        for number in range(7):
            made.pwrite(bytes([number + 1]) * 4 * BLOCK, 0)
            made.snapshot(f"s{number}")
        made.pwrite(b"live" * BLOCK, 0)
        yield made


def names(volume: Volume) -> list[str]:
    return [snapshot.name for snapshot in volume.snapshots()]


def give_up_to(volume: Volume, blocks: int, keep_newest: int) -> None:
    volume.policy(when_full="give-up", keep_newest=keep_newest, snapshot_bytes_max=blocks * BLOCK)
    volume.engine.space.on_growth()


def test_held_ones_are_passed_over_and_the_oldest_of_the_rest_goes(volume: Volume) -> None:
    for name in ("s0", "s1", "s2"):
        volume.get_snapshot(name).hold("audit")
    give_up_to(volume, 24, 1)
    assert names(volume) == ["s0", "s1", "s2", "s4", "s5", "s6"]


def test_the_newest_are_kept_whatever_the_limit(volume: Volume) -> None:
    give_up_to(volume, 1, 3)
    assert names(volume) == ["s4", "s5", "s6"]
    with pytest.raises(NoSpaceError, match="more than the policy's limit"):
        volume.snapshot("one more")
    assert names(volume) == ["s4", "s5", "s6"]


def test_with_more_to_keep_than_there_are_nothing_is_given_up(volume: Volume) -> None:
    give_up_to(volume, 1, 9)
    assert len(names(volume)) == 7


def test_anchors_do_not_count_among_the_newest(volume: Volume) -> None:
    volume.get_snapshot("s5").to_anchor()
    give_up_to(volume, 1, 2)
    assert [loss.name for loss in volume.given_up()] == ["s0", "s1", "s2", "s3"]
    assert volume.get_snapshot("s4").pread(BLOCK, 0) == bytes([5]) * BLOCK


def test_a_file_system_that_does_not_say_how_full_it_is_counts_as_unknown(volume: Volume) -> None:
    told: list[object] = []
    volume.on_space_low(told.append, below=0.999)
    Table.silent = True
    try:
        stats = volume.stats()
        volume.engine.space.look(now=True)
    finally:
        Table.silent = False
    assert stats["free_bytes"] == stats["taken_bytes"] == 0 and told == []
    volume.engine.space.look(now=True)
    assert len(told) == 1
