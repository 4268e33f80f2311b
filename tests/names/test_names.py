"""Snapshots of a volume with an index of names are found by name, epoch, position and parent (I43)."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile_image import Image

from cowengine import ExistsError, NoSpaceError, NotFoundError, Volume
from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable
from cowengine.engine import hashindex, names
from cowengine.engine.changes import Changes
from cowengine.engine.check import check_file
from cowengine.engine.counts import Counts
from cowengine.engine.names import Names
from cowengine.format import SLOT_BYTES, TREE_NAMES, decode_superblock
from cowengine.format import names as format_names
from cowengine.format.layout import NAME_ENTRY_BYTES
from cowengine.format.names import KIND_EPOCH, KIND_NAME, bucket_of_leaf, epoch_hash, name_hash

COUNT = 300
KIB = 1024


class Unsynced(IOTable):
    def fdatasync(self, fd: int) -> None:
        """Nothing: no power is cut here."""


def create(path: Path, **options: Any) -> Volume:
    return Volume.create(path, 1 << 20, background=False, io=Unsynced(), **{"log_size": 64 * KIB, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred snapshots, every seventh one deleted, one anchor, a branch; closed."""
    path = tmp_path_factory.mktemp("names") / "v"
    with create(path) as volume:
        for number in range(COUNT):
            volume.pwrite(b"%d" % number, number % 50 * 4096)
            volume.snapshot(f"s{number}")
        for number in range(0, COUNT, 7):
            volume.get_snapshot(f"s{number}").delete()
        volume.get_snapshot("s100").to_anchor()
        volume.rollback("s200")
        volume.pwrite(b"branch", 0)
        volume.snapshot("on the branch")
        volume.get_snapshot("s200").delete()  # two stand on it: it waits
        volume.reclaim()
    return path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(made, tmp_path / "v"))


def expected() -> list[str]:
    kept = [f"s{number}" for number in range(COUNT) if number % 7 and number != 200]
    return [*kept, f"before-rollback-{COUNT + 1}", "on the branch"]


def superblock(path: Path) -> Any:
    return max((decode_superblock(path.read_bytes()[n * SLOT_BYTES :][:SLOT_BYTES]) for n in (0, 1)),
               key=lambda sb: sb.generation)  # fmt: skip


def verify(volume: Volume) -> None:
    """All ways to find a snapshot agree."""
    found = volume.snapshots()
    assert [snapshot.name for snapshot in found] == expected()
    assert volume.stats()["snapshots"] == len(found)
    for position, snapshot in list(enumerate(found))[::17]:
        assert volume.get_snapshot(snapshot.name).id == snapshot.id
        assert [one.id for one in volume.snapshots(position, 3)] == [one.id for one in found[position : position + 3]]
        assert volume.engine.lineage.find_epoch(snapshot.epoch).id == snapshot.id  # type: ignore[union-attr]
    assert volume.snapshots(len(found)) == []
    for gone in ("s7", "s200", "", "no such", "\udcff"):
        with pytest.raises(NotFoundError):
            volume.get_snapshot(gone)
    with pytest.raises(ExistsError):
        volume.snapshot("s1")
    assert volume.stats()["reclaims_pending"] == 1
    children = volume.engine.lineage.children(201)
    assert children == {202, COUNT + 2}


@pytest.mark.parametrize("read_only", [False, True])
def test_an_open_finds_all_through_the_index(copy: Path, read_only: bool) -> None:
    assert superblock(copy).name_entries > COUNT
    with Volume.open(copy, read_only=read_only, background=False) as volume:
        if not read_only:
            verify(volume)
        assert [snapshot.name for snapshot in volume.snapshots()] == expected()
        assert volume.engine.lineage.names.kept


