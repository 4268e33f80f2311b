"""A reader verifies a snapshot while the owner uses the slots of metadata below it again: it goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from other_process import BLOCK, LOG, OtherProcess

from cowengine import Report, Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import pace
from cowengine.engine.reader import Reader

LEAF = 1024 * BLOCK  # what one node of the table of seals is about
SIZE = 4 * LEAF
EVERY = 2  # blocks: each second one is the owner's to work with


class Reads(IOTable):
    """Which places of the file were read."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        self.offsets.append(offset)
        return super().pread_into(fd, buffer, offset)


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TELL_SECONDS", 0)  # tell of each piece
    path, blocks = tmp_path / "v", SIZE // BLOCK // EVERY
    with Volume.create(path, SIZE, log_size=LOG, background=False) as volume:
        for block in range(1, SIZE // BLOCK, EVERY):
            volume.pwrite(block.to_bytes(4, "little") * (BLOCK // 4), block * BLOCK)
        kept = volume.snapshot("kept")
        volume.seal()
        data = {volume.engine.path.place(block)[0] * BLOCK for block in range(1, SIZE // BLOCK, EVERY)}
        place = volume.engine.path.place(SIZE // BLOCK - 1, volume.engine.lineage.root(kept.id))[0]
    with open(path, "r+b") as file:  # what is damaged is found once
        file.seek(place * BLOCK)
        file.write(b"??")
    looks: list[int] = []
    new_look = Reader._new_look

    def counted(self: Reader, durable: int | None) -> Any:
        looks.append(1)
        return new_look(self, durable)

    monkeypatch.setattr(Reader, "_new_look", counted)
    table, told = Reads(), list[int]()
    with OtherProcess() as owner:
        owner.call("open", str(path), False)

        def told_of(report: Report) -> None:
            told.append(report.counts["blocks"])
            if len(told) in (1, 3):
                owner.call("churn", LEAF, 50)  # so many, that the allocator comes round

        with Volume.open(path, read_only=True, io=table) as volume:
            snapshot = volume.get_snapshot("kept")
            looks.clear()
            table.offsets.clear()
            report = snapshot.verify(told_of)
        assert len(looks) >= 2, "no node was used again below it"
        assert told == sorted(told)
        assert report.counts == {"blocks": blocks, "verified": blocks - 1, "unsealed": 0, "damaged": 1}
        assert len(report.problems) == 1 and f"byte {SIZE - BLOCK} " in report.problems[0]
        read = [offset for offset in table.offsets if offset in data]
        assert len(read) == len(set(read)) == blocks  # none was verified twice
        owner.call("close")
