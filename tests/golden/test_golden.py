"""Volumes that an earlier version wrote open, check clean and read as they did, for ever. make.py made them."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.engine.check import check_file
from cowengine.errors import FullBackupRequired

FOLDER = Path(__file__).parent / "v1"
NAMES = sorted(path.name.removesuffix(".cow.gz") for path in FOLDER.glob("*.cow.gz"))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(params=NAMES)
def golden(request, tmp_path):
    """(path of a copy of the volume, what must be in it)."""
    data = gzip.decompress((FOLDER / f"{request.param}.cow.gz").read_bytes())
    path = tmp_path / "volume.cow"
    path.write_bytes(data)
    return path, json.loads((FOLDER / f"{request.param}.json").read_text(encoding="utf-8"))


def compare(volume: Volume, expected: dict) -> None:
    assert (str(volume.id), volume.size, volume.block_size) == (
        expected["id"],
        expected["size"],
        expected["block_size"],
    )
    assert digest(volume.pread(volume.size, 0)) == expected["live"]
    assert volume.allocated_extents().tolist() == expected["allocated"]
    clones = expected.get("clones", {})
    assert volume.heads() == ["live", *clones]
    for name, contents in clones.items():
        with volume.open_head(name) as clone:
            assert digest(clone.pread(clone.size, 0)) == contents
    found = volume.snapshots()
    assert [snapshot.name for snapshot in found] == [snapshot["name"] for snapshot in expected["snapshots"]]
    for snapshot, want in zip(found, expected["snapshots"], strict=True):
        assert (snapshot.id, snapshot.epoch, snapshot.size, snapshot.change_id) == (
            want["id"],
            want["epoch"],
            want["size"],
            want["change_id"],
        )
        assert snapshot.metadata == want["metadata"]
        assert snapshot.is_anchor == (want["contents"] == "anchor")
        if not snapshot.is_anchor:
            assert digest(snapshot.pread(snapshot.size, 0)) == want["contents"]
        if want["changed_since"] == "full backup required":
            with pytest.raises(FullBackupRequired):
                volume.changed_extents(snapshot)
        else:
            assert volume.changed_extents(snapshot).tolist() == want["changed_since"]


def test_all_scenarios_are_there():
    assert sorted(path.name.removesuffix(".json") for path in FOLDER.glob("*.json")) == NAMES
    assert len(NAMES) >= 8


def test_a_golden_file_was_not_rewritten(golden):
    path, expected = golden
    assert digest(path.read_bytes()) == expected["file"]


def test_a_golden_volume_checks_clean(golden):
    path, expected = golden
    report = check_file(str(path))
    assert report.problems == []
    assert report.counts["snapshots"] == len(expected["snapshots"])


def test_a_golden_volume_reads_as_it_did_and_a_read_only_open_writes_nothing(golden):
    path, expected = golden
    before = path.read_bytes()
    with Volume.open(str(path), read_only=True) as volume:
        compare(volume, expected)
    assert path.read_bytes() == before


def test_a_golden_volume_can_be_written_on_and_keeps_its_snapshots(golden):
    path, expected = golden
    with Volume.open(str(path), background=False) as volume:
        compare(volume, expected)
        volume.pwrite(b"new", 0)
        taken = volume.snapshot("by the newer version")
        volume.pwrite(b"newer", 0)
    assert check_file(str(path)).problems == []
    with Volume.open(str(path), background=False) as volume:
        assert volume.pread(5, 0) == b"newer"
        assert volume.get_snapshot(taken.id).pread(3, 0) == b"new"
        for snapshot, want in zip(volume.snapshots(), expected["snapshots"], strict=False):
            assert snapshot.is_anchor or digest(snapshot.pread(snapshot.size, 0)) == want["contents"]
        volume.reclaim()
    assert check_file(str(path)).problems == []


def test_the_goldens_hold_what_their_scenarios_are_about(tmp_path):
    """A log to replay, a deleted snapshot that still holds space, anchors, and a log that went round."""
    counts = {}
    for name in NAMES:
        path = tmp_path / f"{name}.cow"
        path.write_bytes(gzip.decompress((FOLDER / f"{name}.cow.gz").read_bytes()))
        counts[name] = check_file(str(path)).counts
    assert counts["unclean"]["records"] > 4
    assert counts["deleted"]["deleted"] == 1
    assert (counts["anchors"]["anchors"], counts["anchors"]["deleted"]) == (4, 0)
    assert (counts["clones"]["clones"], counts["clones"]["snapshots"]) == (2, 3)
    assert counts["clones"]["records"] > 1
    assert counts["plain"]["records"] == counts["snapshots"]["records"] == 0
