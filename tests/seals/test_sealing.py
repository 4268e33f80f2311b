"""Sealing: what is sealed when, and that seals end with their blocks."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from cowengine import NotFoundError, OutOfRangeError, ReadOnlyError, Volume
from cowengine.engine import pace, sealing

BLOCK = 4096
SIZE = 400 * BLOCK


def volume_at(path: Path, **settings: object) -> Volume:
    volume = Volume.create(path / "v", SIZE, background=False, log_size=65536, **settings)  # type: ignore[arg-type]
    volume.pwrite(random.Random(1).randbytes(SIZE), 0)
    return volume


def sealed_count(volume: Volume) -> int:
    """Seals in the file; the whole check holds."""
    volume.engine.checkpoint()
    report = volume.check()
    assert report.problems == []
    return report.counts["sealed"]


def test_only_what_snapshots_hold_is_sealed(tmp_path: Path) -> None:
    with volume_at(tmp_path) as volume:
        assert volume.seal() == sealing.Sealing(0, 0, done=True)
        assert sealed_count(volume) == 0 and volume.engine.superblock.features_incompatible == 0
        volume.snapshot("one")
        volume.pwrite(b"2" * BLOCK, 0)
        assert volume.seal() == sealing.Sealing(SIZE, 1, done=True)
        assert sealed_count(volume) == 400 and volume.engine.superblock.features_incompatible == 1
        volume.snapshot("two")
        assert volume.unsealed_bytes() == BLOCK
        assert volume.seal() == sealing.Sealing(BLOCK, 1, done=True)
        assert sealed_count(volume) == 401 and volume.stats()["snapshots_unsealed"] == 0


def test_a_seal_ends_when_its_slot_is_freed_and_used_again(tmp_path: Path) -> None:
    with volume_at(tmp_path) as volume:
        snapshot = volume.snapshot("one")
        volume.seal()
        volume.pwrite(b"2" * SIZE, 0)
        snapshot.delete()
        assert sealed_count(volume) == 0
        for number in range(12):  # the slots are used again, some of them many times
            later = volume.snapshot(f"later {number}")
            volume.pwrite(bytes([number]) * SIZE, 0)
            if number % 3 == 0:
                volume.seal()
            assert later.pread(SIZE, 0) == bytes([number - 1 if number else ord("2")]) * SIZE
            later.delete()
        assert volume.pread(SIZE, 0) == bytes([11]) * SIZE
        assert sealed_count(volume) == 0


def test_seals_since_the_last_checkpoint_are_lost_in_a_crash_and_made_again(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    snapshot = volume.snapshot("one")
    volume.engine.checkpoint()
    walk = sealing.walk_of(volume.engine, snapshot.id)
    assert sealing.step(volume.engine, walk)[0] == 1 << 20
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "v").read_bytes())  # as if the process had died here
    volume.close()
    with Volume.open(copy, background=False) as again:
        assert again.unsealed_bytes() == SIZE and again.stats()["snapshots_unsealed"] == 1
        assert again.seal() == sealing.Sealing(SIZE, 1, done=True)
        assert again.verify().counts["verified"] == 400
    with Volume.open(copy, background=False) as again:
        assert again.unsealed_bytes() == 0 and sealed_count(again) == 400


def test_records_behind_the_checkpoint_end_seals_in_replay(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    first = volume.snapshot("one")
    volume.seal()
    volume.pwrite(b"2" * SIZE, 0)
    first.delete()
    for number in range(4):
        other = volume.snapshot(f"{number}")
        volume.pwrite(bytes([number]) * (SIZE // 2), 0)
        other.delete()
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "v").read_bytes())
    volume.close()
    with Volume.open(copy, read_only=True) as look:
        assert look.pread(SIZE, 0) == bytes([3]) * (SIZE // 2) + b"2" * (SIZE // 2)
    with Volume.open(copy, background=False) as again:
        assert again.pread(SIZE, 0) == bytes([3]) * (SIZE // 2) + b"2" * (SIZE // 2)
        assert sealed_count(again) == 0


def test_what_an_unsealed_snapshot_leaves_to_a_sealed_one_is_sealed_again(tmp_path: Path) -> None:
    """Its flag goes with the ancestor that held the rest."""
    with volume_at(tmp_path) as volume:
        first = volume.snapshot("first")
        volume.pwrite(b"2" * BLOCK, 0)
        second = volume.snapshot("second")
        walk = sealing.walk_of(volume.engine, second.id)
        assert sealing.step(volume.engine, walk) == (BLOCK, True)
        assert volume.stats()["snapshots_unsealed"] == 1 and volume.unsealed_bytes() == SIZE
        first.delete()
        assert volume.stats()["snapshots_unsealed"] == 1 and volume.unsealed_bytes() == SIZE - BLOCK
        assert volume.seal() == sealing.Sealing(SIZE - BLOCK, 1, done=True)
        assert second.verify().counts["unsealed"] == 0
        assert sealed_count(volume) == 400


def test_the_same_after_a_crash(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    first = volume.snapshot("first")
    volume.pwrite(b"2" * BLOCK, 0)
    walk = sealing.walk_of(volume.engine, volume.snapshot("second").id)
    sealing.step(volume.engine, walk)
    volume.engine.checkpoint()
    first.to_anchor()
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "v").read_bytes())
    volume.close()
    with Volume.open(copy, background=False) as again:
        assert again.stats()["snapshots_unsealed"] == 1 and again.unsealed_bytes() == SIZE - BLOCK
        assert sealed_count(again) == 1
        assert again.seal().snapshots == 1 and again.verify().counts["unsealed"] == 0


def test_a_deleted_snapshot_ends_its_own_sealing(tmp_path: Path) -> None:
    with volume_at(tmp_path) as volume:
        snapshot = volume.snapshot("one")
        walk = sealing.walk_of(volume.engine, snapshot.id)
        sealing.step(volume.engine, walk)
        snapshot.delete()
        with pytest.raises(NotFoundError):
            sealing.step(volume.engine, walk)
        assert volume.seal().done


def test_after_a_rollback_each_branch_is_sealed(tmp_path: Path) -> None:
    with volume_at(tmp_path) as volume:
        base = volume.snapshot("base")
        volume.pwrite(b"L" * BLOCK, 0)
        left = volume.snapshot("left")
        volume.rollback(base)
        volume.pwrite(b"R" * BLOCK, BLOCK)
        right = volume.snapshot("right")
        volume.seal()
        base.delete()
        for snapshot in (left, right):
            assert snapshot.verify().counts == {"blocks": 400, "verified": 400, "unsealed": 0, "damaged": 0}
        assert sealed_count(volume) == 402


def test_what_compaction_moves_stays_sealed(tmp_path: Path) -> None:
    """It was frozen by a snapshot that is gone, so nobody writes it in place, and it was verified on its way."""
    with volume_at(tmp_path) as volume:
        first = volume.snapshot("first")
        volume.pwrite(b"2" * SIZE, 0)
        second = volume.snapshot("second")
        volume.seal()
        first.delete()
        second.delete()
        volume.pwrite(b"3" * BLOCK, 9 * BLOCK)  # live alone: never sealed, where it was and where it comes to
        assert volume.compact().moved_bytes == SIZE
        assert sealed_count(volume) == 399
        third = volume.snapshot("third")
        assert volume.unsealed_bytes() == BLOCK
        assert volume.seal() == sealing.Sealing(BLOCK, 1, done=True)
        assert third.verify().counts["verified"] == 400 and sealed_count(volume) == 400


@pytest.mark.parametrize("block_size", [4096, 16384, 1 << 20])
def test_sizes_of_blocks_and_ends_within_a_block(tmp_path: Path, block_size: int) -> None:
    size = 3 * (1 << 20) + 512
    with Volume.create(tmp_path / "v", size, block_size=block_size, background=False) as volume:
        data = random.Random(2).randbytes(size)
        volume.pwrite(data, 0)
        snapshot = volume.snapshot("one")
        volume.pwrite(b"x", size - 1)
        volume.seal()
        blocks = -(-size // block_size)
        assert snapshot.verify().counts == {"blocks": blocks, "verified": blocks, "unsealed": 0, "damaged": 0}
        for offset, length in ((0, size), (5, 4091), (4000, 200), (size - 513, 513), (1 << 20, 1 << 20), (size, 0)):
            assert snapshot.pread(length, offset) == data[offset : offset + length]
        assert volume.pread(1, size - 1) == b"x"
        assert sealed_count(volume) == blocks


def test_stop_rate_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TELL_SECONDS", 0)  # tell of each piece
    with volume_at(tmp_path) as volume:
        volume.snapshot("one")
        stop = threading.Event()
        stop.set()
        assert volume.seal(stop=stop) == sealing.Sealing(0, 0, done=False)
        told: list[int] = []
        began = time.monotonic()
        volume.seal(rate=SIZE, progress=lambda done: told.append(done.sealed_bytes))
        assert time.monotonic() - began >= 0.6 and told == [1 << 20, SIZE]
        with pytest.raises(OutOfRangeError):
            volume.seal(rate=0)
        with pytest.raises(OutOfRangeError):
            volume.snapshots()[0].verify(rate=-1)
    with Volume.open(tmp_path / "v", read_only=True) as look, pytest.raises(ReadOnlyError):
        look.seal()


def wait_until_sealed(volume: Volume) -> None:
    while volume.stats()["snapshots_unsealed"]:
        time.sleep(0.01)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(sealing, "REST", 0)


@pytest.mark.usefixtures("eager")
def test_the_background_seals_and_ends(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"1" * SIZE, 0)
        assert volume.engine.sealer._thread is None
        for number in range(5):
            snapshot = volume.snapshot(f"{number}")
            volume.pwrite(b"2" * BLOCK, number * BLOCK)
        wait_until_sealed(volume)
        assert volume.unsealed_bytes() == 0 and snapshot.verify().counts["unsealed"] == 0
        thread = volume.engine.sealer._thread
        if thread is not None:
            thread.join()
        assert volume.engine.sealer._thread is None
        volume.snapshot("wakes it again")
        wait_until_sealed(volume)
    assert not [thread for thread in threading.enumerate() if thread.name == "cowengine-sealer"]


@pytest.mark.usefixtures("eager")
def test_an_open_goes_on_where_the_last_process_left(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    volume.snapshot("one")
    volume.close()
    with Volume.open(tmp_path / "v") as volume:
        wait_until_sealed(volume)
        assert volume.unsealed_bytes() == 0


@pytest.mark.usefixtures("eager")
def test_the_background_beside_writes_snapshots_and_deletes(tmp_path: Path) -> None:
    rng = random.Random(3)
    model = bytearray(SIZE)
    kept = []
    with Volume.create(tmp_path / "v", SIZE, log_size=65536) as volume:
        for number in range(60):
            for _ in range(10):
                offset = rng.randrange(SIZE - 9000)
                data = rng.randbytes(rng.randrange(1, 9000))
                volume.pwrite(data, offset)
                model[offset : offset + len(data)] = data
            kept.append((volume.snapshot(f"{number}"), bytes(model)))
            if len(kept) > 4:
                snapshot, _ = kept.pop(rng.randrange(len(kept)))
                snapshot.delete()
        wait_until_sealed(volume)
        for snapshot, content in kept:
            assert snapshot.pread(SIZE, 0) == content
            assert snapshot.verify().counts["unsealed"] == 0
        assert volume.pread(SIZE, 0) == model
        assert volume.check().problems == []


@pytest.mark.usefixtures("eager")
def test_a_fork_in_the_middle_leaves_both_processes_whole(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"1" * SIZE, 0)
        volume.snapshot("one")
        child = os.fork()
        if child == 0:
            try:
                volume.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        wait_until_sealed(volume)
        assert volume.unsealed_bytes() == 0


def test_a_close_does_not_wait_for_the_sealing(tmp_path: Path) -> None:
    """The sealer rests at first; nobody waits for that."""
    volume = Volume.create(tmp_path / "v", SIZE)
    volume.pwrite(b"1" * SIZE, 0)
    volume.snapshot("one")
    thread = volume.engine.sealer._thread
    assert thread is not None and thread.daemon
    volume.close()
    assert not thread.is_alive()


def test_memory_for_seals_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block in each leaf of the table: dirty nodes ask for a checkpoint, clean ones make room for others."""
    monkeypatch.setattr(sealing, "DIRTY_SEALS_MAX", 40)
    stride, count = 4 << 20, 300
    with Volume.create(tmp_path / "v", count * stride, background=False, cache_size=1 << 20) as volume:
        for number in range(count):
            volume.pwrite(bytes([number % 251]) * BLOCK, number * stride)
        volume.snapshot("wide")
        before = volume.stats()["checkpoints"]
        volume.seal()
        assert volume.stats()["checkpoints"] > before + 1
        for number in range(count):
            assert volume.pread(1, number * stride) == bytes([number % 251])
            assert volume.engine.seals.nodes() <= volume.engine.path.seal_limit + 3
        assert volume.engine.path.seal_limit < 100
        assert volume.verify().counts["verified"] == count == sealed_count(volume)
    assert volume.stats()["snapshots_unsealed"] == 0


