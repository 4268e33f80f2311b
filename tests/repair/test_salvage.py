"""Salvage: everything that can be read of a damaged file, never wrong bytes, and a list of what is missing."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hostile_image import SLOT
from salvage_damage import Original, flipped, original, structures, wrong_bytes

from cowengine import BusyError, CorruptionError, ExistsError, FormatError, NotFoundError, Salvaged, Volume
from cowengine.core.iotable import KERNEL, IOTable

VOLUMES = ["snapshots", "logged", "half_reclaimed", "sealed", "adopted", "large_blocks", "clones_logged"]


def salvaged(path: Path, name: str, **options: object) -> tuple[Salvaged, bytes]:
    """The report, and the image, of the live volume ("") or a snapshot."""
    target = path.with_suffix(".img")
    target.unlink(missing_ok=True)
    report = Volume.salvage(path, target, snapshot=name or None, **options)
    return report, target.read_bytes()


@pytest.mark.parametrize("name", VOLUMES)
def test_all_of_a_sound_file(tmp_path, name):
    sound = original(name, tmp_path)
    path = tmp_path / "v"
    path.write_bytes(sound.data)
    for snapshot, truth in sound.shown.items():
        report, image = salvaged(path, snapshot)
        assert report.ok and not report.lost and image == truth
        assert report.counts["lost"] == 0 and report.counts["blocks"] > 0
        assert report.counts["blocks"] == report.counts["verified"] + report.counts["unsealed"]
    assert path.read_bytes() == sound.data


def few(sound: Original) -> Original:
    """The live volume and three of its snapshots."""
    return sound._replace(
        shown={
            name: sound.shown[name] for name in ["", *random.Random(7).sample([*sound.shown], min(3, len(sound.shown)))]
        }
    )


def attack(sound: Original, path: Path, damaged: bytes) -> tuple[int, int]:
    """Salvages everything from a damaged file; how many images there were, and how many of them are whole."""
    path.write_bytes(damaged)
    images = whole = 0
    for name, truth in sound.shown.items():
        try:
            report, image = salvaged(path, name)
        except (CorruptionError, NotFoundError, FormatError):
            continue
        older = any("are lost" in problem for problem in report.problems)
        truths = [*sound.shown.values(), bytes(len(image))] if older and not name else [truth]
        assert wrong_bytes(image, truths, report.lost, 4096 if len(truth) % 16384 else 16384) == []
        assert bool(report.lost) <= (not report.ok)
        images += 1
        whole += image == truth and report.ok
    assert path.read_bytes() == damaged
    return images, whole


@pytest.mark.parametrize("name", VOLUMES)
def test_never_wrong_bytes_whatever_is_damaged(tmp_path, name):
    sound, rng = few(original(name, tmp_path)), random.Random(name)
    kinds = structures(sound.data)
    tried = images = 0
    for places in kinds.values():
        for at in rng.sample(places, min(len(places), 3)):
            made, _ = attack(sound, tmp_path / "v", flipped(sound.data, at, rng))
            tried, images = tried + len(sound.shown), images + made
    assert images > tried * 0.6


def test_one_damaged_superblock_loses_nothing(tmp_path):
    sound, rng = original("logged", tmp_path), random.Random(1)
    for at in (0, SLOT):
        assert attack(sound, tmp_path / "v", flipped(sound.data, at, rng)) == (len(sound.shown),) * 2
    both = flipped(flipped(sound.data, 0, rng), SLOT, rng)
    assert attack(sound, tmp_path / "v", both) == (0, 0)
    with pytest.raises(CorruptionError, match="both superblocks are damaged"):
        salvaged(tmp_path / "v", "")


def test_tables_that_only_the_engine_needs_may_be_damaged(tmp_path):
    sound, rng = original("named", tmp_path), random.Random(2)
    kinds = structures(sound.data)
    for at in [*kinds["tree 3"], *kinds["tree 5"][:4]]:
        images, whole = attack(sound, tmp_path / "v", flipped(sound.data, at, rng))
        assert images == whole == len(sound.shown)


def grown(path: Path, *, snapshots: bool) -> bytes:
    """A volume of 2,000 blocks in two checkpoints that differ, closed by a crash: the content."""
    volume = Volume.create(path, 2000 * SLOT, background=False)
    for block in range(0, 2000, 100):
        volume.pwrite(os.urandom(SLOT), block * SLOT)
    volume.engine.checkpoint()
    if snapshots:
        volume.snapshot("old")
    volume.pwrite(os.urandom(SLOT), 0)
    volume.engine.checkpoint()
    volume.pwrite(os.urandom(SLOT), SLOT)
    volume.flush()
    shown, data = volume.pread(volume.size, 0), path.read_bytes()
    volume.close()
    path.write_bytes(data)
    return shown


def test_what_one_checkpoint_lost_the_older_one_and_the_log_still_have(tmp_path):
    path = tmp_path / "v"
    shown = grown(path, snapshots=True)
    data, rng = path.read_bytes(), random.Random(3)
    saved = 0
    for at in structures(data)["tree 1"]:
        path.write_bytes(flipped(data, at, rng))
        report, image = salvaged(path, "")
        assert wrong_bytes(image, [shown], report.lost) == []
        saved += image == shown
    assert saved  # the nodes of the newest checkpoint alone


def test_a_damaged_leaf_of_the_map_costs_its_own_blocks_only(tmp_path):
    path = tmp_path / "v"
    shown = grown(path, snapshots=False)
    Volume.open(path, background=False).close()
    data, rng = path.read_bytes(), random.Random(4)
    leaf = structures(data)["tree 1"][0]
    for at in structures(data)["tree 1"]:
        path.write_bytes(flipped(data, at, rng))
        report, image = salvaged(path, "")
        assert wrong_bytes(image, [shown], report.lost) == []
        if report.lost and report.lost[0].length <= 256 * SLOT:
            leaf = at
    path.write_bytes(flipped(data, leaf, rng))
    report, image = salvaged(path, "")
    (lost,) = report.lost
    assert lost.length <= 256 * SLOT and "checksum is wrong" in lost.why and str(lost.offset) in report.problems[0]
    assert image[: lost.offset] == shown[: lost.offset]
    assert image[lost.offset + lost.length :] == shown[lost.offset + lost.length :]


def test_a_record_that_rotted_with_others_behind_it(tmp_path):
    """What has no seal could lie where a later record put something else: left out unless asked for."""
    path = tmp_path / "v"
    volume = Volume.create(path, 64 * SLOT, background=False)
    volume.pwrite(b"a" * 8 * SLOT, 0)
    volume.snapshot("sealed")
    volume.seal()
    volume.engine.checkpoint()
    volume.engine.checkpoint()
    place = volume.engine.superblock.log_first * SLOT + volume.engine.log.position % volume.engine.log.size
    for letter in (b"b", b"c", b"d"):
        volume.pwrite(letter * 4 * SLOT, 4 * SLOT)
        volume.snapshot(letter.decode())
    data = path.read_bytes()
    volume.close()
    path.write_bytes(flipped(data, place, random.Random(5), 120))
    with pytest.raises(CorruptionError):
        Volume.open(path, background=False)
    report, image = salvaged(path, "sealed")
    assert image == b"a" * 8 * SLOT + bytes(56 * SLOT) and not report.lost
    assert not report.ok and "are lost" in report.problems[0] and report.counts["verified"] == 8
    report, image = salvaged(path, "")
    assert image == b"a" * 8 * SLOT + bytes(56 * SLOT)  # the state before the record; its blocks are sealed
    with pytest.raises(NotFoundError):
        salvaged(path, "c")


def test_lost_records_hide_what_nobody_sealed(tmp_path):
    path = tmp_path / "v"
    volume = Volume.create(path, 64 * SLOT, background=False)
    volume.pwrite(b"a" * 8 * SLOT, 0)
    volume.engine.checkpoint()
    volume.engine.checkpoint()
    place = volume.engine.superblock.log_first * SLOT + volume.engine.log.position % volume.engine.log.size
    for letter in (b"b", b"c"):
        volume.pwrite(letter * SLOT, 20 * SLOT)
        volume.snapshot(letter.decode())
    data = path.read_bytes()
    volume.close()
    path.write_bytes(flipped(data, place, random.Random(6), 120))
    report, image = salvaged(path, "")
    assert image == bytes(64 * SLOT) and [(lost.offset, lost.length) for lost in report.lost] == [(0, 8 * SLOT)]
    report, image = salvaged(path, "", doubtful=True)
    assert image == b"a" * 8 * SLOT + bytes(56 * SLOT) and not report.lost and not report.ok


def test_a_block_that_does_not_fit_its_seal_is_a_hole(tmp_path):
    path = tmp_path / "v"
    with Volume.create(path, 64 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        volume.snapshot("s")
        volume.seal()
        slot, _ = volume.engine.path.place(3)
    data = bytearray(path.read_bytes())
    data[slot * SLOT + 7] ^= 1
    path.write_bytes(data)
    report, image = salvaged(path, "s")
    assert [(lost.offset, lost.length) for lost in report.lost] == [(3 * SLOT, SLOT)]
    assert image == b"a" * 3 * SLOT + bytes(SLOT) + b"a" * 4 * SLOT + bytes(56 * SLOT)
    assert report.counts == {"blocks": 7, "verified": 7, "unsealed": 0, "lost": 1}
    with Volume.open(path, background=False) as volume:
        for source in (volume, volume.get_snapshot("s")):
            with pytest.raises(CorruptionError):
                source.export(tmp_path / "strict.img")
            again = source.export(tmp_path / f"{source.size}.img", salvage=True)
            assert again.lost == report.lost and (tmp_path / f"{source.size}.img").read_bytes() == image
            (tmp_path / f"{source.size}.img").unlink()
    assert not (tmp_path / "strict.img").exists()


class Unreadable(IOTable):
    """The kernel's, except that one place of the disk gives EIO."""

    def __init__(self, at: int) -> None:
        self.at = at

    def pread(self, fd, length, offset):
        if offset <= self.at < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return KERNEL.pread(fd, length, offset)


