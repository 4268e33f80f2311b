"""Random legal histories, simulated block by block in plain dictionaries, have no problem; spoilt ones have.

The model knows nothing of trees, lines or intervals: who holds a block is found by looking
into every member's dictionary.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from cowengine import format as f
from cowengine.engine.check import check_file

_spec = importlib.util.spec_from_file_location("check_image", Path(__file__).with_name("image.py"))
image = importlib.util.module_from_spec(_spec)
sys.modules["check_image"] = image
_spec.loader.exec_module(image)

BLOCKS = 600
SIZE = BLOCKS * 4096
DATA = image.HOME + BLOCKS + 300


class Model:
    """A volume as dictionaries {block: (slot or 0, birth)}; every operation gives one log record."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.head: dict[int, tuple[int, int]] = {}
        self.lineage = {0: f.LineageRecord(f.LINEAGE_HEAD, 0, "live", 1, SIZE)}
        self.maps: dict[int, dict[int, tuple[int, int]]] = {}
        self.next_id = 1
        self.next_slot = DATA

    @property
    def live(self) -> f.LineageRecord:
        return self.lineage[0]

    def held(self, block: int, entry: tuple[int, int]) -> bool:
        """Whether a head or snapshot holds this entry; below its cursor a snapshot holds nothing."""
        return self.head.get(block) == entry or any(
            m.get(block) == entry and (self.lineage[i].cursor == f.NO_CURSOR or block >= self.lineage[i].cursor)
            for i, m in self.maps.items()
        )

    def record(self, **fields) -> f.Record:
        return image.commit(self.live.epoch, size=SIZE, **fields)

    def write(self) -> f.Record:
        deltas, freed = [], []
        for _ in range(self.rng.randint(1, 6)):
            block, count = self.rng.randrange(BLOCKS - 8), self.rng.randint(1, 8)
            discard = self.rng.random() < 0.25
            slot = 0 if discard else self.place(block, count, {slot for slot, _ in freed})
            old = {b: self.head.get(b) for b in range(block, block + count)}
            for b in old:
                self.head[b] = (slot + b - block if slot else 0, self.live.epoch)
            deltas.append(f.encode_delta(block, count, int(bool(slot)), slot, self.live.epoch))
            freed += [(e[0], 1) for b, e in old.items() if e and e[0] and not self.held(b, e)]
        return self.record(deltas=b"".join(deltas), freed=freed)

    def place(self, block: int, count: int, freed: set[int]) -> int:
        """Home if that is free for all of them, and was before this record, else new slots."""
        home = image.HOME + block
        taken = freed | {e[0] for m in (self.head, *self.maps.values()) for e in m.values()}
        if not taken & set(range(home, home + count)):
            return home
        self.next_slot += count
        return self.next_slot - count

    def take(self, name: str, flags: int = 0) -> f.SnapshotEvent:
        live = self.live
        event = f.SnapshotEvent(self.next_id, live.epoch, 5, 6, name, flags=flags)
        self.lineage[event.id] = image.snapshot(event.id, live.epoch, live.parent, SIZE, name=name, flags=flags)
        self.maps[event.id] = dict(self.head)
        live.parent, live.frozen = event.id, live.epoch
        live.epoch += 1
        self.next_id += 1
        return event

    def snapshot(self) -> f.Record:
        event = self.take(f"s{self.next_id}")
        return self.record(events=[event])

    def choose(self, deleted: bool) -> int | None:
        ids = [i for i, r in self.lineage.items() if i and bool(r.flags & f.LINEAGE_DELETED) == deleted]
        return self.rng.choice(ids) if ids else None

    def rollback(self) -> f.Record | None:
        to = self.choose(False)
        if to is None:
            return None
        events = [self.take(f"auto{self.next_id}", f.LINEAGE_AUTOMATIC)]
        self.live.epoch += 1
        self.live.parent = to
        self.head = dict(self.maps[to])
        events.append(f.RollbackEvent(0, to, self.live.epoch, SIZE))
        return self.record(events=events)

    def delete(self) -> f.Record | None:
        number = self.choose(False)
        if number is None:
            return None
        self.lineage[number].flags |= f.LINEAGE_DELETED
        return self.record(events=[f.DeleteEvent(number)])

    def reclaim(self) -> f.Record | None:
        begun = [i for i, r in self.lineage.items() if r.cursor != f.NO_CURSOR]
        number = begun[0] if begun else self.choose(True)
        if number is None or sum(r.parent == number for r in self.lineage.values()) > 1:
            return None  # a branch point waits
        record = self.lineage[number]
        cursor = self.rng.choice([BLOCKS, self.rng.randrange(BLOCKS)])
        below = 0 if record.cursor == f.NO_CURSOR else record.cursor
        cursor = max(cursor, below)
        mine = {b: e for b, e in self.maps[number].items() if below <= b < cursor and e[0]}
        record.cursor = cursor
        freed = [(e[0], 1) for b, e in mine.items() if not self.held(b, e)]
        if cursor < BLOCKS:
            return self.record(events=[f.ReclaimEvent(number, cursor)], freed=freed)
        del self.lineage[number], self.maps[number]
        for other in self.lineage.values():
            other.parent = record.parent if other.parent == number else other.parent
        return self.record(events=[f.ReclaimedEvent(number)], freed=freed)

    def step(self) -> f.Record | None:
        moves = [self.write, self.write, self.write, self.snapshot, self.rollback, self.delete, self.reclaim]
        return self.rng.choice(moves)()

    def checkpoint(self) -> image.Image:
        """An image of this state with an empty log."""
        img = image.Image(
            blocks=BLOCKS, slots=self.next_slot + 400, epoch=self.live.epoch, next_id=self.next_id, level=1,
            lineage=deepcopy(self.lineage), maps={0: dict(self.head), **{i: dict(m) for i, m in self.maps.items()}},
        )  # fmt: skip
        everything = {(b, e) for m in self.maps.values() for b, e in m.items() if e[0]}
        img.unmarked = tuple(e[0] for b, e in everything if not self.held(b, e))
        return img


