"""The space of snapshots: what is said before a delete is what the delete gives back, to the block.

The truth is the checker's: it reads the file and knows nothing of these walks.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowengine import Snapshot, Volume
from cowengine.engine import usage
from cowengine.errors import ClosedError, CorruptionError, NotFoundError
from cowengine.format import LINEAGE_EMPTY

BLOCK = 4096
MakeVolume = Callable[..., Volume]


@pytest.fixture
def make_volume(tmp_path: Path) -> Iterator[MakeVolume]:
    made: list[Volume] = []

    def make(blocks: int = 2048, *, block_size: int = BLOCK) -> Volume:
        path = tmp_path / f"{len(made)}.cow"
        made.append(Volume.create(path, blocks * block_size, block_size=block_size, background=False))
        return made[-1]

    yield make
    for volume in made:
        volume.close()


def blocks_used(volume: Volume) -> int:
    report = volume.check()
    assert report.problems == []
    return report.counts["blocks"] * volume.block_size


class History:
    """A volume, and which write each block of each of its states comes from."""

    def __init__(self, volume: Volume, chance: random.Random) -> None:
        self.volume = volume
        self.chance = chance
        self.serial = 0
        self.live: dict[int, int] = {}  # block -> number of the write
        self.states: dict[int, dict[int, int]] = {}  # of snapshots, hidden ones included

    def write(self) -> None:
        block = self.volume.block_size
        count = self.chance.choice((1, 1, 3, 40, 300))
        first = self.chance.randrange(self.volume.size // block - count)
        for at in range(first, first + count):
            self.serial += 1
            self.live[at] = self.serial
        self.volume.pwrite(bytes([self.serial % 255 + 1]) * (count * block), first * block)

    def discard(self) -> None:
        block = self.volume.block_size
        count = self.chance.choice((1, 20, 500))
        first = self.chance.randrange(self.volume.size // block - count)
        for at in range(first, first + count):
            self.live.pop(at, None)
        self.volume.discard(first * block, count * block)

    def snapshot(self) -> None:
        self.serial += 1
        taken = self.volume.snapshot(f"s{self.serial}")
        self.states[taken.id] = dict(self.live)

    def rollback(self) -> None:
        if (target := self.pick()) is not None:
            self.states[self.volume.rollback(target).id] = dict(self.live)
            self.live = dict(self.states[target.id])

    def checkpoint(self) -> None:
        self.volume.engine.checkpoint()

    def delete(self) -> None:
        """What the snapshot says is what comes back."""
        if (target := self.pick()) is None:
            return
        promised = target.space().freed_by_delete_bytes
        before = blocks_used(self.volume)
        target.delete()
        assert before - blocks_used(self.volume) == promised
        self.forget()

    def anchor(self) -> None:
        """Gives back what a delete would; then there is no more to give back."""
        if (target := self.pick()) is None:
            return
        promised = target.space().freed_by_delete_bytes
        before = blocks_used(self.volume)
        target.to_anchor()
        assert before - blocks_used(self.volume) == promised
        assert target.space().freed_by_delete_bytes == 0
        self.forget()

    def forget(self) -> None:
        """States that nobody holds any more."""
        for number in list(self.states):
            record = self.volume.engine.lineage.get(number)
            if record is None or record.flags & LINEAGE_EMPTY:
                del self.states[number]

    def pick(self) -> Snapshot | None:
        found = [snapshot for snapshot in self.volume.snapshots() if not snapshot.is_anchor]
        return self.chance.choice(found) if found else None

    def compare(self) -> None:
        """Each snapshot's exclusive blocks are those of writes that no other state holds; the sums are right."""
        block = self.volume.block_size
        holders: dict[int, int] = {}
        for state in (self.live, *self.states.values()):
            for number in state.values():
                holders[number] = holders.get(number, 0) + 1

        def alone(state: dict[int, int]) -> int:
            return sum(holders[number] == 1 for number in state.values()) * block

        for snapshot in self.volume.snapshots():
            assert snapshot.space().exclusive_bytes == alone(self.states.get(snapshot.id, {}))
        found = [snapshot for snapshot in self.volume.snapshots() if not snapshot.is_anchor]
        space = self.volume.du()
        hidden = set(self.states) - {snapshot.id for snapshot in found}
        assert space.used_bytes == len(holders) * block == blocks_used(self.volume)
        assert space.live_bytes == alone(self.live)
        assert space.snapshots_bytes == sum(alone(self.states[snapshot.id]) for snapshot in found)
        assert space.deleted_bytes == sum(alone(self.states[number]) for number in hidden)
        assert space.shared_bytes == sum(count > 1 for count in holders.values()) * block


