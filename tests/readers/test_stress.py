"""Readers in other processes compare every byte while the owner works at full speed on the smallest log."""

from __future__ import annotations

import random
import time
from pathlib import Path

from other_process import LOG, SIZE, OtherProcess, is_exact, made, snapshot_with_digest, write_some

from cowengine import Volume
from cowengine.errors import BusyError

KEPT = 6
READS = 25


def test_readers_read_exact_bytes_while_the_owner_snapshots_deletes_and_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "v"
    rng, live, refused = random.Random(3), bytearray(SIZE), 0
    with Volume.create(path, SIZE, log_size=LOG, background=False) as owner, OtherProcess() as a, OtherProcess() as b:
        a.send("read", str(path), 1, READS)
        b.send("read", str(path), 2, READS)
        number = 0
        while any(not other.has_answer() for other in (a, b)):
            number += 1
            write_some(owner, rng, live)
            snapshot_with_digest(owner, f"s{number}", live)
            snapshots = owner.snapshots()
            for snapshot in snapshots[: max(0, len(snapshots) - KEPT)]:
                try:
                    snapshot.delete()
                except BusyError:
                    refused += 1
            if rng.random() < 0.1:
                owner.rollback(rng.choice(owner.snapshots()))
                live[:] = owner.pread(SIZE, 0)
        for other in (a, b):
            assert other.answer()["exact"] == READS
        assert owner.check().ok
        for snapshot in owner.snapshots():
            snapshot.delete()
        assert owner.stats()["reclaims_pending"] == 0 and owner.check().ok


def test_an_owner_that_is_killed_at_any_moment_takes_no_reader_along(tmp_path: Path) -> None:
    path = tmp_path / "v"
    rng = random.Random(4)
    made(path)
    for round_ in range(4):
        with OtherProcess() as owner, OtherProcess() as reader:
            owner.call("open", str(path), False)
            owner.send("work", round_)
            assert reader.call("read", str(path), round_, 5)["exact"] == 5
            reader.send("read", str(path), round_, READS)
            time.sleep(rng.random() * 0.02)
            owner.kill()
            assert reader.answer()["exact"] == READS
    with Volume.open(path) as volume:
        assert all(is_exact(snapshot) for snapshot in volume.snapshots())
        volume.reclaim()
        assert volume.check().ok
