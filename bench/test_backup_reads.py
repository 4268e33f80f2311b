"""Row 16: what an incremental backup reads, up to where it would compress."""

from __future__ import annotations

import os
from collections import deque

import pytest
from race import Lane
from workload import BLOCK, MiB

from cowengine.backup.batch import read_batch, reader_of
from cowengine.backup.codec import worker_pool
from cowengine.backup.pieces import batches
from cowengine.backup.stream_writer import BATCHES_MAX


@pytest.mark.parametrize("shape", ["clustered", "scattered"])
def test_incremental_backup_reads(race, scale, shape):
    """An eighth of the blocks changed, in runs of 1 MiB or each on its own: changed extents, reads and checksums.

    In one thread, and as a backup does it: batches, each read and checksummed in one go by a pool. Raw: reads of the
    same extents into a buffer that is there, at most 1 MiB at a time.
    """
    size = scale(1024, 8, quick=256) * MiB
    step = MiB if shape == "clustered" else BLOCK
    disk = race.disk(race.subject("cowengine"), size)
    race.workload.fill(disk.pwrite, size)
    disk.snapshot("base")
    offsets = race.workload.offsets(size, size // step // 8, step)
    for offset in offsets:
        disk.pwrite(race.workload.mebibyte[:step], offset)
    disk.snapshot("target")
    target, base_id = disk.volume.get_snapshot("target"), disk.volume.get_snapshot("base").change_id
    read_many = reader_of(target)

    def read_and_checksum() -> None:
        for pieces in batches(target, base_id):
            read_batch(read_many, pieces)

    def read_and_checksum_in_pool() -> None:
        waiting = deque()
        for pieces in batches(target, base_id):
            while len(waiting) >= BATCHES_MAX or (waiting and waiting[0].done()):
                waiting.popleft().result()
            waiting.append(pool.submit(read_batch, read_many, pieces))
        for each in waiting:
            each.result()

    with worker_pool() as pool:
        race.against(lambda raw, workload: reading(raw, workload, size, target.changed_extents(base_id)), size)
        per_mebibyte = len(offsets) * step // MiB
        race.enter_lane(Lane(read_and_checksum, operations=per_mebibyte), "in one thread")
        race.enter_lane(Lane(read_and_checksum_in_pool, operations=per_mebibyte), "in a pool", goal=0.7)
        race.run("16", f"incremental backup read path, {shape}, per MiB", rounds=40, rate=True)


def reading(raw, workload, size, extents):
    """Reads these extents of a raw file."""
    workload.fill(raw.pwrite, size)
    buffer = memoryview(bytearray(MiB))
    reads = [
        (at, min(MiB, offset + length - at))
        for offset, length in extents.tolist()
        for at in range(offset, offset + length, MiB)
    ]

    def read() -> None:
        for offset, length in reads:
            os.preadv(raw.fd, [buffer[:length]], offset)

    return Lane(read, operations=sum(length for _, length in reads) // MiB)