def history(seed: int) -> tuple[image.Image, Model]:
    """A checkpoint after some steps, and the records of the steps that followed."""
    rng = random.Random(seed)
    model = Model(rng)
    for _ in range(rng.randrange(12)):
        model.step()
    img = model.checkpoint()
    for _ in range(rng.randrange(10)):
        record = model.step()
        if record is not None:
            img.records.append(record)
    img.slots = model.next_slot + 400
    return img, model


def check(img: image.Image):
    return check_file("image", image.ImageIO(img.build()))


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_a_legal_history_has_no_problem(start):
    for seed in range(start, start + 50):
        img, model = history(seed)
        report = check(img)
        assert report.problems == [], f"seed {seed}"
        held = {e[0] for m in (model.head, *model.maps.values()) for b, e in m.items() if e[0] and model.held(b, e)}
        assert report.counts["blocks"] == len(held), f"seed {seed}"
        assert report.counts["snapshots"] + report.counts["deleted"] == len(model.maps)
        assert report.counts["records"] == len(img.records)


def spoil_freed(rng: random.Random, records: list[f.Record]) -> bool:
    """Forgets one freed run: a leak."""
    found = [r for r in records if r.freed]
    if found:
        freed = rng.choice(found).freed
        freed.pop(rng.randrange(len(freed)))
    return bool(found)


def spoil_delta(rng: random.Random, records: list[f.Record]) -> bool:
    """Frees a slot that the last delta of the last record places."""
    last = list(f.iter_deltas(records[-1].deltas))[-1:] if records else []
    placed = [delta for delta in last if delta.kind == f.ENTRY_MAPPED]
    for delta in placed:
        records[-1].freed = [*records[-1].freed, (delta.slot, delta.block_count)]
    return bool(placed)


def spoil_snapshot(rng: random.Random, records: list[f.Record]) -> bool:
    """Forgets a delete that a reclaim relies on."""
    for record in records:
        for event in record.events:
            if isinstance(event, f.DeleteEvent):
                later = [e for r in records for e in r.events if isinstance(e, f.ReclaimEvent | f.ReclaimedEvent)]
                if any(e.id == event.id for e in later):
                    record.events.remove(event)
                    return True
    return False


@pytest.mark.parametrize("spoil", [spoil_freed, spoil_delta, spoil_snapshot])
def test_a_history_with_one_lie_has_a_problem(spoil):
    told = 0
    for seed in range(250):
        img, _ = history(seed)
        if spoil(random.Random(seed), img.records):
            told += 1
            assert not check(img).ok, f"seed {seed}"
    assert told >= 8