@pytest.mark.parametrize("seed", range(8))
def test_what_a_snapshot_says_is_what_its_delete_gives_back(make_volume: MakeVolume, seed: int) -> None:
    chance = random.Random(seed)
    history = History(make_volume(block_size=BLOCK if seed % 2 else 4 * BLOCK), chance)
    steps = [history.write] * 6 + [history.snapshot] * 3 + [history.delete, history.anchor]
    steps += [history.discard, history.rollback, history.checkpoint]
    for _ in range(60):
        chance.choice(steps)()
        if chance.random() < 0.15:
            history.compare()
    history.compare()
    while history.pick() is not None:
        history.delete()
    history.compare()


def test_a_branch_point_gives_back_nothing_until_one_state_is_left_on_it(make_volume: MakeVolume) -> None:
    volume = make_volume()
    volume.pwrite(b"a" * 10 * BLOCK, 0)
    point = volume.snapshot("point")
    volume.pwrite(b"b" * 4 * BLOCK, 0)
    other = volume.rollback(point)
    volume.pwrite(b"c" * 2 * BLOCK, 0)
    assert point.space() == usage.SnapshotSpace(2 * BLOCK, 0, 0)
    assert (other.space().exclusive_bytes, other.space().freed_by_delete_bytes) == (4 * BLOCK, 4 * BLOCK)
    point.delete()
    assert volume.du() == usage.VolumeSpace(16 * BLOCK, 2 * BLOCK, 4 * BLOCK, 2 * BLOCK, 8 * BLOCK, 0)
    # What was rewritten on both sides goes with the last state but one that stands on the deleted point.
    assert (other.space().exclusive_bytes, other.space().freed_by_delete_bytes) == (4 * BLOCK, 6 * BLOCK)
    other.delete()
    assert blocks_used(volume) == 10 * BLOCK


def test_the_nodes_of_the_map_are_counted_as_well(make_volume: MakeVolume) -> None:
    volume = make_volume(100_000)
    volume.pwrite(b"a" * BLOCK * 4000, 0)
    volume.snapshot("base")
    for number in range(0, 4000, 300):
        volume.pwrite(b"b" * BLOCK, number * BLOCK)
    middle = volume.snapshot("middle", metadata={"a": "blob"})
    for number in range(0, 4000, 500):
        volume.pwrite(b"c" * BLOCK, number * BLOCK)
    assert middle.space().exclusive_metadata_bytes == 0  # nothing of it is written yet
    volume.engine.checkpoint()
    promised = middle.space().exclusive_metadata_bytes
    before = volume.check().counts["nodes"]
    middle.delete()
    volume.engine.checkpoint()
    # The last level but one and the leaves of eight blocks differ, and the blob is no node.
    assert promised == (before - volume.check().counts["nodes"] + 1) * BLOCK
    assert promised >= 9 * BLOCK


def test_what_reclaim_has_yet_to_do_counts_as_done(make_volume: MakeVolume) -> None:
    """A crash may leave deleted snapshots for a later open: they are not whom the others share with."""
    volume = make_volume()
    for number in range(12):
        volume.pwrite(bytes([number + 1]) * BLOCK * (number + 1), number * BLOCK)
        volume.snapshot(f"s{number}")
    volume.rollback("s5")
    for name in ("s2", "s3", "s5", "s6", "s11"):
        volume.engine.delete(volume.get_snapshot(name).id)
    early = {snapshot.name: snapshot.space() for snapshot in volume.snapshots()}, volume.du()
    volume.reclaim()
    late = {snapshot.name: snapshot.space() for snapshot in volume.snapshots()}, volume.du()
    assert [space.exclusive_bytes for space in early[0].values()] == [s.exclusive_bytes for s in late[0].values()]
    assert [space.freed_by_delete_bytes for space in early[0].values()] == [
        space.freed_by_delete_bytes for space in late[0].values()
    ]
    assert early[1].used_bytes == late[1].used_bytes == blocks_used(volume)
    assert early[1].deleted_bytes == late[1].deleted_bytes


