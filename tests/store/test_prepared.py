"""Snapshot sets without a store: members at one instant, what becomes of them when a set is or is not to be."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cowengine import BusyError, CorruptionError, ExistsError, PoisonedError, Volume
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine import setflush
from cowengine.engine.create import create_engine
from cowengine.engine.engine import Engine
from cowengine.engine.recovery import open_engine
from cowengine.engine.setcommit import Member, SetEvent, apply_set_events, prepare
from cowengine.engine.setflush import flush_events

BLOCK = 4096
SIZE = 64 * BLOCK
STORE, SET = bytes(range(16)), bytes(range(16, 32))


class FailingBarrier(IOTable):
    failing = False

    def fdatasync(self, fd: int) -> None:
        if self.failing:
            raise OSError(5, os.strerror(5))
        super().fdatasync(fd)


class Calls(IOTable):
    """Notes barriers, and what the disk is told to begin with: data that is vouched for, and records."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def begin_write(self, fd: int, offset: int, length: int) -> None:
        self.calls.append(("begin", fd))

    def fdatasync(self, fd: int) -> None:
        self.calls.append(("fdatasync", fd))
        super().fdatasync(fd)


MakeVolumes = Callable[..., list[Volume]]


@pytest.fixture
def make_volumes(tmp_path: Path) -> Iterator[MakeVolumes]:
    made: list[Volume] = []

    def make(count: int, **options: Any) -> list[Volume]:
        for number in range(count):
            volume = Volume.create(tmp_path / f"v{len(made)}", SIZE, **{"background": False, **options})
            volume.pwrite(bytes([number + 1]) * BLOCK, 0)
            made.append(volume)
        return made

    yield make
    for volume in made:
        volume.close()


def engines(volumes: list[Volume]) -> list[Engine]:
    return [volume.engine for volume in volumes]


@pytest.mark.parametrize("background", [False, True])
def test_members_are_made_durable_and_each_has_the_sets_snapshot(make_volumes: MakeVolumes, background: bool) -> None:
    volumes = make_volumes(4, background=background)
    volumes[3].flush()  # quiet: its barrier is behind it
    with prepare(engines(volumes), "set") as prepared:
        assert not any(volume.engine.is_dirty() for volume in volumes)
        prepared.commit_point()
        ids = prepared.finish(SET, "set", 7, 1, b"{}")
    assert ids == [1, 1, 1, 1]
    for number, volume in enumerate(volumes):
        volume.pwrite(b"later", 0)
        assert volume.get_snapshot("set").pread(BLOCK, 0) == bytes([number + 1]) * BLOCK
        flush_events(volume.engine)
        assert not volume.engine.pending_events and volume.check().problems == []


@pytest.mark.parametrize("background", [False, True])
def test_barriers_of_the_members_come_when_all_their_records_are_on_their_way(
    make_volumes: MakeVolumes, background: bool
) -> None:
    """Two for the one that wrote more than a record vouches for, one for the other, none for the quiet one."""
    table = Calls()
    volumes = make_volumes(3, background=background, io=table)
    for volume in volumes:
        volume.snapshot("before")
    volumes[0].pwrite(b"d" * BLOCK, 0)
    volumes[0].engine.vouching.barriers = 2
    volumes[1].pwrite(b"e" * BLOCK, 0)
    table.calls.clear()
    with prepare(engines(volumes), "set") as prepared:
        called = list(table.calls)
        prepared.commit_point()
        prepared.finish(SET, "set", 7, 1)
    two, one, _ = [volume.engine.fd for volume in volumes]
    assert [call for call, fd in called if fd == two] == ["fdatasync", "begin", "fdatasync"]
    assert [call for call, fd in called if fd == one] == ["begin", "begin", "fdatasync"]
    assert {fd for _, fd in called} == {two, one}
    assert [n for n, call in enumerate(called) if call == ("begin", one)][-1] < called.index(("fdatasync", two))
    for volume, byte in zip(volumes, [b"d", b"e", b"\3"], strict=True):
        assert volume.get_snapshot("set").pread(1, 0) == byte and volume.check().problems == []


