"""Events that no commit wrote, in a record whose checksum is right: replay refuses them, and the checker names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile_image import Image
from mutate import original

from cowengine import Volume
from cowengine import format as f
from cowengine.engine.check import check_file
from cowengine.errors import CorruptionError

BRANCH_POINT = 2  # deleted, and waiting until one is left of those that stand on it


@dataclass
class Here:
    """What there is in the volume of `hostile_volumes.clones` for an event to speak of."""

    ids: dict[str, int]
    origins: dict[str, int]
    numbers: dict[str, int]
    frozen: dict[str, int]
    next_id: int
    epoch: int  # the newest one given out

    def clone(self, **changes: int | str) -> f.CloneEvent:
        """A clone event that is possible, but for the changes."""
        fields = {
            "number": 200, "id": self.next_id, "snapshot": self.ids["s2"], "epoch": self.epoch + 1, "created_ns": 1,
            "name": "new", **changes,
        }  # fmt: skip
        return f.CloneEvent(**fields)  # type: ignore[arg-type]


def here(path: Path) -> Here:
    with Volume.open(path, read_only=True, background=False) as volume:
        lineage = volume.engine.lineage
        heads = {record.name: record for record in lineage.heads.values()}
        return Here(
            {snapshot.name: snapshot.id for snapshot in volume.snapshots()},
            {name: record.origin for name, record in heads.items()},
            {name: record.number for name, record in heads.items()},
            {name: record.frozen for name, record in heads.items()},
            lineage.next_id,
            volume.engine.superblock.epoch,
        )


def with_events(path: Path, *events: f.Event) -> None:
    """The volume, with one more record in its log."""
    image = Image(original("clones"))
    record = f.Record(0, 0, 0, 0, image.u64(image.superblock + 152) + 2, 0, 300 * 4096, events=list(events))
    assert image.append_record(record)
    image.seal()
    path.write_bytes(image.data)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "v").write_bytes(original("clones"))
    return tmp_path / "v"


POSSIBLE: dict[str, Callable[[Here], list[f.Event]]] = {
    "a clone": lambda at: [at.clone()],
    "a clone that goes": lambda at: [f.DeleteHeadEvent(at.numbers["one"], at.epoch)],
    "the origin of a clone that went": lambda at: [
        f.DeleteHeadEvent(at.numbers["one"], at.epoch), f.DeleteEvent(at.origins["one"])],
    "the origin of a clone that was rolled back elsewhere": lambda at: [
        f.RollbackEvent(at.numbers["one"], at.ids["s2"], at.epoch + 1, 300 * 4096), f.AnchorEvent(at.origins["one"])],
    "the end of a branch is reclaimed": lambda at: [
        f.DeleteEvent(at.ids["before-rollback-11"]), f.ReclaimedEvent(at.ids["before-rollback-11"])],
    "a branch point that is none any more is reclaimed": lambda at: [
        f.DeleteEvent(at.ids["before-rollback-11"]), f.ReclaimEvent(at.ids["before-rollback-11"], 5),
        f.ReclaimedEvent(at.ids["before-rollback-11"]),
        f.DeleteEvent(at.ids["of two"]), f.ReclaimEvent(at.ids["of two"], 5), f.ReclaimedEvent(at.ids["of two"])],
    "a snapshot of a clone": lambda at: [
        f.SnapshotEvent(at.next_id, at.epoch + 1, 1, 1, "new", head=at.numbers["two"])],
}  # fmt: skip
IMPOSSIBLE: dict[str, Callable[[Here], list[f.Event]]] = {
    "the origin of a clone is deleted": lambda at: [f.DeleteEvent(at.origins["three"])],
    "the origin of a clone becomes an anchor": lambda at: [f.AnchorEvent(at.origins["three"])],
    "the origin of a clone is given up": lambda at: [f.GiveUpEvent(at.origins["three"], 1)],
    "the origin goes, and then the clone": lambda at: [
        f.DeleteEvent(at.origins["one"]), f.DeleteHeadEvent(at.numbers["one"], at.epoch)],
    "a branch point begins to be reclaimed": lambda at: [f.ReclaimEvent(BRANCH_POINT, 0)],
    "a branch point is reclaimed to its end": lambda at: [f.ReclaimedEvent(BRANCH_POINT)],
    "a branch point is deleted and reclaimed": lambda at: [
        f.DeleteEvent(at.ids["of two"]), f.ReclaimedEvent(at.ids["of two"])],
    "a branch point is reclaimed before what made it one": lambda at: [
        f.DeleteEvent(at.ids["before-rollback-11"]), f.DeleteEvent(at.ids["of two"]),
        f.ReclaimedEvent(at.ids["of two"]), f.ReclaimedEvent(at.ids["before-rollback-11"])],
    "a clone of nothing": lambda at: [at.clone(snapshot=1000)],
    "a clone of a head": lambda at: [at.clone(snapshot=0)],
    "a clone of an anchor": lambda at: [at.clone(snapshot=at.ids["s3"])],
    "a clone of what was deleted": lambda at: [f.DeleteEvent(at.ids["of two"]), at.clone(snapshot=at.ids["of two"])],
    "a clone with the number of another": lambda at: [at.clone(number=at.numbers["two"])],
    "a clone with the name of another": lambda at: [at.clone(name="two")],
    "a clone with the name of the live volume": lambda at: [at.clone(name="live")],
    "a clone with an id that was given out": lambda at: [at.clone(id=at.next_id - 1)],
    "a clone in a frozen epoch": lambda at: [at.clone(epoch=max(at.frozen.values()))],
    "a clone made twice": lambda at: [at.clone(), at.clone(id=at.next_id + 1, epoch=at.epoch + 2)],
    "a clone goes that is not there": lambda at: [f.DeleteHeadEvent(200, at.epoch)],
    "a clone goes twice": lambda at: 2 * [f.DeleteHeadEvent(at.numbers["two"], at.epoch)],
    "a clone goes in a frozen epoch": lambda at: [f.DeleteHeadEvent(at.numbers["two"], at.frozen["two"])],
    "a snapshot of a clone that is not there": lambda at: [
        f.SnapshotEvent(at.next_id, at.epoch + 1, 1, 1, "new", head=200)],
    "a snapshot of a clone that went": lambda at: [
        f.DeleteHeadEvent(at.numbers["two"], at.epoch),
        f.SnapshotEvent(at.next_id, at.epoch + 1, 1, 1, "new", head=at.numbers["two"])],
    "a clone is rolled back to an anchor": lambda at: [
        f.RollbackEvent(at.numbers["two"], at.ids["s3"], at.epoch + 1, 300 * 4096)],
    "a clone is rolled back to a head": lambda at: [
        f.RollbackEvent(at.numbers["two"], 0, at.epoch + 1, 300 * 4096)],
    "a clone is rolled back to nothing": lambda at: [
        f.RollbackEvent(at.numbers["two"], 1000, at.epoch + 1, 300 * 4096)],
    "a clone is rolled back to what was deleted": lambda at: [
        f.DeleteEvent(at.ids["of two"]),
        f.RollbackEvent(at.numbers["two"], at.ids["of two"], at.epoch + 1, 300 * 4096)],
    "a clone is rolled back to another size": lambda at: [
        f.RollbackEvent(at.numbers["two"], at.ids["s2"], at.epoch + 1, 299 * 4096)],
    "what was deleted is held": lambda at: [f.DeleteEvent(at.ids["of two"]), f.HoldEvent(at.ids["of two"], "why")],
    "what is held is deleted": lambda at: [f.HoldEvent(at.ids["of two"], "why"), f.DeleteEvent(at.ids["of two"])],
    "a clone that is not there is resized": lambda at: [f.ResizeEvent(200, 4096, at.epoch)],
}  # fmt: skip


@pytest.mark.parametrize("what", POSSIBLE)
def test_the_same_events_in_a_possible_order_are_taken(what: str, volume: Path) -> None:
    """Or else the others show nothing."""
    with_events(volume, *POSSIBLE[what](here(volume)))
    report = check_file(str(volume))
    assert not [text for text in report.problems if "record" in text.split(":")[0]], report.problems
    Volume.open(volume, background=False).close()


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_is_refused(what: str, volume: Path) -> None:
    with_events(volume, *IMPOSSIBLE[what](here(volume)))
    before = volume.read_bytes()
    try:
        assert check_file(str(volume)).problems
    except CorruptionError:
        pass
    for read_only in (True, False):
        with pytest.raises(CorruptionError):
            Volume.open(volume, read_only=read_only, background=False)
    assert volume.read_bytes() == before