def test_the_cost_follows_the_change_and_the_memory_is_bounded(make_volume: MakeVolume) -> None:
    volume = make_volume(1 << 18)
    for number in range(0, 1 << 18, 256):  # a leaf of its own for each
        volume.pwrite(b"a" * BLOCK, number * BLOCK)
    volume.snapshot("base")
    for number in range(1024):
        volume.pwrite(b"b" * BLOCK, number * 256 * BLOCK)
    volume.snapshot("all")
    volume.pwrite(b"c" * BLOCK, 0)
    path = volume.path
    volume.close()
    with Volume.open(path, read_only=True, background=False, cache_size=1 << 20) as cold:
        assert cold.get_snapshot("all").space().exclusive_bytes == BLOCK
        assert cold.stats()["nodes_in_memory"] < 16
        most = 0
        step = usage.ExclusiveWalk.step

        def counting(walk: Any, nodes: int) -> bool:
            nonlocal most
            done = step(walk, nodes)
            most = max(most, cold.stats()["nodes_in_memory"])
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(usage, "ExclusiveWalk", proxy(counting))
            assert cold.get_snapshot("base").space().exclusive_bytes == 1024 * BLOCK
        # The two maps that are walked have 1,033 nodes each.
        assert 200 < most < cold.engine.cache_nodes + 2 * usage.NODES_A_STEP + 16 < 1000


def proxy(step: Callable[[Any, int], bool]) -> Any:
    """A walk whose steps are taken by a function."""

    class Proxy:
        def __init__(self, *arguments: Any) -> None:
            self.walk = real(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.walk, name)

        def step(self, nodes: int) -> bool:
            return step(self.walk, nodes)

    real = usage.ExclusiveWalk
    return Proxy


