"""Deleting a snapshot: until it is gone, and until its space is free again."""

from __future__ import annotations

import itertools

import cowengine
from cowengine.core.iotable import KERNEL

MiB = 1 << 20
BLOCK = 4096


def test_delete_until_gone(compare, workload, volume_path, make_raw, scale):
    """A snapshot that alone holds 256 blocks; raw: overwrite 4 KiB and fdatasync."""
    size = scale(256, 8) * MiB
    raw = make_raw(MiB)
    names = map(str, itertools.count())
    held = []
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size)

        def prepare() -> None:
            volume.reclaim()
            held.append(volume.snapshot(next(names)))
            for offset in workload.offsets(size, 256):
                volume.pwrite(workload.block, offset)
            volume.flush()

        compare(
            # Snapshot.delete goes on and gives the space back; the engine's part ends where the snapshot is gone.
            lambda: volume.engine.delete(held.pop().id),
            raw.write_durably,
            before_cow=prepare,
            rounds=scale(100, 1),
        )


def test_delete_until_reclaimed(compare, workload, volume_path, make_raw, scale):
    """A snapshot that alone holds 16 MiB in one piece, given back; raw: punch 16 MiB and fdatasync."""
    size = scale(256, 8) * MiB
    piece = scale(16, 4) * MiB
    raw = make_raw(size)
    names = map(str, itertools.count())
    starts = itertools.cycle(range(0, size, piece))
    starts_raw = itertools.cycle(range(0, size, piece))
    held = []

    def rewrite(pwrite, start: int) -> None:
        for offset in range(start, start + piece, MiB):
            pwrite(workload.mebibyte, offset)

    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size)

        def prepare() -> None:
            held.append(volume.snapshot(next(names)))
            rewrite(volume.pwrite, next(starts))
            volume.flush()

        def delete() -> None:
            held.pop().delete()
            volume.reclaim()

        spent = []

        def prepare_raw() -> None:
            if spent:
                rewrite(lambda data, offset: KERNEL.pwrite(raw.fd, data, offset), spent.pop())
            KERNEL.fdatasync(raw.fd)

        def punch_raw() -> None:
            spent.append(next(starts_raw))
            KERNEL.punch(raw.fd, spent[-1], piece)
            KERNEL.fdatasync(raw.fd)

        compare(delete, punch_raw, before_cow=prepare, before_raw=prepare_raw, rounds=scale(30, 1))
