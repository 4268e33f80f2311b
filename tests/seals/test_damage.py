"""What rots on the disk after it was sealed is never returned, never copied on, and named; all else stays readable."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cowengine import CorruptionError, Snapshot, Volume
from cowengine.engine import verifying

BLOCK = 4096
BLOCKS = 600
SIZE = BLOCKS * BLOCK - 1536  # the last block is not whole


def flip(volume: Volume, block: int, root: Any = None, at: int = 77) -> int:
    """Turns one bit of a block over in the file; returns the slot it lies in."""
    slot, _ = volume.engine.path.place(block, root)
    with open(volume.path, "r+b") as file:
        file.seek(slot * 4096 + at)
        byte = file.read(1)[0]
        file.seek(slot * 4096 + at)
        file.write(bytes([byte ^ 16]))
    return slot


def filled(path: Path, block_size: int = BLOCK, **settings: Any) -> tuple[Volume, bytes]:
    data = random.Random(1).randbytes(SIZE)
    volume = Volume.create(path / "v", SIZE, block_size=block_size, background=False, **settings)
    volume.pwrite(data, 0)
    return volume, data


def sealed(path: Path, block_size: int = BLOCK) -> tuple[Volume, Snapshot, bytes]:
    """A volume with one snapshot, sealed; nothing was written since."""
    volume, data = filled(path, block_size)
    snapshot = volume.snapshot("good")
    assert volume.seal().done
    return volume, snapshot, data


@pytest.mark.parametrize("block_size", [4096, 65536, 1 << 20])
def test_a_read_of_a_damaged_block_names_it_and_others_stay_readable(tmp_path: Path, block_size: int) -> None:
    volume, snapshot, data = sealed(tmp_path, block_size)
    with volume:
        slot = flip(volume, 1)
        start, end = block_size, min(2 * block_size, SIZE)
        for view in (volume, snapshot):
            for length, offset in ((SIZE, 0), (end - start, start), (1, end - 1), (2, start - 1)):
                with pytest.raises(CorruptionError, match=f"block at byte {start} in slot {slot}, byte ") as caught:
                    view.pread(length, offset)
                assert caught.value.filename == caught.value.volume == volume.path
                assert (caught.value.offset, caught.value.file_offset) == (start, slot * 4096)
                assert caught.value.snapshot == (None if view is volume else "good")
                buffer = bytearray(length)
                with pytest.raises(CorruptionError, match=f"byte {slot * 4096} of the file"):
                    view.pread_into(buffer, offset)
            assert view.pread(start, 0) == data[:start]
            assert view.pread(SIZE - end, end) == data[end:]


def test_damaged_metadata_says_where_in_the_file_it_lies(tmp_path: Path) -> None:
    with filled(tmp_path)[0] as volume:
        volume.snapshot("s", metadata={"a": 1})
        volume.engine.checkpoint()
        record = volume.engine.lineage.get(volume.get_snapshot("s").id)
        assert record is not None
        text, path = record.metadata_slot * 4096, Path(volume.path)
    data = bytearray(path.read_bytes())
    data[text] ^= 1
    path.write_bytes(data)
    with Volume.open(path) as volume, pytest.raises(CorruptionError) as caught:
        assert volume.get_snapshot("s").metadata
    assert (caught.value.snapshot, caught.value.offset, caught.value.file_offset) == ("s", None, text)
    with Volume.open(path, read_only=True) as volume:
        table = volume.engine.superblock.lineage_root.slot * 4096
    data = bytearray(path.read_bytes())
    data[table] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=f"slot {table // 4096} ") as caught:
        Volume.open(path)
    assert (caught.value.filename, caught.value.offset, caught.value.file_offset) == (str(path), None, table)


def test_a_write_of_a_part_does_not_copy_damage(tmp_path: Path) -> None:
    volume, _, data = sealed(tmp_path)
    with volume:
        flip(volume, 3)
        with pytest.raises(CorruptionError, match="block at byte 12288") as caught:
            volume.pwrite(b"new", 3 * BLOCK + 5)
        assert caught.value.filename == volume.path
        volume.pwrite(b"n" * BLOCK, 3 * BLOCK)  # all of it is new
        assert (
            volume.pread(3 * BLOCK, 2 * BLOCK) == data[2 * BLOCK : 3 * BLOCK] + b"n" * BLOCK + data[4 * BLOCK :][:BLOCK]
        )
        assert volume.check().problems == []


def test_compaction_does_not_move_damage(tmp_path: Path) -> None:
    """A sealed block of the live volume alone: its snapshot is deleted, its home free."""
    volume, first, _ = sealed(tmp_path)
    with volume:
        volume.pwrite(b"2" * BLOCK, 0)
        second = volume.snapshot("second")
        volume.seal()
        first.delete()
        second.delete()
        slot = flip(volume, 0)
        with pytest.raises(CorruptionError, match=f"block at byte 0 in slot {slot}") as caught:
            volume.compact()
        assert caught.value.filename == volume.path
        flip(volume, 0)  # good again
        assert volume.compact().moved_bytes == BLOCK
        assert volume.pread(BLOCK, 0) == b"2" * BLOCK
        assert volume.check().problems == []


def test_a_copy_in_the_file_system_does_not_take_damage_along(tmp_path: Path) -> None:
    volume, snapshot, data = sealed(tmp_path)
    with volume:
        flip(volume, BLOCKS - 1)
        for view in (volume, snapshot):
            with pytest.raises(CorruptionError, match=f"block at byte {(BLOCKS - 1) * BLOCK}"):
                view.flatten(tmp_path / "raw")
        assert os.listdir(tmp_path) == ["v"]
        flip(volume, BLOCKS - 1)
        snapshot.flatten(tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == data


def test_a_shrink_does_not_copy_damage(tmp_path: Path) -> None:
    volume, _, data = sealed(tmp_path)
    with volume:
        flip(volume, 7)
        with pytest.raises(CorruptionError):
            volume.resize(7 * BLOCK + 512)
        assert volume.size == SIZE and volume.pread(BLOCK, 0) == data[:BLOCK]


def test_a_block_written_in_the_wrong_place_is_found(tmp_path: Path) -> None:
    """Each of the two is whole and has the right bytes for its neighbour."""
    volume, snapshot, _ = sealed(tmp_path)
    with volume:
        slots = [volume.engine.path.place(block)[0] for block in (10, 11)]
        with open(volume.path, "r+b") as file:
            file.seek(slots[0] * 4096)
            one = file.read(BLOCK)
            file.seek(slots[1] * 4096)
            file.write(one)
        with pytest.raises(CorruptionError, match=f"slot {slots[1]}"):
            snapshot.pread(BLOCK, 11 * BLOCK)
        assert snapshot.pread(BLOCK, 10 * BLOCK) == one


def test_a_write_that_the_disk_lost_is_found(tmp_path: Path) -> None:
    """What lay there before shows again."""
    volume, first, _ = sealed(tmp_path)
    with volume:
        volume.pwrite(b"2" * BLOCK, 20 * BLOCK)
        volume.snapshot("second")
        slot, _ = volume.engine.path.place(20)
        volume.seal()
        with open(volume.path, "r+b") as file:
            file.seek(slot * 4096)
            file.write(bytes(BLOCK))
        with pytest.raises(CorruptionError):
            volume.pread(1, 20 * BLOCK)
        assert first.verify().ok


def test_what_is_not_sealed_is_not_called_damaged(tmp_path: Path) -> None:
    volume, _ = filled(tmp_path)
    with volume:
        snapshot = volume.snapshot("open")
        assert volume.unsealed_bytes() == BLOCKS * BLOCK and volume.stats()["snapshots_unsealed"] == 1
        flip(volume, 5)
        assert len(snapshot.pread(SIZE, 0)) == SIZE
        report = snapshot.verify()
        assert report.ok and report.counts == {"blocks": BLOCKS, "verified": 0, "unsealed": BLOCKS, "damaged": 0}


def test_verify_finds_all_damage_and_goes_on(tmp_path: Path) -> None:
    volume, snapshot, _ = sealed(tmp_path)
    with volume:
        slots = {block: flip(volume, block) for block in (0, 255, 256, BLOCKS - 1)}
        for report in (snapshot.verify(), volume.verify()):
            assert report.counts == {"blocks": BLOCKS, "verified": BLOCKS - 4, "unsealed": 0, "damaged": 4}
            assert report.problems == [
                f"{volume.path}: snapshot 'good': the block at byte {block * BLOCK} in slot {slot}, byte {slot * 4096} "
                "of the file, does not hold what was sealed there"
                for block, slot in slots.items()
            ]


def test_verify_reads_the_disk_and_not_the_cache(tmp_path: Path) -> None:
    """What is read is dropped from the cache before, in parts that are much larger than what the system reads ahead."""
    from cowengine.core.iotable import IOTable

    class Recorder(IOTable):
        def __init__(self) -> None:
            self.calls: list[tuple[str, int, int]] = []

        def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
            self.calls.append(("read", offset, len(buffer)))
            return super().pread_into(fd, buffer, offset)

        def forget(self, fd: int, offset: int = 0, length: int = 0) -> None:
            self.calls.append(("forget", offset, length))
            super().forget(fd, offset, length)

    volume, snapshot, _ = sealed(tmp_path)
    volume.close()
    table = Recorder()
    with Volume.open(tmp_path / "v", io=table, background=False) as volume:
        snapshot = volume.get_snapshot("good")
        snapshot.pread(1, 0)
        table.calls.clear()
        assert snapshot.verify().ok
        large = [call for call in table.calls if call[2] > 4096]
        reads = [(number, offset, size) for number, (what, offset, size) in enumerate(large) if what == "read"]
        assert sum(size for _, _, size in reads) == BLOCKS * BLOCK
        for number, offset, size in reads:
            forgotten = [range(start, start + length) for what, start, length in large[:number] if what == "forget"]
            assert any(offset in part and offset + size - 1 in part for part in forgotten)
        assert len(large) - len(reads) == 1  # piece by piece would drop what was read ahead, again and again


def test_another_process_verifies_what_it_reads(tmp_path: Path) -> None:
    volume, _, _ = sealed(tmp_path)
    with volume:
        flip(volume, 2)
        program = (
            "import json, sys; from cowengine import Volume, CorruptionError\n"
            "with Volume.open(sys.argv[1], read_only=True) as volume:\n"
            "    snapshot = volume.get_snapshot('good')\n"
            "    try: snapshot.pread(4096, 8192); error = 'none'\n"
            "    except CorruptionError as caught: error = str(caught)\n"
            "    print(json.dumps([error, len(snapshot.pread(8192, 0)), snapshot.verify().counts]))\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(
            [sys.executable, "-c", program, volume.path], stdout=subprocess.PIPE, check=True, env=environment
        )
        error, length, counts = json.loads(done.stdout)
        assert "snapshot 'good': the block at byte 8192 in slot" in error and length == 8192
        assert counts == {"blocks": BLOCKS, "verified": BLOCKS - 1, "unsealed": 0, "damaged": 1}


def test_damage_is_found_behind_a_new_open(tmp_path: Path) -> None:
    volume, _, data = sealed(tmp_path)
    flip(volume, 9)
    volume.close()
    with Volume.open(tmp_path / "v", read_only=True) as again:
        with pytest.raises(CorruptionError):
            again.pread(SIZE, 0)
        assert again.pread(9 * BLOCK, 0) == data[: 9 * BLOCK]


def test_a_damaged_table_of_seals_is_metadata_that_is_damaged(tmp_path: Path) -> None:
    """Nothing that it covers is returned unverified."""
    volume, _, _ = sealed(tmp_path)
    volume.close()
    with Volume.open(tmp_path / "v", read_only=True) as again:
        slot = again.engine.superblock.seal_root.slot
    with open(tmp_path / "v", "r+b") as file:
        file.seek(slot * 4096)
        file.write(b"\xff")
    with Volume.open(tmp_path / "v", read_only=True) as again:
        with pytest.raises(CorruptionError, match=f"slot {slot} of the file does not hold the node"):
            again.pread(1, 0)
        assert not again.check().ok


def test_of_many_damaged_blocks_some_are_named_and_all_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PROBLEMS_MAX", 3)
    volume, _, _ = sealed(tmp_path)
    with volume:
        for block in range(0, 12, 2):
            flip(volume, block)
        report = volume.verify()
    assert report.counts["damaged"] == 6 and report.counts["verified"] == BLOCKS - 6
    assert len(report.problems) == 4 and report.problems[3] == "more than 3 blocks; the counts have all"
