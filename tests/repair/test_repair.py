"""Repair: derived tables are made anew from the rest, everything else is refused, and no byte of data changes."""

from __future__ import annotations

import datetime
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_image import SLOT, Image
from salvage_damage import Original, contents, flipped, original, structures

from cowengine import BusyError, CorruptionError, RetentionError, Volume
from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.engine import repair
from cowengine.engine.check import check_file

VOLUMES = ["snapshots", "logged", "half_reclaimed", "sealed", "named", "adopted", "clones_logged"]
FREE_MAP, SEALS, NAMES = "tree 3", "tree 4", "tree 5"


def repaired(sound: Original, path: Path, damaged: bytes) -> list[str]:
    """What a repair says it did; afterwards the file is sound, and shows what it did before the damage."""
    path.write_bytes(damaged)
    report = Volume.repair(path)
    assert report.ok, report.problems
    with Volume.open(path, background=False) as volume:
        assert volume.check().ok
    assert contents(path) == sound.shown
    again = Volume.repair(path)
    assert again.ok and again.repaired == []
    return report.repaired


@pytest.mark.parametrize("name", VOLUMES)
def test_a_damaged_table_is_made_anew(tmp_path, name):
    sound, rng = original(name, tmp_path), random.Random(name)
    kinds, path = structures(sound.data), tmp_path / "v"
    assert kinds[FREE_MAP]
    for kind in (FREE_MAP, SEALS, NAMES):
        for at in rng.sample(kinds[kind], min(2, len(kinds[kind]))):
            done = repaired(sound, path, flipped(sound.data, at, rng))
            assert any("checksum is wrong" in one for one in done), done


@pytest.mark.parametrize("name", ["logged", "named"])
def test_a_damaged_superblock_is_written_anew(tmp_path, name):
    sound, path = original(name, tmp_path), tmp_path / "v"
    for at in (0, SLOT):
        assert any("superblock" in one for one in repaired(sound, path, flipped(sound.data, at, random.Random(at))))
    both = flipped(flipped(sound.data, 0, random.Random(1)), SLOT, random.Random(2))
    path.write_bytes(both)
    with pytest.raises(CorruptionError, match="both superblocks are damaged"):
        Volume.repair(path)
    assert path.read_bytes() == both


@pytest.mark.parametrize("name", VOLUMES)
def test_what_would_have_to_be_guessed_is_refused_and_nothing_changes(tmp_path, name):
    sound, rng = original(name, tmp_path), random.Random(name)
    kinds, path = structures(sound.data), tmp_path / "v"
    for at in (kinds["tree 2"][0], *rng.sample(kinds["tree 1"], 2)):
        damaged = flipped(sound.data, at, rng)
        path.write_bytes(damaged)
        if check_file(str(path)).ok:
            continue  # a node of what was given back already
        with pytest.raises(CorruptionError):
            Volume.repair(path)
        assert path.read_bytes() == damaged


# -- wrong tables with right checksums ---------------------------------------------------------------------------------
def resealed(data: bytes, change: dict[str, object]) -> bytes:
    """The file with other fields in its newest superblock."""
    edited = bytearray(data)
    valid = [f.decode_superblock(data[at : at + SLOT]) for at in (0, SLOT)]
    newest = max((0, 1), key=lambda number: valid[number].generation)
    edited[newest * SLOT : (newest + 1) * SLOT] = f.encode_superblock(replace(valid[newest], **change))
    return bytes(edited)


def newest(data: bytes) -> f.Superblock:
    return max((f.decode_superblock(data[at : at + SLOT]) for at in (0, SLOT)), key=lambda sb: sb.generation)