def test_bad_sectors_are_read_around(tmp_path):
    path, image = tmp_path / "v", tmp_path / "image"
    shown = grown(path, snapshots=True)
    kinds = structures(path.read_bytes())
    for at in (kinds["tree 2"][0], kinds["tree 1"][0], kinds["log"][0]):
        report = Volume.salvage(path, image, io=Unreadable(at))
        truths = [shown, bytes(len(shown))] if "are lost" in " ".join(report.problems) else [shown]
        assert wrong_bytes(image.read_bytes(), truths, report.lost) == []
        image.unlink()
    with Volume.open(path, read_only=True, background=False) as volume:
        slot, _ = volume.engine.path.place(500)
    report = Volume.salvage(path, image, io=Unreadable(slot * SLOT + 700))
    assert [(lost.offset, lost.length) for lost in report.lost] == [(500 * SLOT, SLOT)]
    assert "Input/output error" in report.lost[0].why


def test_a_file_that_was_cut_short(tmp_path):
    path = tmp_path / "v"
    with Volume.create(path, 64 * SLOT, background=False, barriers=2) as volume:
        volume.pwrite(b"a" * 2 * SLOT, 0)
        volume.snapshot("old")
        volume.engine.checkpoint()
        volume.pwrite(b"b" * 2 * SLOT, 0)
        volume.flush()
        slot, count = volume.engine.path.place(0)
        data = path.read_bytes()
    assert count == 2
    path.write_bytes(data[: (slot + 1) * SLOT])
    report, image = salvaged(path, "")
    assert image == b"b" * SLOT + bytes(63 * SLOT)
    assert report.lost == [(SLOT, SLOT, "its place lies behind the end of the file")]
    assert salvaged(path, "old")[1] == b"a" * 2 * SLOT + bytes(62 * SLOT)


def test_what_cannot_be(tmp_path):
    path, image = tmp_path / "v", tmp_path / "image"
    with Volume.create(path, 64 * SLOT, background=False) as volume:
        volume.snapshot("s").to_anchor()
        with pytest.raises(BusyError):
            Volume.salvage(path, image)
        with pytest.raises(ExistsError):
            volume.export(path)
        assert volume.export(image).counts == {"bytes": 64 * SLOT}
        assert image.read_bytes() == bytes(64 * SLOT)
        with pytest.raises(ExistsError):
            volume.export(image, salvage=True)
    with pytest.raises(ExistsError):
        Volume.salvage(path, image)
    with pytest.raises(NotFoundError):
        Volume.salvage(path, tmp_path / "other", snapshot="s")
    (tmp_path / "none").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(FormatError):
        Volume.salvage(tmp_path / "none", tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["image", "none", "v"]