def test_others_take_and_delete_snapshots_between_two_steps(
    make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for more than a step, and the answer is that of the lineage as it is at the end."""
    volume = make_volume(1 << 16)
    for number in range(0, 1 << 16, 256):
        volume.pwrite(b"a" * BLOCK, number * BLOCK)
    target = volume.snapshot("target")
    for number in range(0, 1 << 16, 256):
        volume.pwrite(b"b" * BLOCK, number * BLOCK)
    last = volume.snapshot("last")
    late: list[str] = []

    def change() -> None:
        if not late:
            late.append("taken")
            volume.pwrite(b"c" * BLOCK, 0)
            volume.snapshot("late")
            last.delete()

    def step(walk: Any, nodes: int) -> bool:
        done = bool(real(walk, 16))
        if not done:
            thread = threading.Thread(target=change)
            thread.start()
            thread.join(60)
            assert not thread.is_alive(), "a snapshot waits for the whole walk"
        return done

    real = usage.ExclusiveWalk.step
    monkeypatch.setattr(usage, "ExclusiveWalk", proxy(step))
    space = target.space()
    assert late
    before = blocks_used(volume)
    target.delete()
    assert before - blocks_used(volume) == space.freed_by_delete_bytes == 256 * BLOCK


def test_an_answer_is_kept_until_a_neighbour_changes(make_volume: MakeVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_volume()
    snapshots = []
    for number in range(6):
        volume.pwrite(bytes([number + 1]) * BLOCK, number % 2 * BLOCK)
        snapshots.append(volume.snapshot(f"s{number}"))
    volume.engine.checkpoint()
    spaces = [snapshot.space() for snapshot in snapshots]
    walks = []
    real = usage.ExclusiveWalk
    monkeypatch.setattr(usage, "ExclusiveWalk", lambda *arguments: walks.append(arguments) or real(*arguments))
    assert [snapshot.space() for snapshot in snapshots] == spaces
    assert walks == []
    snapshots[2].delete()
    assert snapshots[0].space() == spaces[0]
    assert walks == []
    assert snapshots[1].space().exclusive_bytes == BLOCK
    assert len(walks) == 1
    volume.pwrite(b"new" * 1000, 0)
    assert snapshots[5].space().exclusive_bytes == spaces[5].exclusive_bytes + (BLOCK if 5 % 2 == 0 else 0)


def test_a_whole_run_costs_no_look_at_its_blocks(make_volume: MakeVolume) -> None:
    volume = make_volume(1 << 20)
    for offset in range(0, 64 << 20, 1 << 20):
        volume.pwrite(b"a" * (1 << 20), offset)
    only = volume.snapshot("only")
    volume.discard(0, volume.size)
    volume.snapshot("empty")
    volume.engine.checkpoint()
    assert only.space().freed_by_delete_bytes == 64 << 20
    assert volume.du().live_bytes == 0


def test_what_is_gone_or_closed_says_so(make_volume: MakeVolume) -> None:
    volume = make_volume()
    volume.pwrite(b"a", 0)
    one, two = volume.snapshot("one"), volume.snapshot("two")
    one.delete()
    with pytest.raises(NotFoundError):
        one.space()
    volume.close()
    with pytest.raises(ClosedError):
        two.space()
    with pytest.raises(ClosedError):
        volume.du()


def test_a_damaged_map_is_an_error_and_no_number(make_volume: MakeVolume) -> None:
    volume = make_volume(1 << 16)
    for number in range(0, 1 << 16, 512):
        volume.pwrite(b"a" * BLOCK, number * BLOCK)
    volume.snapshot("one")
    volume.pwrite(b"b" * BLOCK, 0)
    volume.snapshot("two")
    path = Path(volume.path)
    volume.close()
    with Volume.open(path, read_only=True) as intact:
        root = int.from_bytes(intact.engine.lineage.root(1).pointer[:6], "little")
    raw = bytearray(path.read_bytes())
    raw[root * BLOCK + 100] ^= 1
    path.write_bytes(raw)
    with Volume.open(path, read_only=True) as damaged, pytest.raises(CorruptionError):
        damaged.get_snapshot("one").space()


# -- beside others that delete ----------------------------------------------------------------------------------------
@pytest.fixture
def three(make_volume: MakeVolume) -> Volume:
    """A volume whose three snapshots hold ten blocks each, alone."""
    volume = make_volume()
    for number in range(3):
        volume.pwrite(bytes([number]) * 10 * BLOCK, 0)
        volume.snapshot(f"s{number}")
    volume.pwrite(b"live" * BLOCK, 0)
    volume.pwrite(b"l" * 10 * BLOCK, 0)
    return volume


def test_a_snapshot_that_goes_before_its_turn_counts_for_nothing(
    three: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, gone = usage._member, three.get_snapshot("s2").id

    def behind_a_delete(engine: Any, number: int) -> Any:
        if number == gone and engine.lineage.get(number) is not None:
            three.get_snapshot("s2").delete()
        return member(engine, number)

    monkeypatch.setattr(usage, "_member", behind_a_delete)
    space = usage.volume_space(three.engine)
    assert space.snapshots_bytes == 20 * BLOCK and space.live_bytes == 10 * BLOCK
    assert space.used_bytes == 30 * BLOCK == blocks_used(three)


def test_a_walk_that_another_lineage_overtook_is_done_again(three: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with its neighbour gone does a snapshot hold alone what both had."""
    amount, walked = usage._amount, list[Any]()
    three.get_snapshot("s1").delete()
    shared = three.snapshot("shared")

    def behind_a_delete(engine: Any, part: Any) -> Any:
        found = amount(engine, part)
        walked.append(part)
        if len(walked) == 1:
            shared.delete()
        return found

    monkeypatch.setattr(usage, "_amount", behind_a_delete)
    space = three.get_snapshot("s2").space()
    assert space.exclusive_bytes == 10 * BLOCK
    assert len(walked) > len(set(walked)) or len(walked) > 2


def test_no_more_amounts_are_kept_than_there_is_room_for(three: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "KEPT_MAX", 2)
    before = usage.volume_space(three.engine)
    assert len(three.engine.amounts) == 2
    assert usage.volume_space(three.engine) == before