def test_finding_one_reads_few_nodes(copy: Path) -> None:
    with Volume.open(copy, background=False) as volume:
        table = volume.engine.table
        before = table.nodes()
        volume.get_snapshot("s150")
        volume.snapshot("new")
        volume.get_snapshot("s151").delete()
        assert table.nodes() - before <= 10  # of 40: two leaves, and those of groups in which something waits
        assert volume.engine.lineage.names.table.nodes() <= 10


def test_a_log_full_of_changes_is_replayed_beside_the_index(copy: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    with Volume.open(copy, background=False) as volume:
        volume.snapshot("s7")  # a name that was deleted
        volume.get_snapshot("s1").delete()
        volume.reclaim()
        volume.get_snapshot("s2").delete()
        volume.rollback("s50")
        volume.snapshot("third branch")
        shutil.copyfile(copy, crashed)
        wanted = [(snapshot.id, snapshot.name) for snapshot in volume.snapshots()]
    for path in (crashed, copy):
        with Volume.open(path, background=False) as volume:
            assert volume.engine.lineage.names.kept
            assert [(snapshot.id, snapshot.name) for snapshot in volume.snapshots()] == wanted
            assert volume.get_snapshot("s7").id == COUNT + 3
            with pytest.raises(NotFoundError):
                volume.get_snapshot("s2")
            assert volume.check().problems == []


def test_a_small_volume_has_no_index_and_gets_one_when_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with create(path) as volume:
        for number in range(10):
            volume.snapshot(f"s{number}")
    assert superblock(path).name_entries == 0
    with Volume.open(path, background=False) as volume:
        for number in range(10, names.KEPT_FROM):
            volume.snapshot(f"s{number}")
    assert superblock(path).name_entries == 2 * names.KEPT_FROM
    assert superblock(path).linear
    assert check_file(str(path)).problems == []


def test_an_index_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume is large enough for an index when its last snapshot is gone."""
    path = tmp_path / "v"
    monkeypatch.setattr(names, "KEPT_FROM", 1000)
    with create(path) as volume:
        for number in range(10):
            volume.snapshot(f"s{number}")
        for snapshot in volume.snapshots():
            snapshot.delete()
        volume.reclaim()
    monkeypatch.setattr(names, "KEPT_FROM", 1)
    for number in range(2):
        with Volume.open(path, background=False) as volume:
            assert volume.snapshots() == []
            assert volume.engine.lineage.names.kept == (number > 0)
    assert check_file(str(path)).problems == []
    with Volume.open(path, background=False) as volume:
        volume.snapshot("s1")
    assert check_file(str(path)).problems == []


# -- hashes of an enemy -----------------------------------------------------------------------------------------------
Stems = Callable[[bytes, int], int]


def text_key(hashed: Stems, fold: int, kind: int, text: str) -> int:
    """As docs/format.md section 4 says."""
    raw = text.encode("utf-8", "surrogatepass")
    return (hashed(bytes([kind]) + raw[:-1], fold) & (1 << 56) - 1 | (raw[-1] if raw else 0) << 56) or 1


def number_key(hashed: Stems, fold: int, kind: int, number: int) -> int:
    return (hashed(struct.pack("<BQ", kind, number >> 4), fold) & (1 << 56) - 1 | (number & 15) << 56) or 1


def hash_stems_by(monkeypatch: pytest.MonkeyPatch, hashed: Stems) -> None:
    monkeypatch.setattr(format_names, "text_key", partial(text_key, hashed))
    monkeypatch.setattr(format_names, "number_key", partial(number_key, hashed))


@pytest.mark.parametrize("fold", [0, 1, (1 << 64) - 1])
def test_keys_are_those_of_the_document(fold: int) -> None:
    for text in ("", "a", "ab", "s17", "\udc80", "\u00e9" * 127, "x" * 300):
        assert name_hash(fold, text) == text_key(xxh64, fold, 1, text)
    for number in (0, 1, 15, 16, 1 << 32, (1 << 64) - 1):
        assert epoch_hash(fold, number) == number_key(xxh64, fold, 2, number)
        assert format_names.parent_hash(fold, number) == number_key(xxh64, fold, 3, number)


@pytest.mark.parametrize("collide", [lambda data, fold: 5, lambda data, fold: data[0]])
def test_names_whose_stems_have_one_hash_are_slow_and_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collide: Callable[[bytes, int], int]
) -> None:
    hash_stems_by(monkeypatch, collide)
    path = tmp_path / "v"
    rng = random.Random(3)
    with create(path) as volume:
        there: set[str] = set()
        for number in range(200):
            volume.snapshot(f"s{number}")
            there.add(f"s{number}")
            if number % 3 == 2:
                gone = rng.choice(sorted(there))
                volume.get_snapshot(gone).delete()
                there.discard(gone)
        volume.reclaim()
    assert check_file(str(path)).problems == []
    with Volume.open(path, background=False) as volume:
        assert volume.engine.lineage.names.kept
        assert {snapshot.name for snapshot in volume.snapshots()} == there
        assert all(volume.get_snapshot(name).name == name for name in there)


def test_hundreds_of_branches_from_one_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with create(path) as volume:
        base = volume.snapshot("base")
        for _ in range(300):
            volume.rollback(base)  # its automatic snapshot is a further child
    assert check_file(str(path)).problems == []
    with Volume.open(path, background=False) as volume:
        assert volume.engine.lineage.names.kept
        assert len(volume.engine.lineage.children(base.id)) == 301
        for snapshot in volume.snapshots(1, 300)[::-1]:
            snapshot.delete()
        volume.reclaim()
        assert volume.engine.lineage.children(base.id) == {0}
    assert check_file(str(path)).problems == []


def test_splits_through_several_levels_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one entry a bucket, the 128th bucket is behind the second leaf of counts, and the root has level 2."""
    monkeypatch.setattr(hashindex, "LOAD", 1)
    path = tmp_path / "v"
    with create(path) as volume:
        for number in range(120):
            volume.snapshot(f"s{number}")
        volume.get_snapshot("s60").delete()
    assert superblock(path).name_root.level == 2
    assert check_file(str(path)).problems == []
    with Volume.open(path, background=False) as volume:
        assert len(volume.snapshots()) == 119
        assert volume.get_snapshot("s119").id == 120


# -- damage and want ---------------------------------------------------------------------------------------------------
def slots_of_index(path: Path, *, leaves: bool) -> list[int]:
    from cowengine.core.iotable import KERNEL
    from cowengine.engine.check_trees import Problems, Trees
    from cowengine.format import TREE_NAMES, fold_of

    sb = superblock(path)
    fd = KERNEL.open(str(path), 0)
    try:
        trees = Trees(KERNEL, fd, fold_of(sb.volume_uuid), 1, Problems())
        trees.leaves(TREE_NAMES, sb.name_root)
    finally:
        KERNEL.close(fd)
    return [slot for slot, (_, level, _) in trees.nodes.items() if (level == 0) == leaves]


@pytest.mark.parametrize("leaves", [True, False])
def test_a_damaged_index_is_given_up_and_written_anew(copy: Path, leaves: bool, caplog: Any) -> None:
    with open(copy, "r+b") as file:
        for slot in slots_of_index(copy, leaves=leaves):
            file.seek(slot * SLOT_BYTES + 100)
            file.write(b"damage")
    assert any("names node" in problem for problem in check_file(str(copy)).problems)
    with Volume.open(copy, read_only=True) as volume:
        assert [snapshot.name for snapshot in volume.snapshots()] == expected()
        assert volume.get_snapshot("s150").id == 151
    with caplog.at_level("WARNING", "cowengine.engine"), Volume.open(copy, background=False) as volume:
        verify(volume)
        volume.snapshot("after")
        volume.engine.checkpoint()
        assert volume.engine.lineage.names.kept
    assert "given up: it is damaged" in caplog.text
    report = check_file(str(copy))
    assert report.problems == [] if leaves else all("leaked" in problem for problem in report.problems)
    with Volume.open(copy, background=False) as volume:
        assert volume.get_snapshot("after").id == COUNT + 3
        assert volume.engine.lineage.names.kept


def test_a_bucket_that_cannot_be_read_is_noticed_when_a_name_is_looked_for(copy: Path, caplog: Any) -> None:
    image = Image(copy.read_bytes())
    with open(copy, "r+b") as file:
        for leaf, at in image.leaves(TREE_NAMES).items():
            if bucket_of_leaf(leaf) is not None:
                file.seek(at + 100)
                file.write(b"damage")
    with caplog.at_level("WARNING", "cowengine.engine"), Volume.open(copy, background=False) as volume:
        assert volume.stats()["snapshots"] == len(expected())  # of the counts, which are sound
        assert volume.engine.lineage.names.kept
        verify(volume)
        assert not volume.engine.lineage.names.kept
    assert "given up: it is damaged" in caplog.text


def test_a_bucket_that_cannot_be_read_is_noticed_when_it_is_to_change(copy: Path, caplog: Any) -> None:
    with caplog.at_level("WARNING", "cowengine.engine"), Volume.open(copy, background=False) as volume:
        volume.snapshot("new")
        image = Image(copy.read_bytes())
        volume.engine.lineage.names.table.unload()  # which bucket a hash leads to is chance: none is in memory
        with open(copy, "r+b") as file:
            for at in image.leaves(TREE_NAMES).values():
                file.seek(at + 100)
                file.write(b"damage")
        assert volume.engine.lineage.names.kept
        volume.engine.checkpoint()
        assert "given up: it is damaged" in caplog.text
        assert volume.engine.lineage.names.kept  # a new one
    with Volume.open(copy, background=False) as volume:
        assert volume.get_snapshot("new").id == COUNT + 3
        assert [snapshot.name for snapshot in volume.snapshots()] == [*expected(), "new"]


def spoil(path: Path, change: Callable[[int, bytearray], None]) -> None:
    """Changes leaves of the index of names; all checksums are right."""
    image = Image(path.read_bytes())
    for leaf, at in image.leaves(TREE_NAMES).items():
        page = image.data[at : at + SLOT_BYTES]
        change(leaf, page)
        image.data[at : at + SLOT_BYTES] = page
    image.seal()
    path.write_bytes(image.data)


@pytest.mark.parametrize(("count", "told"), [(100, "counts 100 snapshots"), (60, "counts 60 snapshots from id 0")])
def test_counts_that_cannot_be_are_not_believed(copy: Path, caplog: Any, count: int, told: str) -> None:
    def first_count(leaf: int, page: bytearray) -> None:
        if bucket_of_leaf(leaf) is None:
            page[0] = count

    spoil(copy, first_count)
    assert any("instead of" in problem for problem in check_file(str(copy)).problems)
    with caplog.at_level("WARNING", "cowengine.engine"), Volume.open(copy, background=False) as volume:
        assert [snapshot.name for snapshot in volume.snapshots()] == expected()
        assert told in caplog.text
        verify(volume)


def test_the_checker_sees_what_stands_behind_the_last_entry_of_a_bucket(copy: Path) -> None:
    def behind_the_last(leaf: int, page: bytearray) -> None:
        if bucket_of_leaf(leaf) is not None and not page[-1]:
            page[-1] = 1

    spoil(copy, behind_the_last)
    assert any("stands behind its last entry" in problem for problem in check_file(str(copy)).problems)


def test_the_checker_sees_a_page_that_is_not_full_before_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_stems_by(monkeypatch, lambda data, fold: 5)
    path = tmp_path / "v"
    with create(path) as volume:
        for number in range(COUNT):
            volume.snapshot(f"s{number}")
    assert check_file(str(path)).problems == []

    def no_last_entry(leaf: int, page: bytearray) -> None:
        if bucket_of_leaf(leaf) is not None and any(page[-NAME_ENTRY_BYTES:]):
            page[-NAME_ENTRY_BYTES:] = bytes(NAME_ENTRY_BYTES)

    spoil(path, no_last_entry)
    assert any("the one before it is not full" in problem for problem in check_file(str(path)).problems)


def test_an_index_that_is_in_the_way_of_a_full_disk_goes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Volume.open(copy, background=False) as volume:
        volume.snapshot("new")
        take = volume.engine.allocator.take

        def refuse(count: int, *, dispensable: bool = False) -> Any:
            if dispensable and count:
                raise NoSpaceError("no space")
            return take(count)

        monkeypatch.setattr(volume.engine.allocator, "take", refuse)
        volume.engine.checkpoint()
        assert not volume.engine.lineage.names.kept
        volume.get_snapshot("s3").delete()
        volume.engine.checkpoint()
        assert volume.get_snapshot("new").id == COUNT + 3
    assert superblock(copy).name_entries == 0
    assert check_file(str(copy)).problems == []
    with Volume.open(copy, background=False) as volume:
        assert volume.get_snapshot("new").id == COUNT + 3
        volume.snapshot("newer")
    assert superblock(copy).name_entries > 0
    assert check_file(str(copy)).problems == []


def test_a_first_index_that_no_disk_ever_had_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v"
    monkeypatch.setattr(names, "KEPT_FROM", 5)
    with create(path, log_size=1024 * KIB) as volume:
        for number in range(20):
            volume.snapshot(f"s{number}", metadata={"number": number})
        take = volume.engine.allocator.take

        def refuse(count: int, *, dispensable: bool = False) -> Any:
            if dispensable and count:
                raise NoSpaceError("no space")
            return take(count)

        monkeypatch.setattr(volume.engine.allocator, "take", refuse)
        volume.engine.checkpoint()
        assert not volume.engine.lineage.names.kept
        assert volume.get_snapshot("s7").id == 8
    assert superblock(path).name_entries == 0
    assert check_file(str(path)).problems == []
    with Volume.open(path, background=False) as volume:
        assert [snapshot.metadata["number"] for snapshot in volume.snapshots()] == list(range(20))


def test_an_index_is_not_made_for_more_ids_than_its_superblock_may_say(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "NAMED_IDS_MAX", COUNT + 3)
    with Volume.open(copy, background=False) as volume:
        for _ in range(2):
            volume.snapshot(f"new {volume.engine.lineage.next_id}")
            volume.engine.checkpoint()
        assert not volume.engine.lineage.names.kept
        assert volume.get_snapshot("new 304").id == 304
    assert superblock(copy).name_entries == 0
    assert check_file(str(copy)).problems == []


def test_counts_that_no_page_was_ever_written_of_are_zero(tmp_path: Path) -> None:
    with create(tmp_path / "v") as volume:
        counts = Counts()
        assert counts.load(volume.engine.lineage.names.table, 10_000) == []
        assert counts.total == 0 and list(counts.groups()) == []


@pytest.mark.parametrize("seed", range(4))
def test_changes_beside_a_table_say_what_the_table_would(seed: int) -> None:
    """Pairs come, go and come again, on disk or not."""
    rng, changes = random.Random(seed), Changes()
    on_disk = {(rng.randrange(6), place) for place in range(0, 40, 2)}
    pairs = set(on_disk)
    for _ in range(400):
        pair = rng.choice(sorted(pairs)) if pairs and rng.random() < 0.5 else (rng.randrange(6), rng.randrange(40))
        if pair in pairs:
            changes.remove(*pair)
        else:
            changes.add(*pair)
        pairs ^= {pair}
        for hashed in range(6):
            found = changes.find(hashed, [place for one, place in on_disk if one == hashed])
            assert found == {place for one, place in pairs if one == hashed}
        assert changes.removed == on_disk - pairs and set(changes.added()) == pairs - on_disk


@pytest.mark.parametrize("left", [["two"], ["one", "two"]])
def test_names_that_nobody_has_asked_for_are_not_kept_up(tmp_path: Path, left: list[str]) -> None:
    """Replay of a volume without an index needs no name, if what is given up there is sealed."""
    path, crashed = tmp_path / "v", tmp_path / "crashed"
    with create(path) as volume:
        for name in ("one", "two"):
            volume.pwrite(name.encode(), 0)
            volume.snapshot(name)
        volume.seal()
    with Volume.open(path, background=False) as volume:
        one = volume.get_snapshot("one")
        if "one" in left:
            one.to_anchor()
        else:
            one.delete()
        shutil.copyfile(path, crashed)
    with Volume.open(crashed, background=False) as volume:
        assert not volume.engine.lineage.names.kept
        assert [snapshot.name for snapshot in volume.snapshots()] == left
        assert [snapshot.is_anchor for snapshot in volume.snapshots()] == [name == "one" for name in left]
        assert volume.stats()["reclaims_pending"] == 0
    assert check_file(str(crashed)).problems == []


def test_who_stands_on_whom_is_told_with_an_index_as_without(copy: Path) -> None:
    with Volume.open(copy, background=False) as volume:
        lineage = volume.engine.lineage
        assert lineage.names.kept and not lineage.names.linear
        bases = [record for record in lineage.snapshots() if record.id % 20 == 9 or record.id > COUNT]
        for number in [0, *(record.id for record in bases)]:
            above = {record.id for record in lineage.ancestors(number)}
            for base in bases:
                assert lineage.stands_on(number, base) == (base.id in above)


def test_nothing_stands_on_what_is_gone(tmp_path: Path) -> None:
    with create(tmp_path / "v") as volume:
        lineage = volume.engine.lineage
        base = lineage.get(volume.snapshot("base").id)
        assert base is not None and lineage.stands_on(0, base)
        volume.rollback("base")
        for snapshot in volume.snapshots():
            snapshot.delete()
        volume.reclaim()
        assert volume.snapshots() == [] and not lineage.stands_on(0, base)


def test_a_merge_that_was_interrupted_leaves_no_half_index(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = hashindex.HashIndex.add
    calls = iter(range(100))

    def interrupted(index: Any, hashed: int, number: int) -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt
        add(index, hashed, number)

    with Volume.open(copy, background=False) as volume:
        for number in range(5):
            volume.snapshot(f"new {number}")
        monkeypatch.setattr(hashindex.HashIndex, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            volume.engine.checkpoint()
        monkeypatch.undo()
        assert volume.get_snapshot("new 3").id == COUNT + 6
        volume.engine.checkpoint()
        assert volume.engine.lineage.names.kept
    assert check_file(str(copy)).problems == []


# -- the checker -------------------------------------------------------------------------------------------------------
FAULTS: dict[str, tuple[str, Callable[[Names], Any]]] = {
    "a name is missing": ("is missing", lambda n: n._index.remove(name_hash(n._fold, "s1"), KIND_NAME | 2)),
    "an entry of nothing": ("of nothing that is there", lambda n: n._index.add(12345, 2)),
    "an epoch leads elsewhere": ("is missing", lambda n: n._index.remove(epoch_hash(n._fold, 2), KIND_EPOCH | 2)),
    "a wrong number of entries": ("name_entries says", lambda n: setattr(n._index, "entries", 7)),
    "a wrong count": ("instead of", lambda n: n.counts.add(70, 1)),
    "not linear": ("calls the lineage linear", lambda n: setattr(n, "linear", True)),
    "a bucket too many": ("does not belong", lambda n: setattr(n._index, "buckets", n._index.buckets + 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checker_sees_what_is_wrong_in_an_index(copy: Path, fault: str) -> None:
    told, spoil = FAULTS[fault]
    with Volume.open(copy, background=False) as volume:
        index = volume.engine.lineage.names
        index.load()
        spoil(index)
    assert any(told in problem for problem in check_file(str(copy)).problems)
