"""A snapshot with nothing unflushed goes a shorter way than a commit, and leaves what a commit leaves."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from memory_disk import MemoryDisk

from cowengine import Store, Volume
from cowengine.engine.engine import Engine
from cowengine.errors import ExistsError, NoSpaceError, PoisonedError

BLOCK = 4096
PATH = "/disk/volume"


def played(monkeypatch: pytest.MonkeyPatch, *, shorter: bool) -> tuple[list[Any], dict[str, Any]]:
    """All that a history wrote and synced, and what the engine knows then. Random numbers and the time are the same."""
    disk = MemoryDisk()
    quiet = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", random.Random(7).randbytes)
        patch.setattr(time, "time_ns", lambda: 10**18)
        original = Engine._quiet_snapshot

        def asked(self: Engine, *args: Any) -> Any:
            quiet.append(original(self, *args) if shorter else None)
            return quiet[-1]

        patch.setattr(Engine, "_quiet_snapshot", asked)
        with Volume.create(PATH, 1 << 20, io=disk, background=False) as volume:
            rng = random.Random(8)
            for number in range(300):
                if number % 3 == 0:
                    for _ in range(rng.randrange(4)):
                        volume.pwrite(rng.randbytes(BLOCK), rng.randrange(200) * BLOCK)
                    if rng.random() < 0.7:
                        volume.flush()
                if number % 41 == 40:
                    rng.choice(volume.snapshots()).delete()
                name = f"s{number}" * rng.randrange(1, 9) if number % 2 else f"\u00e9-{number}"
                volume.snapshot(name, metadata={"number": number} if number % 5 == 0 else None)
            engine = volume.engine
            known = {
                "counters": dict(engine.counters), "sequence": engine.log.sequence, "position": engine.log.position,
                "checksum": engine.log.checksum, "synced": engine._synced_writes,
                "records": [engine.lineage.get(number) for number in range(engine.lineage.next_id)],
                "epochs": (engine.path.live.epoch, engine.path.live.frozen), "superseded": engine.superseded,
                "latencies": [engine.latencies[name].describe()["count"] for name in ("barrier", "snapshot")],
            }  # fmt: skip
    assert any(record is not None for record in quiet) == shorter
    return list(disk.journal), known


def test_it_writes_and_leaves_what_a_commit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    journal, known = played(monkeypatch, shorter=True)
    expected, expected_known = played(monkeypatch, shorter=False)
    assert journal == expected
    assert known == expected_known


class Failing(MemoryDisk):
    """Fails what it is told to, once."""

    fails = ""

    def _may_fail(self, call: str) -> None:
        if self.fails == call:
            self.fails = ""
            raise OSError(errno.EIO, "planted")

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self._may_fail("pwrite")
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._may_fail("fdatasync")
        super().fdatasync(fd)

    def lock(self, fd: int, exclusive: bool, start: int = 0, length: int = 0) -> None:
        self._may_fail("lock")
        super().lock(fd, exclusive, start, length)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "lock"])
def test_whatever_fails_in_it_or_in_a_commit_poisons(call: str, written: bool) -> None:
    disk = Failing()
    with Volume.create(PATH, 1 << 20, io=disk, background=False) as volume:
        volume.snapshot("before")
        if written:
            volume.pwrite(bytes(BLOCK), 0)
        disk.fails = call
        with pytest.raises(PoisonedError):
            volume.snapshot("lost")
        assert disk.fails == ""
        with pytest.raises(PoisonedError):
            volume.snapshot("after")
        assert isinstance(volume.engine.failure, OSError)


@pytest.mark.parametrize("step", ["taken", "_acknowledge", "barrier"])
def test_whatever_interrupts_it_poisons(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with Volume.create(PATH, 1 << 20, io=MemoryDisk(), background=False) as volume:
        with monkeypatch.context() as patch:

            def interrupted(*args: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(Engine, step, interrupted)
            with pytest.raises(PoisonedError) as raised:
                volume.snapshot("lost")
        assert isinstance(raised.value.__cause__, KeyboardInterrupt)
        with pytest.raises(PoisonedError):
            volume.flush()


def test_events_of_a_set_lead_the_record_of_the_next_snapshot(tmp_path: Path) -> None:
    """They are what a member has in memory only: a commit brings them along."""
    with Store.create(tmp_path / "store", background=False) as store:
        volume = store.create_volume("v", 1 << 20)
        store.snapshot(["v"], "set")
        assert volume.engine.pending_events
        volume.snapshot("own")
        assert not volume.engine.pending_events
        assert [snapshot.name for snapshot in volume.snapshots()] == ["set", "own"]


def test_a_name_that_is_there_is_refused_before_anything_is_done() -> None:
    disk = MemoryDisk()
    with Volume.create(PATH, 1 << 20, io=disk, background=False) as volume:
        for number in range(100):
            volume.snapshot(f"s{number}")
        for _ in range(2):
            written = len(disk.journal)
            for name in ("s0", "s99"):
                with pytest.raises(ExistsError):
                    volume.snapshot(name)
            assert len(disk.journal) == written
            volume.engine.checkpoint()  # now the index on the disk has them


def test_a_snapshot_that_finds_no_room_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again when somebody made room, as any call is."""
    with Volume.create(PATH, 1 << 20, io=MemoryDisk(), background=False) as volume:
        asked = []

        def full(self: Engine, *, for_delete: bool = False) -> None:
            asked.append(for_delete)
            raise NoSpaceError("the commit log is full", self.name)

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "make_room", full)
            volume.on_space_needed(lambda needed: len(asked) < 3)
            with pytest.raises(NoSpaceError):
                volume.snapshot("s")
        assert len(asked) >= 3 and volume.snapshots() == []
        assert volume.snapshot("s").id == 1


def test_writers_beside_snapshots_are_in_them_up_to_one_moment() -> None:
    """Two blocks are always written one after the other: no snapshot has the second without the first."""
    with Volume.create(PATH, 1 << 20, io=MemoryDisk(), background=False) as volume:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for block in (0, 1):
                    volume.pwrite(number.to_bytes(8, "little"), block * BLOCK)
                time.sleep(0.0002)

        writer = threading.Thread(target=write)
        writer.start()
        for number in range(100):
            taken = volume.snapshot(f"s{number}")
            first, second = (int.from_bytes(taken.pread(8, block * BLOCK), "little") for block in (0, 1))
            assert first - 1 <= second <= first
        stop.set()
        writer.join()
