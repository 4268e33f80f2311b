"""How often each operation has the disk flush: what its durability costs on every machine and in every mood of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from subjects.field import all_subjects, started
from subjects.loop_mount import lacking_for_mounts, mounted
from subjects.subject import Disk, NotOffered
from workload import BLOCK, MiB

SIZE = 8 * MiB
WHAT = "flushes of the disk by one operation"


def test_disk_flushes(race, directory, scale):
    """Counted by a loop device that nobody else uses: the subjects are started once more, on top of it (Ceph takes long
    for that: in the full run only). A subject's own loop device hands its flushes down. Raw: 4 KiB and fdatasync.
    """
    times, room = scale(40, 2, quick=20), scale(1536, 896, quick=896) * MiB

    def count() -> Iterator[tuple[str, str, float | str]]:
        folder = directory / "flushes"
        folder.mkdir()
        make = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard"]
        with (
            mounted(folder, room, make, "noatime,nodiscard") as disk,
            started(all_subjects(), disk, at_once=scale.kind != "full") as field,
        ):
            for subject in field.running:
                made = subject.create(field.folders[subject.name], "disk", SIZE)
                for operation, act in operations(made, race.workload.again()):
                    yield subject.name, operation, flushes(disk, act, times)
                made.close()
        for name, why in field.missing.items():
            yield name, "snapshot", why

    lacking = lacking_for_mounts({"mkfs.ext4": "e2fsprogs"})
    counted = race.benchmark.pedantic(lambda: [] if lacking else list(count()))
    if lacking:
        race.missing(WHAT, lacking)
    raw = next((found for subject, _, found in counted if subject == "raw file"), 0.0)
    for subject, operation, found in counted:
        if subject == "raw file":
            continue
        if isinstance(found, str):
            race.figure("", WHAT, None, "flushes", variant=operation, subject=subject, note=found)
        else:
            race.figure("", WHAT, found, "flushes", variant=operation, subject=subject, base=raw, ratio=found / raw)


def operations(disk: Disk, workload) -> Iterator[tuple[str, Callable[[int], None]]]:
    """What is counted on a disk, in this order: name, and the operation with its number."""
    workload.fill(disk.pwrite, SIZE)
    disk.flush()
    offsets = workload.offsets(SIZE, SIZE // BLOCK)

    def write(number: int) -> None:
        disk.pwrite(workload.block, offsets[number])
        disk.flush()

    yield "write in place, flushed", write
    yield "snapshot", lambda number: disk.snapshot(str(number))
    yield "first write of a block after a snapshot, flushed", write
    yield "delete", lambda number: disk.delete(str(number))


def flushes(disk: Path, act: Callable[[int], None], times: int) -> float | str:
    """The mean of so many operations, or why there is none."""
    device = os.stat(disk).st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")

    def so_far() -> int:
        return int(counters.read_text().split()[15])

    before = so_far()
    try:
        for number in range(times):
            act(number)
    except NotOffered as error:
        return str(error)
    return (so_far() - before) / times
