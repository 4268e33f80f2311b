"""What a volume does when its file system is full: the policy, the losses it leads to, and who is asked for room."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_disk import EXT4, MIB, XFS, Disk, QuotaDisk

from cowengine import Store, Volume
from cowengine.errors import BusyError, NoSpaceError, NotFoundError, OutOfRangeError

SIZE = MIB
BLOCK = 4096
RANDOM = random.Random(11)
DISKS = pytest.mark.parametrize("disk", ["quota", EXT4, XFS], indirect=True)


Made = tuple[Volume, dict[str, bytes]]


@pytest.fixture
def made(disk: Disk) -> Iterator[Made]:
    """A volume with twelve snapshots s0, s1, ... that alone hold a quarter of it each, and what they hold."""
    volume = Volume.create(disk.path / "v", SIZE, io=disk.io, background=False)
    contents = {}
    for number in range(12):
        volume.pwrite(RANDOM.randbytes(SIZE // 4), number % 4 * (SIZE // 4))
        volume.snapshot(f"s{number}")
        contents[f"s{number}"] = volume.pread(SIZE, 0)
    yield volume, contents
    volume.close()


def names(volume: Volume) -> list[str]:
    return [snapshot.name for snapshot in volume.snapshots()]


def check_contents(volume: Volume, contents: dict[str, bytes]) -> None:
    for snapshot in volume.snapshots():
        assert snapshot.pread(SIZE, 0) == contents[snapshot.name]


@DISKS
def test_the_oldest_go_first_but_for_held_ones_and_the_newest(
    disk: Disk, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    volume, contents = made
    volume.policy(when_full="give-up", keep_newest=4)
    volume.get_snapshot("s1").hold("audit")
    gone = volume.get_snapshot("s0")
    disk.fill()
    with caplog.at_level(logging.WARNING, "cowengine"), pytest.raises(NoSpaceError):
        for number in range(100):
            volume.pwrite(data := RANDOM.randbytes(SIZE // 4), number % 4 * (SIZE // 4))
            assert volume.pread(SIZE // 4, number % 4 * (SIZE // 4)) == data
            volume.snapshot(f"t{number}")
            contents[f"t{number}"] = volume.pread(SIZE, 0)
            assert "s1" in names(volume)
            lost = [loss.name for loss in volume.given_up()]
            assert lost == [name for name in contents if name != "s1"][: len(lost)]
            assert names(volume) == ["s1", *[name for name in contents if name != "s1"][len(lost) :]]
            if len(lost) > 6:
                volume.policy(when_full="fail")
    with pytest.raises(NotFoundError):
        gone.pread(1, 0)
    losses = volume.given_up()
    assert [loss.name for loss in losses][:2] == ["s0", "s2"] and losses[0].change_id == gone.change_id
    assert volume.stats()["snapshots_given_up"] == len(losses) == caplog.text.count("gave up snapshot")
    check_contents(volume, contents)
    volume.close()
    with Volume.open(disk.path / "v", io=disk.io, background=False) as volume:  # on the full disk
        assert volume.given_up() == losses
        assert volume.policy() == ("fail", 4, 0)
        check_contents(volume, contents)
        report = volume.check()
        assert report.ok, report.problems


def test_the_floor_is_kept_and_then_the_write_fails(disk: Disk, made: Made) -> None:
    volume, contents = made
    volume.policy(when_full="give-up", keep_newest=3)
    disk.fill()
    with pytest.raises(NoSpaceError):
        for _ in range(100):
            volume.snapshot("x")  # held by nobody, deleted by its owner: what must be kept are the newest three
            volume.pwrite(RANDOM.randbytes(SIZE), 0)
            volume.get_snapshot("x").delete()
            disk.fill()
    assert names(volume)[:2] == ["s10", "s11"]
    check_contents(volume, {**contents, "x": volume.get_snapshot("x").pread(SIZE, 0)})
    disk.clear()
    assert volume.check().ok
    volume.close()


def test_without_a_policy_nothing_is_given_up(disk: Disk, made: Made) -> None:
    volume, contents = made
    disk.fill()
    with pytest.raises(NoSpaceError):
        for number in range(100):
            volume.pwrite(RANDOM.randbytes(SIZE), 0)
            volume.snapshot(f"t{number}")
            contents[f"t{number}"] = volume.pread(SIZE, 0)
    assert names(volume) == list(contents) and volume.given_up() == []
    check_contents(volume, contents)


def held_bytes(volume: Volume) -> int:
    """What snapshots hold and the live volume does not reach: all that is used, less what is mapped."""
    return volume.du().used_bytes - int(volume.allocated_extents()[:, 1].sum())


def test_what_snapshots_hold_is_counted_through_all_that_changes_it(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        space = volume.engine.space
        rng = random.Random(5)
        assert space.held_bytes() == 0
        for number in range(120):
            offset = rng.randrange(SIZE // BLOCK) * BLOCK
            length = min(rng.randrange(1, 40) * BLOCK, SIZE - offset)
            if number % 5 == 0:
                volume.discard(offset, length)
            else:
                volume.pwrite(rng.randbytes(length), offset)
            if number % 4 == 0:
                volume.snapshot(f"s{number}")
            if number % 7 == 0:
                rng.choice(volume.snapshots()).delete()
            if number == 60:
                volume.rollback(volume.snapshots()[-2])
            assert space.held_bytes() == held_bytes(volume), number


def test_a_limit_on_what_snapshots_hold(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        volume.policy(snapshot_bytes_max=SIZE)
        with pytest.raises(NoSpaceError, match="limit of"):
            for number in range(10):
                volume.pwrite(RANDOM.randbytes(SIZE // 2), 0)
                volume.snapshot(f"s{number}")
        assert names(volume) == ["s0", "s1", "s2"]  # a fourth one comes after three overwrites of half the volume
        volume.policy(when_full="give-up", keep_newest=2)
        volume.snapshot("next")
        assert [loss.name for loss in volume.given_up()] == ["s0"]
        assert held_bytes(volume) <= SIZE
        for number in range(20):
            volume.pwrite(RANDOM.randbytes(SIZE // 2), SIZE // 2)
            volume.snapshot(f"t{number}")
            assert held_bytes(volume) <= SIZE
        assert names(volume)[-1] == "t19" and volume.check().ok
    with Volume.open(tmp_path / "v") as volume:
        assert volume.policy() == ("give-up", 2, SIZE)
        assert volume.stats()["snapshots_given_up"] == len(volume.given_up()) > 5


def test_the_limit_counts_for_sets_too(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store, store.create_volume("a", SIZE) as volume:
        volume.policy(snapshot_bytes_max=SIZE // 2)
        with pytest.raises(NoSpaceError, match="limit of"):
            for number in range(5):
                volume.pwrite(RANDOM.randbytes(SIZE // 2), 0)
                store.snapshot(["a"], f"set {number}")
        assert len(store.snapshot_sets()) == 2
        assert store.check().ok


@pytest.mark.parametrize(
    "wrong",
    [
        {"when_full": "never"}, {"when_full": 1}, {"keep_newest": 0}, {"keep_newest": -1}, {"keep_newest": "2"},
        {"snapshot_bytes_max": -1}, {"snapshot_bytes_max": 1 << 63}, {"snapshot_bytes_max": 1.5},
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_and_changes_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        before = volume.policy(when_full="give-up", keep_newest=7)
        with pytest.raises(OutOfRangeError):
            volume.policy(**wrong)
        assert volume.policy() == before == ("give-up", 7, 0)


# -- callbacks --------------------------------------------------------------------------------------------------------
@DISKS
def test_a_callback_makes_room_and_the_write_goes_on(disk: Disk, made: Made) -> None:
    volume, contents = made
    asked: list[int] = []

    def make_room(needed: Any) -> bool:
        asked.append(needed.needed_bytes)
        volume.get_snapshot("s0").pread(BLOCK, 0)  # no lock is held: the volume can be used
        volume.flush()
        disk.clear()
        return True

    volume.on_space_needed(make_room)
    disk.fill()
    for number in range(8):
        volume.pwrite(data := RANDOM.randbytes(SIZE), 0)
        volume.snapshot(f"t{number}")
        assert volume.pread(SIZE, 0) == data
    assert asked and asked[0] in (0, SIZE)
    check_contents(volume, contents | {name: volume.get_snapshot(name).pread(SIZE, 0) for name in names(volume)})
    assert volume.check().ok
    volume.close()


def test_a_callback_that_declines_leaves_it_to_the_policy(disk: Disk, made: Made) -> None:
    volume, _ = made
    asked = []

    def decline(needed: Any) -> None:
        asked.append(needed)
        if len(asked) == 1:
            with pytest.raises(NoSpaceError):  # the callback's own calls do not ask it
                for _ in range(20):
                    volume.pwrite(RANDOM.randbytes(SIZE), 0)

    volume.on_space_needed(decline)
    disk.fill()
    with pytest.raises(NoSpaceError):
        for _ in range(20):
            volume.pwrite(RANDOM.randbytes(SIZE), 0)
    assert asked and volume.given_up() == []
    volume.policy(when_full="give-up", keep_newest=2)
    volume.pwrite(RANDOM.randbytes(SIZE), 0)
    assert volume.given_up() != []
    volume.close()


def test_a_callback_is_asked_no_more_when_its_time_is_over_and_what_it_raises_is_raised(disk: Disk, made: Made) -> None:
    volume, contents = made
    disk.fill()
    volume.on_space_needed(lambda needed: pytest.fail("asked"), time_limit=0)

    def fill() -> None:
        for _ in range(20):
            volume.pwrite(RANDOM.randbytes(SIZE), 0)

    with pytest.raises(NoSpaceError):
        fill()

    def refuse(needed: Any) -> bool:
        raise BusyError("not now")

    volume.on_space_needed(refuse)
    with pytest.raises(BusyError, match="not now"):
        fill()
    volume.on_space_needed(None)
    with pytest.raises(NoSpaceError):
        fill()
    check_contents(volume, contents)
    volume.close()


def test_who_wants_to_know_that_space_is_low_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = QuotaDisk(tmp_path)
    volume = Volume.create(tmp_path / "v", SIZE, io=disk, background=False)
    told: list[Any] = []

    def low(state: Any) -> None:
        told.append(state)
        raise ValueError("a callback that fails")

    def look() -> None:
        volume.engine.space._forecast.spacing = 0.0  # each flush looks
        volume.flush()

    volume.on_space_low(low, below=0.25)
    look()
    assert told == []
    disk.fill(10 * MIB)
    look()
    look()
    assert [(state.free_bytes, state.total_bytes) for state in told] == [(10 * MIB, 64 * MIB)]
    assert "the callback for low space failed" in caplog.text
    disk.clear()
    look()
    disk.fill(MIB)
    look()
    assert len(told) == 2
    volume.on_space_low(None)
    volume.close()


@DISKS
def test_who_wants_to_know_that_space_is_low_hears_it_before_the_write_fails(disk: Disk) -> None:
    told: list[Any] = []
    with Volume.create(disk.path / "v", SIZE, io=disk.io, background=False) as volume:
        volume.on_space_low(told.append, below=0.25)
        volume.flush()  # the next look is due in a second, and the disk is full before
        disk.fill()
        with pytest.raises(NoSpaceError):
            for number in range(100):
                volume.pwrite(RANDOM.randbytes(SIZE), 0)
                volume.snapshot(f"s{number}")
        assert [state.free_bytes < state.total_bytes / 4 for state in told] == [True]
