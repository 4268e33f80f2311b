"""What branches of a branch point that is deleted have in common counts, and is verified, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowengine import Report, Volume

BLOCK = 4096
BLOCKS = 400
SIZE = BLOCKS * BLOCK


def branched(path: Path, branches: int, *, anchor: bool = False) -> Volume:
    """A volume with one snapshot of each branch, which has `number + 1` blocks of its own; what they stand on is
    hidden.
    """
    volume = Volume.create(path / "v", SIZE, background=False)
    volume.pwrite(b"b" * SIZE, 0)
    volume.discard(100 * BLOCK, 50 * BLOCK)
    base = volume.snapshot("base")
    for number in range(branches):
        volume.rollback(base)
        for block in range(number + 1):
            volume.pwrite(bytes([number]) * BLOCK, (7 * number + 2 * block) * BLOCK)
        volume.snapshot(f"branch {number}")
    for snapshot in volume.snapshots():
        if snapshot.name.startswith("before"):
            snapshot.delete()
    volume.rollback(volume.get_snapshot("branch 0"))
    for snapshot in volume.snapshots():
        if snapshot.name.startswith("before"):
            snapshot.delete()
    base.to_anchor() if anchor else base.delete()
    volume.reclaim()
    return volume


def physical(volume: Volume) -> int:
    """How many blocks any snapshot reaches, by their slots."""
    path, slots = volume.engine.path, set()
    for snapshot in volume.snapshots():
        if not snapshot.is_anchor:
            root = volume.engine.lineage.root(snapshot.id)
            slots |= {path.place(block, root)[0] for block in range(-(-snapshot.size // BLOCK))}
    return len(slots - {0})


def counts(report: Report) -> tuple[int, int, int, int]:
    found = report.counts
    return found["blocks"], found["verified"], found["unsealed"], found["damaged"]


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("branches", [2, 5])
def test_each_block_is_counted_and_verified_once(tmp_path: Path, branches: int, anchor: bool) -> None:
    with branched(tmp_path, branches, anchor=anchor) as volume:
        blocks = physical(volume)
        assert blocks < BLOCKS + 20  # far from once for each branch
        assert volume.unsealed_bytes() == blocks * BLOCK
        assert counts(volume.verify()) == (blocks, 0, blocks, 0)
        assert volume.seal().sealed_bytes == blocks * BLOCK
        assert volume.unsealed_bytes() == 0
        assert counts(volume.verify()) == (blocks, blocks, 0, 0)


def test_a_block_that_only_a_later_branch_still_has_is_not_left_out(tmp_path: Path) -> None:
    """The first branch wrote or cut off what the others still share."""
    with branched(tmp_path, 3) as volume:
        volume.pwrite(b"n" * (200 * BLOCK), 0)
        volume.resize(SIZE // 2 + 512)
        volume.snapshot("small")
        volume.get_snapshot("branch 0").delete()
        blocks = physical(volume)
        assert volume.unsealed_bytes() == blocks * BLOCK
        assert volume.verify().counts["blocks"] == blocks
        volume.seal()
        root = volume.engine.lineage.root(volume.get_snapshot("branch 2").id)
        with open(volume.path, "r+b") as file:
            file.seek(volume.engine.path.place(190, root)[0] * BLOCK)
            file.write(b"?")
        assert volume.verify().counts["damaged"] == 1


def test_clones_of_a_point_that_is_gone(tmp_path: Path) -> None:
    """Two lines, each with more than one snapshot; only the first of a line has blocks in common with the other's."""
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        volume.pwrite(b"b" * SIZE, 0)
        base = volume.snapshot("base")
        clone = base.clone("other")
        for number, head in enumerate((volume, clone)):
            for turn in range(3):
                head.pwrite(bytes([number, turn]) * 2048, (10 * number + turn) * BLOCK)
                head.snapshot(f"{number} {turn}")
        clone.rollback(clone.get_snapshot("1 2"))
        for snapshot in volume.snapshots():
            if snapshot.name.startswith("before"):
                snapshot.delete()
        base.delete()
        volume.reclaim()
        blocks = physical(volume)
        assert blocks == BLOCKS + 6
        assert volume.unsealed_bytes() == blocks * BLOCK
        assert volume.verify().counts["blocks"] == blocks
        clone.close()