def test_the_table_of_seals_gives_its_nodes_back(tmp_path: Path) -> None:
    with volume_at(tmp_path) as volume:
        snapshot = volume.snapshot("one")
        volume.seal()
        volume.discard(0, SIZE)
        snapshot.delete()
        assert sealed_count(volume) == 0
        assert volume.engine.superblock.seal_root.kind == 0  # a hole: no node is left


@pytest.mark.usefixtures("eager")
def test_what_cannot_be_read_is_passed_over_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sealer goes on with the next snapshot, and ends."""
    from cowengine.core.iotable import IOTable

    class BadSector(IOTable):
        bad = 1 << 60

        def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
            if offset <= self.bad < offset + len(buffer):
                raise OSError(5, "Input/output error")
            return super().pread_into(fd, buffer, offset)

    table = BadSector()
    with Volume.create(tmp_path / "v", SIZE, io=table) as volume:
        volume.pwrite(b"1" * SIZE, 0)
        table.bad = volume.engine.path.place(7)[0] * 4096
        with caplog.at_level("WARNING", "cowengine.engine"):
            first = volume.snapshot("first")
            volume.pwrite(b"2" * BLOCK, 7 * BLOCK)
            second = volume.snapshot("second")
            while volume.engine.sealer._thread is not None:
                time.sleep(0.01)
        assert f"snapshot {first.id} cannot be sealed" in caplog.text
        assert volume.stats()["snapshots_unsealed"] == 1 and second.verify().counts["verified"] >= 1
        report = first.verify()
        assert report.counts["damaged"] == 1 and "cannot be read: " in report.problems[0]
        assert f"block at byte {7 * BLOCK}" in report.problems[0] and report.counts["blocks"] == 400
