"""A process that is killed in the middle of what it does, before each durable call in turn: nothing is lost by it.

What a power cut would leave is for tests/crash/; here are the operations that a user would fear for.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing_table import FailingTable
from forked_child import in_child
from raw_images import settled, write_image

from cowengine import Volume
from cowengine.core.iotable import IOTable

BLOCK = 4096
SIZE = 40 * BLOCK + 512
OLD, NEW = (random.Random(name).randbytes(SIZE) for name in ("old", "new"))


class KilledTable(FailingTable):
    """Ends the process at call number `fail_at`; of a write a half may have arrived."""

    def _count(self, what: str, fd: int = -1, half: tuple[Any, int] | None = None) -> None:
        try:
            super()._count(what, fd, half)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)


def opened(path: Path, io: IOTable | None = None) -> Any:
    return Volume.open(path, background=False, io=io)


def aged(path: Path) -> None:
    """Snapshots `old` and `new`, live as `new`; some blocks stand where a snapshot that is gone once displaced them."""
    with Volume.create(path, SIZE, log_size=16384, background=False) as volume:
        volume.pwrite(bytes(SIZE), 0)
        volume.snapshot("gone")
        volume.pwrite(OLD, 0)
        volume.get_snapshot("gone").delete()
        volume.snapshot("old")
        volume.pwrite(NEW, 0)
        volume.snapshot("new")


def look(path: Path, *allowed: bytes) -> bytes:
    """The live volume is one of these, the snapshots are as they were, and nothing has leaked."""
    with opened(path) as volume:
        live = volume.pread(volume.size, 0)
        assert live in allowed
        for snapshot in volume.snapshots():
            if not snapshot.is_anchor:
                assert snapshot.pread(SIZE, 0) == (OLD if snapshot.name == "old" else NEW)
        assert "new" in [snapshot.name for snapshot in volume.snapshots()]
        assert volume.check().problems == []
    return bytes(live)


def rollback(path: Path, io: IOTable) -> None:
    with opened(path, io) as volume:
        volume.rollback("old")


def resize(path: Path, io: IOTable, size: int) -> None:
    with opened(path, io) as volume:
        volume.resize(size)


def compact(path: Path, io: IOTable) -> None:
    with opened(path, io) as volume:
        volume.get_snapshot("old").delete()
        volume.compact()


def anchor(path: Path, io: IOTable) -> None:
    with opened(path, io) as volume:
        volume.get_snapshot("old").to_anchor()


SMALL = 7 * BLOCK + 512
WORK: dict[str, tuple[Callable[[Path, IOTable], None], list[bytes]]] = {
    "rollback": (rollback, [NEW, OLD]),
    "shrink": (lambda path, io: resize(path, io, SMALL), [NEW, NEW[:SMALL]]),
    "grow": (lambda path, io: resize(path, io, 2 * SIZE), [NEW, NEW + bytes(SIZE)]),
    "compact": (compact, [NEW]),
    "anchor": (anchor, [NEW]),
}


def killed_everywhere(begin: Callable[[], None], work: Callable[[IOTable], None], end: Callable[[], object]) -> int:
    """Kills `work` at one call after the other, with `begin` and `end` around; at how many it was killed."""
    kills, at = 0, 1
    while True:
        begin()
        outcome = in_child(lambda at=at: work(KilledTable(at)))
        assert outcome in ("killed", "nothing")
        end()
        if outcome == "nothing":
            return kills
        kills += 1
        at += 1 + at // 10


@pytest.mark.parametrize("name", WORK)
def test_a_kill_in_the_middle_leaves_the_one_or_the_other(tmp_path: Path, name: str) -> None:
    work, allowed = WORK[name]
    path, good = tmp_path / "v", tmp_path / "good"
    aged(good)
    found = set()
    kills = killed_everywhere(
        lambda: shutil.copyfile(good, path) and None,
        lambda io: work(path, io),
        lambda: found.add(look(path, *allowed)),
    )
    assert kills > 5
    assert found == set(allowed)


def test_a_kill_while_an_image_is_adopted_and_flattened(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, SIZE)
    found = set()
    kills = killed_everywhere(
        lambda: None,
        lambda io: Volume.adopt(path, log_size=16384, background=False, io=io).flatten(),
        lambda: found.add(settled(path, data)),
    )
    assert kills > 20
    assert found == {"raw image", "interrupted", "volume"}


def test_a_kill_while_a_copy_is_flattened_leaves_the_volume_and_no_half_image(tmp_path: Path) -> None:
    path, image = tmp_path / "v", tmp_path / "disk.img"
    aged(path)

    def work(io: IOTable) -> None:
        with opened(path, io) as volume:
            volume.flatten(image)

    def end() -> None:
        look(path, NEW)
        assert not image.exists() or image.read_bytes() == NEW
        image.unlink(missing_ok=True)

    assert killed_everywhere(lambda: None, work, end) > 5
    with opened(path) as volume:
        volume.flatten(image)
    assert image.read_bytes() == NEW
    assert sorted(os.listdir(tmp_path)) == ["disk.img", "v"]