def test_on_a_file_system_that_was_full_a_set_confirms_what_was_not(make_volumes: MakeVolumes) -> None:
    (volume,) = make_volumes(1)
    engine = volume.engine
    volume.flush()
    volume.snapshot("before")
    volume.pwrite(b"d", 0)
    volume.flush()
    assert engine.path.unconfirmed.block_count
    engine.allocator.tighten()
    before = engine.log.sequence
    with prepare([engine], "set"):
        assert engine.log.sequence == before + 1 and not engine.path.unconfirmed.block_count


@pytest.mark.parametrize("background", [False, True])
def test_a_barrier_of_a_member_that_fails_ends_all_of_them(make_volumes: MakeVolumes, background: bool) -> None:
    table = FailingBarrier()
    volumes = make_volumes(3, io=table, background=background)
    table.failing = True
    with pytest.raises(PoisonedError), prepare(engines(volumes), "set"):
        pass
    table.failing = False
    for volume in volumes:
        with pytest.raises(PoisonedError):
            volume.flush()


def test_a_set_that_is_not_to_be_leaves_nothing(make_volumes: MakeVolumes) -> None:
    volumes = make_volumes(3)
    with pytest.raises(KeyError), prepare(engines(volumes), "set"):
        raise KeyError("the store log has no room")
    for volume in volumes:
        volume.pwrite(b"later", 0)
        volume.reclaim()
        assert volume.snapshots() == [] and volume.stats()["reclaims_pending"] == 0
        volume.engine.checkpoint()
        assert volume.check().problems == []


def test_a_set_that_cannot_begin_lets_all_members_go(make_volumes: MakeVolumes) -> None:
    volumes = make_volumes(3)
    for volume in volumes[1:]:
        volume.snapshot("set")
    assert [volume.engine.has_name("set") for volume in volumes] == [False, True, True]
    with pytest.raises(ExistsError), prepare(engines(volumes), "set"):
        pass
    done = []
    thread = threading.Thread(target=lambda: done.extend(volume.snapshot("other") for volume in volumes))
    thread.start()  # who has no lock left of it, can take one
    thread.join(60)
    assert len(done) == 3


def test_a_set_of_which_nobody_knows_ends_all_members(make_volumes: MakeVolumes) -> None:
    volumes = make_volumes(2)
    with prepare(engines(volumes), "set") as prepared:
        prepared.commit_point()
        prepared.poison(OSError(5, os.strerror(5)))
    for volume in volumes:
        with pytest.raises(PoisonedError):
            volume.flush()


def test_who_leaves_behind_the_commit_point_lets_all_members_go_and_they_are_at_an_end(
    make_volumes: MakeVolumes,
) -> None:
    """Also if a second Ctrl-C came before anybody could say so."""
    volumes = make_volumes(2)
    with pytest.raises(KeyboardInterrupt), prepare(engines(volumes), "set") as prepared:
        prepared.commit_point()
        raise KeyboardInterrupt
    for volume in volumes:
        thread = threading.Thread(target=volume.snapshots)
        thread.start()  # it gets the lock
        thread.join()
        with pytest.raises(PoisonedError):
            volume.flush()
        assert isinstance(volume.engine.failure, KeyboardInterrupt)


