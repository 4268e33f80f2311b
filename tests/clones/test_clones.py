"""Clones: what they share and what they do not, their snapshots, what is refused, threads, and a repair on one."""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.errors import (
    AnchorError,
    BusyError,
    ClosedError,
    ExistsError,
    FullBackupRequired,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
)

BLOCK = 4096
HANDLES: list[Any] = []  # clones that a test leaves open: their volume closes them


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Volume]]:
    """Makes volumes; each is checked and closed at the end."""
    made: list[Volume] = []

    def one(size: int = 64 * BLOCK, **options: Any) -> Volume:
        made.append(Volume.create(tmp_path / f"v{len(made)}", size, **{"background": False, **options}))
        return made[-1]

    yield one
    for volume in made:
        if not volume.closed:
            assert volume.check().problems == []
            volume.close()
    HANDLES.clear()


def cloned(snapshot: Any, name: str) -> Volume:
    HANDLES.append(snapshot.clone(name))
    return HANDLES[-1]


def fill(letter: str, blocks: int = 1) -> bytes:
    return letter.encode() * (blocks * BLOCK)


def reopened(volume: Volume, target: Path) -> Volume:
    """What somebody else finds if the machine stops now: a copy of the file, opened."""
    shutil.copyfile(volume.path, target)
    return Volume.open(target, background=False)