def with_free_map(data: bytes, slots: range, used: bool) -> bytes:
    """The file with other bits in the free map, which is one leaf."""
    sb, edited = newest(data), bytearray(data)
    root = sb.free_map_root
    assert root.level == 0
    at = root.slot * SLOT
    for slot in slots:
        edited[at + slot // 8] = edited[at + slot // 8] & ~(1 << slot % 8) | used << slot % 8
    seed = f.node_seed(f.fold_of(sb.volume_uuid), f.TREE_FREE_MAP, 0, 0)
    return resealed(bytes(edited), {"free_map_root": replace_checksum(root, xxh64(edited[at : at + SLOT], seed))})


def replace_checksum(pointer: f.Pointer, checksum: int) -> f.Pointer:
    raw = bytearray(pointer.encode())
    raw[16:24] = checksum.to_bytes(8, "little")
    return f.Pointer.decode(bytes(raw))


def test_leaked_slots_are_given_back(tmp_path):
    sound, path = original("snapshots", tmp_path), tmp_path / "v"
    end = len(sound.data) // SLOT
    data = with_free_map(sound.data + bytes(20 * SLOT), range(end, end + 20), used=True)
    path.write_bytes(data)
    with Volume.open(path, read_only=True) as volume:
        assert volume.check().counts["leaked"] == 20
    done = repaired(sound, path, data)
    assert len(done) == 1 and "leaked" in done[0]


def test_slots_that_the_free_map_wrongly_calls_free_keep_what_they_hold(tmp_path):
    sound, path = original("snapshots", tmp_path), tmp_path / "v"
    with Volume.open(tmp_path / "original", read_only=True) as volume:
        assert volume.check().counts["slots_used"] > 100
    done = repaired(sound, path, with_free_map(sound.data, range(2, len(sound.data) // SLOT), used=False))
    assert any("calls them free" in one for one in done)


def test_an_open_volume_is_repaired_while_it_is_used(tmp_path):
    path = tmp_path / "v"
    with Volume.create(path, 600 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        for number in range(70):
            volume.snapshot(f"s{number}")
        volume.seal()
        volume.engine.checkpoint()
        assert volume.check(repair=True).repaired == []
        for slots in ((0,), (1,), (0, 1)):
            with path.open("r+b") as file:
                for slot in slots:
                    file.seek(slot * SLOT + 100)
                    file.write(b"rotten")
            report = volume.check(repair=True)
            assert report.ok and len(report.repaired) == len(slots) == report.counts["repaired"]
            volume.pwrite(b"b" * SLOT, 9 * SLOT)
        (run,) = volume.engine.allocator.take(3)
        volume.engine.path.slots.mark_used([run])  # as a bug could
        volume.engine.seals.write(run[0], run[0] % f.SEALS_PER_LEAF * 4, b"seal")
        volume.engine.checkpoint()
        assert not volume.check().ok
        report = volume.check(repair=True)
        assert report.ok and len(report.repaired) == 2
        assert volume.check(repair=True).repaired == []
        assert volume.pread(10 * SLOT, 0) == b"a" * 8 * SLOT + bytes(SLOT) + b"b" * SLOT
        assert len(volume.snapshots()) == 70 and volume.get_snapshot("s0").pread(SLOT, 0) == b"a" * SLOT
        assert volume.verify().ok


def test_an_open_volume_does_not_guess(tmp_path):
    path = tmp_path / "v"
    with Volume.create(path, 600 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        volume.engine.checkpoint()
        with path.open("r+b") as file:
            file.seek(volume.engine.superblock.free_map_root.slot * SLOT)
            file.write(b"\xff")
        before = path.read_bytes()
        with pytest.raises(CorruptionError, match="Close it and repair the file"):
            volume.check(repair=True)
        assert path.read_bytes() == before
    report = Volume.repair(path)
    assert report.ok
    with Volume.open(path, background=False) as volume:
        assert volume.pread(8 * SLOT, 0) == b"a" * 8 * SLOT


def test_a_reclaim_that_was_left_goes_on(tmp_path):
    sound, path = original("half_reclaimed", tmp_path), tmp_path / "v"
    assert any("deleted snapshots" in one for one in repaired(sound, path, sound.data))


def test_what_is_held_or_retained_stays_whatever_is_repaired(tmp_path):
    path, until = tmp_path / "v", datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    with Volume.create(path, 600 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        volume.snapshot("retained").retain_until = until
        volume.snapshot("held").hold("audit")
        volume.pwrite(b"b" * 8 * SLOT, 0)
    data = path.read_bytes()
    path.write_bytes(flipped(data, newest(data).free_map_root.slot * SLOT, random.Random(8)))
    assert Volume.repair(path).ok
    with Volume.open(path, background=False) as volume:
        retained, held = volume.snapshots()
        assert retained.retain_until == until and held.hold_reason == "audit"
        assert retained.pread(8 * SLOT, 0) == b"a" * 8 * SLOT
        for snapshot in (retained, held):
            with pytest.raises((RetentionError, BusyError)):
                snapshot.delete()


def test_a_superblock_that_somebody_else_wrote_is_not_written_over(tmp_path):
    path = tmp_path / "v"
    with Volume.create(path, 600 * SLOT, background=False) as volume:
        volume.engine.checkpoint()
        other = 1 - volume.engine.newest_slot
        foreign = replace(volume.engine.superblock, generation=volume.engine.superblock.generation + 5)
        with path.open("r+b") as file:
            file.seek(other * SLOT)
            file.write(f.encode_superblock(foreign))
        before = path.read_bytes()
        with pytest.raises(CorruptionError, match="somebody else has written a superblock"):
            volume.check(repair=True)
        assert path.read_bytes() == before


def test_what_so_many_rounds_do_not_repair_is_reported(tmp_path, monkeypatch):
    sound, path = original("snapshots", tmp_path), tmp_path / "v"
    end = len(sound.data) // SLOT
    path.write_bytes(with_free_map(sound.data + bytes(20 * SLOT), range(end, end + 20), used=True))
    with Volume.open(path, background=False) as volume:
        monkeypatch.setattr(repair, "ROUNDS", 0)
        report = volume.check(repair=True)
        assert not report.ok and report.repaired == [] and "leaked" in report.problems[0]
        monkeypatch.undo()
        assert volume.check(repair=True).ok


def test_a_snapshot_that_is_not_sealed_as_it_says_may_be_gone_since(tmp_path):
    with Volume.create(tmp_path / "v", 600 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        for name in ("goes", "stays"):
            snapshot = volume.snapshot(name)
            volume.pwrite(name.encode(), 0)
            volume.engine.lineage.seal(snapshot.id)  # as a bug could: there is not one seal
        volume.engine.checkpoint()
        volume.get_snapshot("goes").delete()
        assert [problem.split(" is sealed")[0] for problem in volume.check().problems] == [
            "checkpoint: snapshot 1", "checkpoint: snapshot 2"]  # fmt: skip
        assert volume.stats()["snapshots_unsealed"] == 0
        report = volume.check(repair=True)
        assert report.ok and report.repaired
        assert volume.stats()["snapshots_unsealed"] == 1


def test_of_a_damaged_table_of_seals_sound_leaves_are_kept(tmp_path):
    path = tmp_path / "v"
    with Volume.create(path, 4000 * SLOT, background=False) as volume:
        for block in (0, 1, 2, 1500, 1501):
            volume.pwrite(b"a" * SLOT, block * SLOT)
        volume.snapshot("s")
        volume.seal()
    image = Image(path.read_bytes())
    assert len(image.leaves(f.TREE_SEALS)) == 2
    path.write_bytes(flipped(bytes(image.data), min(image.leaves(f.TREE_SEALS).items())[1], random.Random(1)))
    report = Volume.repair(path)
    assert report.ok and any("checksum is wrong" in one for one in report.repaired)
    with Volume.open(path, background=False) as volume:
        assert volume.check().ok
        assert volume.verify().counts == {"blocks": 5, "verified": 2, "unsealed": 3, "damaged": 0}
        assert volume.seal().done
        assert volume.verify().counts["verified"] == 5


@pytest.mark.parametrize("also", [None, SEALS, NAMES])
def test_slots_behind_the_end_that_are_called_used(tmp_path, also):
    """No bitmap in memory takes them: repair wrote some of the file, and then refused (found by its crash explorer)."""
    sound, path, rng = original("named", tmp_path), tmp_path / "v", random.Random(1)
    image = Image(sound.data)
    (bits,) = (spot for spot in image.spots if spot.what == "free_map.bits")
    image.data[bits.offset + image.slots // 8 + 3] |= 1
    image.seal()
    damaged = bytes(image.data)
    if also and structures(damaged)[also]:
        damaged = flipped(damaged, structures(damaged)[also][0], rng)
    assert any("free map" in line for line in repaired(sound, path, damaged))
    path.write_bytes(damaged)
    with Volume.open(path, background=False) as volume, pytest.raises(CorruptionError, match="Close it"):
        volume.check(repair=True)
