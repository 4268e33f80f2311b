"""Compaction puts blocks back into their home slots, and nobody but the disk can tell."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from cowengine import NoSpaceError, OutOfRangeError, ReadOnlyError, Volume
from cowengine.core.compact import move_home
from cowengine.core.iotable import IOTable

BLOCK = 4096
BLOCKS = 1500
SIZE = BLOCKS * BLOCK


def at_home(volume: Volume) -> int:
    """How many blocks' home slots hold the bytes that the live volume reads there; every block's bytes are its own."""
    region = volume.engine.superblock.regions[0]
    with open(volume.path, "rb") as file:
        file.seek(region.slot * 4096)
        home = file.read(volume.size)
    live = volume.pread(volume.size, 0)
    size = volume.block_size
    return sum(home[at : at + size] == live[at : at + size] for at in range(0, volume.size, size))


class NoBarriers(IOTable):
    """Aging is not what is tested."""

    def fdatasync(self, fd: int) -> None:
        pass


def aged(path: Path, *, rounds: int = 30, keep: int = 0, block_size: int = BLOCK) -> tuple[Volume, bytearray]:
    """A volume of unlike blocks, after rounds of snapshot, writes and delete; the first `keep` snapshots stay."""
    rng = random.Random(1)
    live = bytearray(rng.randbytes(SIZE))
    with Volume.create(path, SIZE, block_size=block_size, log_size=65536, io=NoBarriers(), background=False) as volume:
        volume.pwrite(live, 0)
        for number in range(rounds):
            snapshot = volume.snapshot(f"s{number}")
            for _ in range(40):
                offset, data = rng.randrange(SIZE - 9000), rng.randbytes(rng.randrange(1, 9000))
                volume.pwrite(data, offset)
                live[offset : offset + len(data)] = data
            if number >= keep:
                snapshot.delete()
    return Volume.open(path, background=False), live


@pytest.mark.parametrize("block_size", [4096, 65536])
def test_all_blocks_of_an_aged_volume_go_home(tmp_path: Path, block_size: int) -> None:
    volume, live = aged(tmp_path / "v", block_size=block_size)
    with volume:
        before = at_home(volume)
        result = volume.compact()
        assert before < SIZE // block_size
        assert at_home(volume) == -(-SIZE // block_size)
        assert result.done and result.position == SIZE and result.moved_bytes > 0
        assert volume.pread(SIZE, 0) == live
        assert volume.compact().moved_bytes == 0
        assert volume.check().problems == []
    with Volume.open(tmp_path / "v") as again:
        assert again.pread(SIZE, 0) == live


@pytest.mark.parametrize("block_size", [4096, 65536])
def test_homes_in_two_regions_do_not_lie_in_a_row(tmp_path: Path, block_size: int) -> None:
    """The blocks of an adopted image on both sides of the end of a region go home, each to its own."""
    path, size = tmp_path / "v", 2 << 20
    old, new = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    path.write_bytes(old)
    volume = Volume.adopt(path, block_size=block_size, background=False)
    with volume:
        assert len(volume.engine.superblock.regions) == 2
        snapshot = volume.snapshot("s")
        volume.pwrite(new, 0)
        snapshot.delete()
        assert volume.compact().moved_bytes == size
        assert volume.pread(size, 0) == new
        assert volume.check().problems == []


def test_what_snapshots_hold_stays_and_keeps_its_bytes(tmp_path: Path) -> None:
    volume, live = aged(tmp_path / "v", rounds=8, keep=4)
    with volume:
        snapshots = volume.snapshots()
        contents = [snapshot.pread(SIZE, 0) for snapshot in snapshots]
        lists = [volume.changed_extents(snapshot).tolist() for snapshot in snapshots]
        volume.compact()
        assert volume.pread(SIZE, 0) == live
        assert [snapshot.pread(SIZE, 0) for snapshot in snapshots] == contents
        assert [volume.changed_extents(snapshot).tolist() for snapshot in snapshots] == lists
        assert volume.check().problems == []
        for snapshot in snapshots:
            snapshot.delete()
        volume.compact()
        assert at_home(volume) == BLOCKS
        assert volume.check().problems == []


def test_lists_of_changes_do_not_see_a_move(tmp_path: Path) -> None:
    """The birth of a block stays what it was: a snapshot after the move has no changes since one before it."""
    volume, _ = aged(tmp_path / "v")
    with volume:
        base = volume.snapshot("base")
        volume.pwrite(b"x" * BLOCK, 7 * BLOCK)
        moved = volume.compact().moved_bytes
        assert volume.changed_extents(base).tolist() == [[7 * BLOCK, BLOCK]]
        base.delete()
        assert volume.compact().moved_bytes > moved


def test_it_stops_when_told_and_goes_on_from_there(tmp_path: Path) -> None:
    volume, live = aged(tmp_path / "v")
    with volume:
        stop = threading.Event()
        seen: list[int] = []

        class Stopping(threading.Event):
            def is_set(self) -> bool:
                seen.append(1)
                return len(seen) > 3

        result = volume.compact(stop=Stopping())
        assert not result.done and 0 < result.position < SIZE
        rest = volume.compact(result.position, stop=stop)
        assert rest.done and rest.moved_bytes > 0
        assert at_home(volume) == BLOCKS
        assert volume.pread(SIZE, 0) == live


def test_a_move_that_never_became_durable_is_undone_by_a_crash(tmp_path: Path) -> None:
    volume, live = aged(tmp_path / "v")
    _, moved, *_ = move_home(volume.engine.path, 0)
    assert moved > 0
    volume.engine.poison(RuntimeError("as if the power had gone"))
    volume.close()
    with Volume.open(tmp_path / "v") as again:
        assert again.pread(SIZE, 0) == live
        assert again.check().problems == []


def test_the_smallest_log_commits_often_enough(tmp_path: Path) -> None:
    """A move of many pieces did not fit a record of a small log, ever."""
    with Volume.create(tmp_path / "v", 64 * BLOCK, log_size=16384, background=False) as volume:
        volume.pwrite(b"a" * 64 * BLOCK, 0)
        snapshot = volume.snapshot("s")
        for block in sorted(range(64), key=lambda block: block * 37 % 64):
            volume.pwrite(b"%04d" % block, block * BLOCK)
        snapshot.delete()
        assert volume.compact().moved_bytes == 64 * BLOCK
        assert at_home(volume) == 64


class Full(IOTable):
    """No space behind a certain byte of the file, once switched on."""

    on = False

    def pwrite(self, fd: int, data: object, offset: int) -> None:
        if self.on and memoryview(data).nbytes > 64:  # type: ignore[arg-type]
            raise OSError(28, "No space left on device")
        super().pwrite(fd, data, offset)


def test_a_full_disk_ends_it_and_loses_nothing(tmp_path: Path) -> None:
    volume, live = aged(tmp_path / "v")
    volume.close()
    table = Full()
    with Volume.open(tmp_path / "v", io=table) as volume:
        table.on = True
        with pytest.raises(NoSpaceError):
            volume.compact()
        table.on = False
        assert volume.pread(SIZE, 0) == live
        assert volume.check().problems == []
        volume.compact()
        assert at_home(volume) == BLOCKS


def test_writers_readers_and_snapshots_go_on_beside_it(tmp_path: Path) -> None:
    volume, live = aged(tmp_path / "v", rounds=10)
    problems: list[BaseException] = []
    with volume:
        ended = threading.Event()

        def moving() -> None:
            try:
                while not ended.is_set():
                    volume.compact()
            except BaseException as error:
                problems.append(error)

        mover = threading.Thread(target=moving)
        mover.start()
        rng = random.Random(3)
        held: dict[str, bytes] = {}
        for number in range(400):
            offset, data = rng.randrange(SIZE - 9000), rng.randbytes(rng.randrange(1, 9000))
            volume.pwrite(data, offset)
            live[offset : offset + len(data)] = data
            at = rng.randrange(SIZE - 9000)
            assert volume.pread(9000, at) == live[at : at + 9000]
            if number % 10 == 0:
                volume.snapshot(f"t{number}")
                held[f"t{number}"] = bytes(live)
            if len(held) > 3:
                name = next(iter(held))
                assert volume.get_snapshot(name).pread(SIZE, 0) == held.pop(name)
                volume.get_snapshot(name).delete()
        ended.set()
        mover.join()
        assert problems == []
        assert volume.pread(SIZE, 0) == live
        assert volume.check().problems == []


def test_bad_arguments_and_read_only_volumes_are_refused(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        with pytest.raises(OutOfRangeError):
            volume.compact(SIZE + 1)
        with pytest.raises(OutOfRangeError):
            volume.compact(rate=0)
    with Volume.open(tmp_path / "v", read_only=True) as volume, pytest.raises(ReadOnlyError):
        volume.compact()


def test_a_move_does_not_reach_over_the_end_of_a_home_region(tmp_path: Path) -> None:
    """Blocks on both sides of the end were written one behind the other: an adopted volume lost the second part."""
    contents = random.Random(5).randbytes(64 * BLOCK)
    path = tmp_path / "image"
    path.write_bytes(bytes(len(contents)))
    with Volume.adopt(path, log_size=16384) as volume:
        volume.pwrite(contents[::-1], 0)
        snapshot = volume.snapshot("s")
        volume.pwrite(contents, 0)
        snapshot.delete()
        assert volume.compact().moved_bytes == len(contents)
        assert volume.pread(len(contents), 0) == contents
        assert volume.check().problems == []
