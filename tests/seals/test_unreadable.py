"""Snapshots that cannot be sealed, as metadata is damaged: told of once, passed over, and all others are sealed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import CorruptionError, Volume
from cowengine.engine import sealing

BLOCK = 4096
SIZE = 400 * BLOCK
NAMES = ("first", "second", "third", "fourth")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A volume with four unsealed snapshots; the root of the second leads out of the file, the third's is no node."""
    path = tmp_path / "v"
    with Volume.create(path, SIZE, background=False) as volume:
        for number, name in enumerate(NAMES):
            volume.pwrite(bytes([number + 1]) * SIZE, 0)
            volume.snapshot(name)
        volume.engine.checkpoint()
        lineage = volume.engine.lineage
        second, third = (lineage._known(number) for number in (2, 3))
        slot = third.root.slot
        second.root = second.root._replace(slot=1 << 40)
        lineage._changed.add(2)
        volume.engine.checkpoint()
    with open(path, "r+b") as file:
        file.seek(slot * 4096 + 100)
        file.write(b"\xff" * 64)
    return path


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sealing, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(sealing, "REST", 0)
    yield


def wait_for_the_sealer(volume: Volume) -> None:
    while volume.engine.sealer._thread is not None:
        time.sleep(0.01)


@pytest.mark.usefixtures("eager")
def test_the_background_seals_what_it_can_and_tells_of_the_rest_once(
    damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "cowengine"), Volume.open(damaged) as volume:
        wait_for_the_sealer(volume)
        stats = volume.stats()
        assert (stats["snapshots_unsealed"], stats["snapshots_unsealable"]) == (2, 2)
        for name in ("first", "fourth"):
            assert volume.get_snapshot(name).verify().counts["verified"] == 400
        volume.pwrite(b"5" * BLOCK, 0)
        fifth = volume.snapshot("fifth")
        wait_for_the_sealer(volume)
        assert fifth.verify().counts == {"blocks": 400, "verified": 400, "unsealed": 0, "damaged": 0}
        for number in (2, 3):
            assert caplog.text.count(f"snapshot {number} cannot be sealed") == 1
        assert len(caplog.records) == 2


def test_seal_seals_all_it_can_and_then_raises_what_it_could_not_read(damaged: Path) -> None:
    with Volume.open(damaged, background=False) as volume:
        for _ in range(2):  # it tries again each time
            with pytest.raises(CorruptionError, match=r": snapshots 'second': .*; 'third': .*") as caught:
                volume.seal()
            assert caught.value.volume == str(damaged)
            stats = volume.stats()
            assert (stats["snapshots_unsealed"], stats["snapshots_unsealable"]) == (2, 2)
    with Volume.open(damaged, background=False) as volume:  # it was durable
        assert volume.stats()["snapshots_unsealed"] == 2 and volume.stats()["snapshots_unsealable"] == 0
        for name in ("first", "fourth"):
            assert volume.get_snapshot(name).verify().counts["verified"] == 400


def test_what_can_be_read_again_is_sealed_by_the_next_call(damaged: Path) -> None:
    with Volume.open(damaged, background=False) as volume, open(damaged, "r+b") as file:
        slot = volume.engine.lineage._known(4).root.slot
        file.seek(slot * BLOCK)
        node = file.read(BLOCK)
        file.seek(slot * BLOCK)
        file.write(bytes(BLOCK))
        file.flush()
        with pytest.raises(CorruptionError, match=r"'second': .*; 'third': .*; 'fourth': "):
            volume.seal()
        assert volume.stats()["snapshots_unsealable"] == 3
        file.seek(slot * BLOCK)
        file.write(node)
        file.flush()
        with pytest.raises(CorruptionError):
            volume.seal()
        assert volume.stats()["snapshots_unsealable"] == 2
        assert volume.get_snapshot("fourth").verify().counts["verified"] == 400


def test_the_command_line_seals_what_it_can(damaged: Path) -> None:
    from cowengine.cli.main import main

    assert main(["volume", "seal", str(damaged), "--progress", "none"]) == 4
    with Volume.open(damaged, background=False) as volume:
        assert volume.stats()["snapshots_unsealed"] == 2