@pytest.mark.parametrize("failing", [False, True])
def test_the_event_reaches_the_members_own_log_soon_or_somebody_is_told(
    make_volumes: MakeVolumes, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    monkeypatch.setattr(setflush, "FLUSH_EVENTS_AFTER", 0.01)
    table = FailingBarrier()
    (volume,) = make_volumes(1, io=table, background=True)
    with prepare([volume.engine], "set") as prepared:
        prepared.commit_point()
        prepared.finish(SET, "set", 7, 1)
        assert volume.engine.flush_scheduled
        table.failing = failing
    while volume.engine.flush_scheduled:
        time.sleep(0.01)
    with volume.engine.lock:
        assert bool(volume.engine.pending_events) == failing
    if failing:
        with pytest.raises(PoisonedError):
            volume.flush()
    else:
        assert volume.get_snapshot("set").pread(BLOCK, 0) == b"\x01" * BLOCK


# -- what the store's log has and the volume's own has not -------------------------------------------------------------
@pytest.fixture
def crashed(tmp_path: Path) -> tuple[Path, SetEvent]:
    """A volume of a store that died behind a set's commit point, and what the store log has of it."""
    engine = create_engine(KERNEL, str(tmp_path / "v"), SIZE, store_uuid=STORE)
    engine.background = False
    engine.path.pwrite(b"one" * BLOCK, 0)
    with prepare([engine], "set") as prepared:
        (member,) = prepared.members
        prepared.commit_point()
        shutil.copyfile(tmp_path / "v", tmp_path / "crashed")
        prepared.finish(SET, "set", 7, 1)
    engine.close()
    return tmp_path / "crashed", event_of(member)


def event_of(member: Member) -> SetEvent:
    return SetEvent(
        store_sequence=1, set_id=SET, name="set", created_ns=7, snapshot_id=member.snapshot_id, epoch=member.epoch,
        sequence=member.sequence, tag=member.tag,
    )  # fmt: skip


def names(engine: Engine) -> list[str]:
    return [record.name for record in engine.lineage.snapshots()]


def opened(path: Path, **options: Any) -> Engine:
    engine = open_engine(KERNEL, str(path), **{"store_uuid": STORE, **options})
    engine.background = False
    return engine


def test_an_open_takes_the_set_from_the_store_log_once(crashed: tuple[Path, SetEvent]) -> None:
    path, event = crashed
    for applied in ([event], []):
        engine = opened(path)
        assert apply_set_events(engine, [event]) == applied
        assert names(engine) == ["set"]
        assert engine.path.pread(BLOCK, 0, engine.lineage.root(1)) == (b"one" * BLOCK)[:BLOCK]
        engine.close()
    with Volume.open(path, background=False) as volume:
        assert volume.check().problems == []


def test_who_only_reads_sees_the_set_and_writes_nothing(crashed: tuple[Path, SetEvent]) -> None:
    path, event = crashed
    before = path.read_bytes()
    engine = opened(path, read_only=True)
    assert apply_set_events(engine, [event]) == [event]
    assert names(engine) == ["set"]
    engine.close()
    assert path.read_bytes() == before


def test_a_set_whose_moment_has_passed_is_left_out_and_settled(crashed: tuple[Path, SetEvent]) -> None:
    path, event = crashed
    engine = opened(path)
    assert apply_set_events(engine, [replace(event, sequence=event.sequence + 1)]) == []
    assert names(engine) == [] and engine.durable_store_sequence == 1
    engine.close()


def test_a_volume_that_left_its_store_takes_no_sets(crashed: tuple[Path, SetEvent]) -> None:
    path, event = crashed
    with pytest.raises(BusyError, match="belongs to store"):
        opened(path, store_uuid=None)
    opened(path, store_uuid=None, without_store=True).close()
    engine = opened(path)
    assert apply_set_events(engine, [event]) == [] and names(engine) == []
    engine.close()


@pytest.mark.parametrize("changes", [{"epoch": 0}, {"epoch": 1 << 40}, {"metadata": bytes(5000)}])
def test_a_set_that_does_not_fit_is_corruption(crashed: tuple[Path, SetEvent], changes: dict[str, Any]) -> None:
    path, event = crashed
    engine = opened(path)
    with pytest.raises(CorruptionError, match="does not fit the volume"):
        apply_set_events(engine, [replace(event, **changes)])
    assert names(engine) == []
    engine.close()