# -- what it is --------------------------------------------------------------------------------------------------------
def test_a_clone_begins_as_its_snapshot_and_each_head_keeps_what_it_writes(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a", 8), 0)
    snapshot = volume.snapshot("s")
    volume.pwrite(fill("b"), 0)
    clone = cloned(snapshot, "c")
    assert (clone.head, volume.head, volume.heads()) == ("c", "live", ["live", "c"])
    assert clone.pread(8 * BLOCK, 0) == fill("a", 8)
    clone.pwrite(fill("c"), BLOCK)
    clone.pwrite(fill("d"), 20 * BLOCK)  # a hole, at home
    clone.pwrite(b"e", 2 * BLOCK + 7)  # a part of a shared block
    volume.pwrite(fill("f"), 20 * BLOCK)
    assert volume.pread(3 * BLOCK, 0) == fill("b") + fill("a", 2)
    assert snapshot.pread(8 * BLOCK, 0) == fill("a", 8)
    assert clone.pread(2 * BLOCK, 0) == fill("a") + fill("c")
    assert clone.pread(9, 2 * BLOCK) == b"aaaaaaaea"
    assert (clone.pread(1, 20 * BLOCK), volume.pread(1, 20 * BLOCK)) == (b"d", b"f")


def test_a_clone_is_durable_when_it_returns_and_so_is_its_deletion(make: Callable[..., Volume], tmp_path: Path) -> None:
    volume = make()
    volume.pwrite(fill("a"), 0)
    clone = cloned(volume.snapshot("s"), "c")
    with reopened(volume, tmp_path / "cut") as other:
        assert other.heads() == ["live", "c"]
        with other.open_head("c") as found:
            assert found.pread(BLOCK, 0) == fill("a")
        assert other.check().problems == []
    clone.pwrite(fill("b"), 0)
    clone.flush()
    with reopened(volume, tmp_path / "cut") as other, other.open_head("c") as found:
        assert (found.pread(1, 0), other.pread(1, 0)) == (b"b", b"a")
    clone.close()
    volume.delete_head("c")
    with reopened(volume, tmp_path / "cut") as other:
        assert other.heads() == ["live"]
        assert other.check().problems == []


def test_a_clone_costs_the_same_whatever_the_size(make: Callable[..., Volume]) -> None:
    costs = []
    for size in (1 << 24, 1 << 40):
        volume = make(size)
        for block in range(0, size // BLOCK, size // BLOCK // 64):
            volume.pwrite(fill("a"), block * BLOCK)
        snapshot = volume.snapshot("s")
        volume.engine.checkpoint()
        before = volume.stats()
        snapshot.clone("c").close()
        after = volume.stats()
        costs.append([after[name] - before[name] for name in ("log_used_bytes", "barriers", "nodes_dirty")])
    assert costs[0] == costs[1]
    assert costs[0][1:] == [1, 0]


def test_clones_have_snapshots_and_clones_of_their_own(make: Callable[..., Volume], tmp_path: Path) -> None:
    volume = make()
    volume.pwrite(fill("a", 4), 0)
    first = cloned(volume.snapshot("s"), "first")
    first.pwrite(fill("b"), 0)
    taken = first.snapshot("t", metadata={"of": "first"})
    second = cloned(taken, "second")
    second.pwrite(fill("c"), BLOCK)
    first.pwrite(fill("d"), BLOCK)
    assert second.pread(3 * BLOCK, 0) == fill("b") + fill("c") + fill("a")
    assert first.pread(3 * BLOCK, 0) == fill("b") + fill("d") + fill("a")
    assert [each.name for each in volume.snapshots()] == ["s", "t"]
    assert [each.name for each in second.snapshots()] == ["s", "t"]
    with pytest.raises(ExistsError):
        volume.snapshot("t")
    volume.close()
    with Volume.open(volume.path) as volume, volume.open_head("second") as second:
        assert volume.heads() == ["live", "first", "second"]
        assert volume.get_snapshot("t").metadata == {"of": "first"}
        assert second.pread(2 * BLOCK, 0) == fill("b") + fill("c")
        assert volume.check().problems == []


def test_a_clone_is_resized_rolled_back_discarded_and_compacted_alone(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a", 64), 0)
    snapshot = volume.snapshot("s")
    clone = cloned(snapshot, "c")
    clone.resize(80 * BLOCK)
    clone.pwrite(fill("b"), 79 * BLOCK)
    kept = clone.snapshot("kept")
    clone.resize(10 * BLOCK + 512)
    clone.discard(0, 2 * BLOCK)
    clone.write_zeroes(2 * BLOCK + 5, 10)
    assert clone.size == 10 * BLOCK + 512
    assert clone.pread(3 * BLOCK, 0) == bytes(2 * BLOCK) + b"a" * 5 + bytes(10) + b"a" * (BLOCK - 15)
    assert (volume.size, snapshot.size, kept.size) == (64 * BLOCK, 64 * BLOCK, 80 * BLOCK)
    replaced = clone.rollback(kept)
    assert (replaced.size, clone.size, clone.pread(1, 79 * BLOCK)) == (10 * BLOCK + 512, 80 * BLOCK, b"b")
    clone.compact()
    assert volume.pread(64 * BLOCK, 0) == snapshot.pread(64 * BLOCK, 0) == fill("a", 64)


# -- what is refused ---------------------------------------------------------------------------------------------------
def test_what_cannot_be_cloned_opened_or_deleted_says_why(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a"), 0)
    snapshot, anchor = volume.snapshot("s"), volume.snapshot("anchor")
    anchor.to_anchor()
    clone = cloned(snapshot, "c")
    for error, call in (
        (ExistsError, lambda: snapshot.clone("c")),
        (ExistsError, lambda: snapshot.clone("live")),
        (OutOfRangeError, lambda: snapshot.clone("")),
        (OutOfRangeError, lambda: snapshot.clone("a/b")),
        (AnchorError, lambda: anchor.clone("d")),
        (BusyError, lambda: volume.open_head("c")),
        (BusyError, lambda: volume.open_head("live")),
        (NotFoundError, lambda: volume.open_head("nobody")),
        (BusyError, lambda: volume.delete_head("c")),
        (BusyError, lambda: volume.delete_head("live")),
        (NotFoundError, lambda: volume.delete_head("nobody")),
        (BusyError, volume.flatten),
    ):
        with pytest.raises(error):
            call()
    for call in (snapshot.delete, snapshot.to_anchor, snapshot.require_deletable):
        with pytest.raises(BusyError, match="clone 'c' stands on it"):
            call()
    clone.snapshot("of the clone").delete()
    clone.close()
    volume.delete_head("c")
    snapshot.delete()
    with pytest.raises(NotFoundError):
        snapshot.clone("e")
    volume.close()
    with Volume.open(volume.path, read_only=True) as volume, pytest.raises(NotFoundError):
        volume.open_head("c")


def test_there_are_255_clones_at_most(make: Callable[..., Volume]) -> None:
    volume = make(4 * BLOCK)
    volume.pwrite(fill("a"), 0)
    snapshot = volume.snapshot("s")
    for number in range(255):
        snapshot.clone(f"c{number}").close()
    with pytest.raises(OutOfRangeError):
        snapshot.clone("one more")
    volume.delete_head("c17")
    with snapshot.clone("one more") as clone:
        clone.pwrite(fill("b"), 0)
    volume.close()
    with Volume.open(volume.path) as volume:
        assert len(volume.heads()) == 256
        with volume.open_head("one more") as clone:
            assert clone.pread(1, 0) == b"b"
        assert volume.check().problems == []


def test_the_origin_of_a_clone_is_not_given_up_for_space(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.policy(when_full="give-up", snapshot_bytes_max=4 * BLOCK)
    volume.pwrite(fill("a", 8), 0)
    clone = cloned(volume.snapshot("origin"), "c")
    for letter in "bcd":
        volume.pwrite(fill(letter, 3), 0)
        volume.snapshot(letter)
    assert "origin" in [each.name for each in volume.snapshots()]
    assert clone.pread(8 * BLOCK, 0) == fill("a", 8)


def test_who_only_reads_opens_clones_and_writes_nothing(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a"), 0)
    with volume.snapshot("s").clone("c") as clone:
        clone.pwrite(fill("b"), 0)
    with Volume.open(volume.path, read_only=True) as reader:  # beside its owner: snapshots only
        assert reader.heads() == ["live", "c"]
        with pytest.raises(BusyError):
            reader.open_head("c")
    volume.close()
    with Volume.open(volume.path, read_only=True) as reader, reader.open_head("c") as clone:
        assert (clone.pread(1, 0), reader.pread(1, 0)) == (b"b", b"a")
        with pytest.raises(ReadOnlyError):
            clone.pwrite(b"x", 0)
        with pytest.raises(ReadOnlyError):
            reader.delete_head("c")


# -- handles -----------------------------------------------------------------------------------------------------------
def test_a_closed_handle_stays_closed_when_the_clone_is_opened_again(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a"), 0)
    old = cloned(volume.snapshot("s"), "c")
    old.close()
    old.close()
    assert old.closed and not volume.closed
    new = volume.open_head("c")
    for call in (
        lambda: old.pread(1, 0), lambda: old.pread_into(bytearray(1), 0), lambda: old.pwrite(b"x", 0), old.flush,
        lambda: old.discard(0, BLOCK), lambda: old.snapshot("t"), lambda: old.rollback("s"), old.heads, old.check,
        lambda: old.resize(BLOCK), old.allocated_extents, lambda: old.changed_extents("s"), old.compact, old.snapshots,
    ):  # fmt: skip
        with pytest.raises(ClosedError):
            call()
    assert new.pread(1, 0) == b"a"
    volume.close()
    assert new.closed
    new.close()
    with pytest.raises(ClosedError):
        new.pread(1, 0)


def test_a_handle_dropped_open_warns_and_loses_nothing(make: Callable[..., Volume]) -> None:
    volume = make()
    clone = volume.snapshot("s").clone("c")
    clone.pwrite(fill("b"), 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del clone
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]
    with volume.open_head("c") as clone:
        assert clone.pread(1, 0) == b"b"


# -- space -------------------------------------------------------------------------------------------------------------
def test_deleting_a_clone_gives_back_what_it_alone_had(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a", 8), 0)
    snapshot = volume.snapshot("s")
    before = volume.du().used_bytes
    clone = cloned(snapshot, "c")
    clone.pwrite(fill("b", 5), 0)
    taken = clone.snapshot("t")
    clone.pwrite(fill("c", 2), 0)
    space = volume.du()
    assert (space.clones_bytes, space.used_bytes) == (2 * BLOCK, 15 * BLOCK)
    clone.close()
    volume.delete_head("c")
    assert volume.du().used_bytes == 13 * BLOCK
    assert taken.pread(5 * BLOCK, 0) == fill("b", 5)
    taken.delete()
    assert volume.du().used_bytes == before


def test_what_a_clone_froze_stays_sealed_when_the_clone_is_gone(make: Callable[..., Volume]) -> None:
    with make() as volume:
        volume.pwrite(b"a" * volume.block_size, 0)
        with volume.snapshot("origin").clone("lab") as lab:
            lab.pwrite(b"b" * volume.block_size, 0)
            of_the_lab = lab.snapshot("of the lab")
        volume.seal()
        volume.delete_head("lab")
        assert volume.check().problems == []
        assert of_the_lab.verify().counts["verified"] == 1
        of_the_lab.delete()
        assert volume.check().problems == []


def test_a_deleted_branch_point_is_reclaimed_when_one_line_is_left(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a", 8), 0)
    point = volume.snapshot("point")
    clone = cloned(point, "c")
    clone.pwrite(fill("b", 4), 0)
    own = clone.snapshot("own")
    clone.rollback(own)  # stands on its own snapshot now, so the branch point is free to go
    volume.pwrite(fill("c", 2), 0)
    point.delete()
    assert volume.stats()["reclaims_pending"] == 1
    assert clone.pread(8 * BLOCK, 0) == fill("b", 4) + fill("a", 4)
    assert volume.check().problems == []
    clone.close()
    volume.delete_head("c")
    for snapshot in volume.snapshots():
        snapshot.delete()
    assert volume.stats()["reclaims_pending"] == 0
    assert volume.du().used_bytes == 8 * BLOCK
    assert volume.pread(8 * BLOCK, 0) == fill("c", 2) + fill("a", 6)


# -- changes -----------------------------------------------------------------------------------------------------------
def blocks_of(rows: Any) -> set[int]:
    return {at // BLOCK for offset, length in rows.tolist() for at in range(offset, offset + length, BLOCK)}


@pytest.mark.parametrize("seed", range(4))
def test_changes_between_all_heads_and_snapshots_are_exact(make: Callable[..., Volume], seed: int) -> None:
    """Against brute force: every block has in each version the number of the write that it came from."""
    rng, volume = random.Random(seed), make(48 * BLOCK)
    heads: dict[str, Any] = {"live": volume}
    content: dict[str, list[int]] = {"live": [0] * 48}
    snapshots: dict[str, list[int]] = {}
    for number in range(1, 90):
        name = rng.choice(list(heads))
        pick = rng.random()
        if pick < 0.7 or not snapshots:
            block = rng.randrange(48)
            heads[name].pwrite(number.to_bytes(2, "little") * (BLOCK // 2), block * BLOCK)
            content[name][block] = number
        elif pick < 0.75:
            target = rng.choice(list(snapshots))
            snapshots[heads[name].rollback(target).name] = content[name]
            content[name] = list(snapshots[target])
        elif pick < 0.82 and len(heads) < 5:
            origin = rng.choice(list(snapshots))
            heads[f"c{number}"] = cloned(volume.get_snapshot(origin), f"c{number}")
            content[f"c{number}"] = list(snapshots[origin])
        if (pick >= 0.82 or not snapshots) and len(snapshots) < 12:
            heads[name].snapshot(f"s{number}")
            snapshots[f"s{number}"] = list(content[name])
    assert len(heads) > 2
    versions = {**{name: (volume.get_snapshot(name), snapshots[name]) for name in snapshots},
                **{name: (heads[name], content[name]) for name in heads}}  # fmt: skip
    for target, now in versions.values():
        assert target.pread(48 * BLOCK, 0) == b"".join(each.to_bytes(2, "little") * (BLOCK // 2) for each in now)
        for base, then in snapshots.items():
            wanted = {block for block in range(48) if now[block] != then[block]}
            assert blocks_of(target.changed_extents(base)) == wanted


def test_an_anchor_off_the_line_of_a_clone_needs_a_full_backup(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.pwrite(fill("a", 2), 0)
    base = volume.snapshot("base")
    clone = cloned(base, "c")
    volume.pwrite(fill("b"), 0)
    side = volume.snapshot("side")
    clone.pwrite(fill("c"), BLOCK)
    own = clone.snapshot("own")
    clone.rollback(own)
    base.to_anchor()
    side.to_anchor()
    assert clone.changed_extents(base).tolist() == [[BLOCK, BLOCK]]
    assert volume.changed_extents(side).tolist() == []
    with pytest.raises(FullBackupRequired):
        clone.changed_extents(side)


# -- threads -----------------------------------------------------------------------------------------------------------
def test_heads_are_written_and_snapshotted_side_by_side(make: Callable[..., Volume]) -> None:
    """Each writer counts up over its own blocks; a snapshot holds a prefix of what its head was written."""
    volume = make(64 * BLOCK)
    volume.pwrite(bytes(64 * BLOCK), 0)
    origin = volume.snapshot("origin")
    heads = [volume, cloned(origin, "one"), cloned(origin, "two")]
    taken: list[tuple[Any, bytes]] = []
    problems: list[BaseException] = []

    def write(head: Volume) -> None:
        try:
            for number in range(1, 200):
                head.pwrite(number.to_bytes(8, "little") * (BLOCK // 8), number % 64 * BLOCK)
        except BaseException as error:
            problems.append(error)

    def snap(head: Volume) -> None:
        try:
            for number in range(8):
                snapshot = head.snapshot(f"{head.head} {number}")
                taken.append((snapshot, snapshot.pread(64 * BLOCK, 0)))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(head,)) for head in heads for work in (write, snap)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert volume.check().problems == []
    volume.engine.checkpoint()
    for snapshot, content in taken:
        assert snapshot.pread(64 * BLOCK, 0) == content
        numbers = [int.from_bytes(content[at : at + 8], "little") for at in range(0, 64 * BLOCK, BLOCK)]
        newest = max(numbers)
        assert numbers == [max((n for n in range(1, newest + 1) if n % 64 == block), default=0) for block in range(64)]
    wanted = [max(n for n in range(1, 200) if n % 64 == block) for block in range(64)]
    for head in heads:
        assert [int.from_bytes(head.pread(8, block * BLOCK), "little") for block in range(64)] == wanted
    assert origin.pread(64 * BLOCK, 0) == bytes(64 * BLOCK)


# -- a throw-away clone ------------------------------------------------------------------------------------------------
@pytest.mark.needs("mkfs.ext4", "e2fsck", "debugfs")
def test_a_file_system_is_repaired_on_a_clone_and_the_snapshot_stays_as_it_was(
    make: Callable[..., Volume], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    (tmp_path / "letter").write_bytes(os.urandom(100_000))
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    script = f"write {tmp_path / 'letter'} letter\nfreeb 1500 200\nset_super_value free_blocks_count 1\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=script.encode(), check=True, capture_output=True)
    damaged = image.read_bytes()
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False).returncode != 0
    volume = make(8 << 20)
    volume.pwrite(damaged, 0)
    snapshot = volume.snapshot("as found")
    clone = cloned(snapshot, "repair")
    clone.flatten(tmp_path / "repaired")
    subprocess.run(["e2fsck", "-fy", tmp_path / "repaired"], capture_output=True, check=False)
    repaired = (tmp_path / "repaired").read_bytes()
    for offset in range(0, len(repaired), BLOCK):
        if repaired[offset : offset + BLOCK] != damaged[offset : offset + BLOCK]:
            clone.pwrite(repaired[offset : offset + BLOCK], offset)
    clone.flatten(tmp_path / "again")
    assert subprocess.run(["e2fsck", "-fn", tmp_path / "again"], capture_output=True, check=False).returncode == 0
    read = subprocess.run(["debugfs", "-R", "cat letter", tmp_path / "again"], capture_output=True, check=True).stdout
    assert read == (tmp_path / "letter").read_bytes()
    assert snapshot.pread(8 << 20, 0) == volume.pread(8 << 20, 0) == damaged
    clone.close()
    volume.delete_head("repair")
    assert volume.check().problems == []
