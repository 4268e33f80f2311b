"""Crashes in repairing a damaged volume, of a file and of an open one: never less is left than there was before.

Each history is a random workload (crash_workload.py), whose file is then damaged in one or two places: in what repair
makes anew, or in what it has to refuse. At each barrier of the repair some of the ways are built in which the pending
changes may have reached the disk. A second process repairs what is there again, and finds everything as it was
before the damage; some are cut in turn, some have a barrier that fails. Besides:

- what could be read of the damaged file, by an open or by salvage, can be read of each image in between, and is the
  same;
- a repair that refuses has written nothing at all;
- no write of a repair touches a block that anybody can read, and none a superblock slot unless what it has is damaged
  or the other one has, durably, one that is as new.

    python tests/crash/repair_explorer.py --histories 200 --seed 1
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("crash", "model", "hostile", "repair")]

from crash_explorer import abandon, is_superblock  # noqa: E402
from crash_images import build, choices, fingerprint  # noqa: E402
from crash_oracle import Shown, Violation, show  # noqa: E402
from crash_workload import GEOMETRIES, PATH, Runner, determinism, random_steps, shrink  # noqa: E402
from hostile_image import Image  # noqa: E402
from memory_disk import DIRECTORY, Durable, Instant, MemoryDisk, Write, instants  # noqa: E402
from salvage_damage import structures  # noqa: E402

from cowengine import Volume  # noqa: E402
from cowengine.errors import CorruptionError, CowEngineError, FormatError  # noqa: E402

SLOT = 4096
IMAGE = "/disk/salvaged"
DAMAGES = 3  # of one file, each on its own
LOOKS = 0.15  # of the images in between, read as they are: that costs most
DERIVED = ("superblock", "tree 3", "tree 4", "tree 5", "leaked", "called free", "seal")
OTHERS = ("tree 1", "tree 1", "tree 2", "log", "metadata")
Blocks = dict[tuple[str, int], bytes]  # by version and offset: what can be read of it


@dataclass
class Score:
    states: set[int] = field(default_factory=set)
    repaired: int = 0
    refused: int = 0  # repairs that would have had to guess
    failed: int = 0  # barriers
    barriers: int = 0
    looked: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.states):,} distinct states, {self.repaired:,} repairs, {self.refused:,} refused, "
            f"{self.looked:,} read in between, {self.failed:,} barriers failed, {len(self.violations)} violations"
        )


class RepairExplorer:
    """One workload, some ways to damage its file, and all crashes of the repairs."""

    def __init__(self, seed: int, score: Score, images: int = 16) -> None:
        self.rng = random.Random(seed)
        self.score = score
        self.images = images
        self.seen: set[tuple[int, Any]] = set()
        self.task = f"task repair:{seed}"
        self.truth: Shown
        self.before: Blocks = {}
        self.kept: dict[int, bytes] = {}  # offsets in the file of blocks that somebody reads

    def run(self) -> None:
        sound = self.workload()
        for number in range(DAMAGES):
            self.seen.clear()
            damaged, how = self.damage(sound)
            disk = disk_with(damaged)
            self.begin(f"damage {number}: {how}", sound, damaged)
            self.history(disk, lambda disk=disk: Volume.repair(PATH, io=disk))  # type: ignore[misc]
        self.open_one(sound)

    def workload(self) -> bytes:
        """The file that some steps leave, closed or not."""
        runner = Runner(MemoryDisk(recorded=False), self.rng.choice(GEOMETRIES))
        steps = random_steps(self.rng, self.rng.choice((8, 16, 30)))
        self.task += f", steps {steps}"
        runner.create()
        runner.run(steps)
        runner.volume.flush()
        if self.rng.random() < 0.5:
            runner.close()
        disk = runner.disk
        sound = bytes(disk.cache.files[disk.cache.entries[PATH]])
        abandon(runner)
        return sound

    # -- damage -------------------------------------------------------------------------------------------------------
    def damage(self, sound: bytes) -> tuple[bytes, str]:
        """The file with one or two things wrong, and what."""
        kinds = self.rng.choices(DERIVED, k=self.rng.choice((1, 1, 2)))
        if self.rng.random() < 0.3:
            kinds.append(self.rng.choice(OTHERS))
        if "log" in kinds:
            kinds = ["log"]  # whether a record was lost is seen by an open, if nothing else is wrong
        damaged = sound
        for kind in sorted(kinds, key=lambda kind: kind in ("leaked", "called free", "seal"), reverse=True):
            damaged = self.damage_one(damaged, kind)
        return damaged, ", ".join(kinds)

    def damage_one(self, data: bytes, kind: str) -> bytes:
        """What seals itself anew comes before what is broken: see `damage`."""
        image = Image(data)
        if kind in ("leaked", "called free"):
            bits = [spot for spot in image.spots if spot.what == "free_map.bits"]
            if bits:
                at = self.rng.choice(bits)
                image.data[at.offset + self.rng.randrange(2, at.bytes)] ^= 1 << self.rng.randrange(8)
            return sealed(image)
        if kind == "seal":
            seals = [spot for spot in image.spots if spot.what == "seals.seal"]
            if seals:
                spot = self.rng.choice(seals)
                place = spot.offset // SLOT * SLOT + self.rng.randrange(SLOT // 4) * 4
                if not image.data[place]:  # else a good block would be called damaged, rightly refused
                    image.put(place, 7, 4)
            return sealed(image)
        places = structures(data)[kind]
        if not places:
            return data
        at = self.rng.choice(places)
        how = self.rng.randrange(3)
        if how == 0:
            image.data[at + self.rng.randrange(512)] ^= 1 << self.rng.randrange(8)
        elif how == 1:
            image.data[at : at + 512] = bytes(512)
        else:
            image.data[at : at + SLOT] = self.rng.randbytes(len(image.data[at : at + SLOT]))
        return bytes(image.data)

    def open_one(self, sound: bytes) -> None:
        """The disk rots under an open volume, which then repairs itself."""
        disk = disk_with(sound)
        volume = Volume.open(PATH, io=disk, background=False)
        try:
            damaged, how = self.damage(bytes(disk.cache.files[disk.cache.entries[PATH]]))
            if "log" in how:  # what is in memory stands for it, and nobody looks at it again
                return
            now = bytes(disk.cache.files[disk.cache.entries[PATH]])
            disk.cache.files[disk.cache.entries[PATH]][:] = damaged
            disk.start, disk.journal = disk.cache.copy(), []
            self.seen.clear()
            self.begin(f"under an open volume: {how}", now, damaged)
            self.history(disk, lambda: volume.check(repair=True))
        finally:
            disk.power_off()
            volume.engine.poison(OSError("the process has ended"))
            with suppress(OSError):
                volume.close()

    # -- a repair and its crashes -------------------------------------------------------------------------------------
    def begin(self, how: str, sound: bytes, damaged: bytes) -> None:
        self.how = how
        self.truth = shown_of(disk_with(sound, recorded=False))
        if "log" in how:  # without the last record, which nobody can tell from a torn one, it shows an older state
            with suppress(CowEngineError, Violation):
                self.truth = shown_of(disk_with(damaged, recorded=False))
        self.before = readable(disk_with(damaged, recorded=False), self.truth)
        at_home = {bytes(sound[at : at + SLOT]): at for at in range(2 * SLOT, len(sound), SLOT)}
        self.kept = {at_home[block]: block for block in blocks_of(self.truth) if any(block) and block in at_home}
        self.damaged = damaged

    def history(self, disk: MemoryDisk, repair: Callable[[], Any], depth: int = 0, trail: str = "") -> None:
        """Runs a repair, perhaps with a barrier that fails, and looks at the crashes of it."""
        disk.fail_barrier = self.rng.randrange(12) if self.rng.random() < 0.3 else None
        disk.fate = lambda: self.rng.randrange(3)
        begun = len(disk.journal)
        try:
            report = repair()
        except (CorruptionError, FormatError) as error:
            self.refusal(disk, error, begun, trail)
        except (CowEngineError, OSError) as error:
            if not disk.faults:
                self.violation(trail, error)
        else:
            self.score.repaired += 1
            if disk.faults:
                self.violation(trail, Violation("a repair succeeded although a barrier failed in it"))
            if not report.ok:
                self.violation(trail, Violation(f"left: {report.problems[:3]}"))
            disk.note("repaired")
        disk.fail_barrier = None
        self.score.failed += disk.faults
        self.guard(trail, lambda: self.look_at_writes(disk))
        self.explore(disk, depth, trail)

    def refusal(self, disk: MemoryDisk, error: Exception, begun: int, trail: str) -> None:
        self.score.refused += 1
        changes = [event for event in disk.journal[begun:] if isinstance(event, Write)]
        changes = [each for each in changes if each.data != self.damaged[each.offset : each.offset + len(each.data)]]
        if changes and not self.how.startswith("under") and not disk.faults:
            self.violation(trail, Violation(f"{len(changes)} writes, and then: {error!r}"))

    def look_at_writes(self, disk: MemoryDisk) -> None:
        """No block that somebody reads is written, and no superblock that may be the only good one."""
        for write in disk.journal:
            if isinstance(write, Write):
                for at in range(write.offset // SLOT * SLOT, write.offset + len(write.data), SLOT):
                    if at in self.kept and write.data[at - write.offset :][:SLOT] != self.kept[at]:
                        raise Violation(f"the block at {at}, which somebody reads, was written")
        for instant in instants(disk.start, disk.journal):
            for write in instant.pending:
                if isinstance(write, Write) and write.offset < 2 * SLOT:
                    require_another(instant, write)

    def explore(self, disk: MemoryDisk, depth: int, trail: str) -> None:
        for instant in instants(disk.start, disk.journal):
            self.score.barriers += 1
            here = f"{trail} / barrier at {instant.position}"
            for choice in choices(instant.pending, self.rng, self.images >> 2 * depth):
                image = build(instant, choice)
                key = fingerprint(image)
                self.score.states.add(key)
                if (key, instant.note) not in self.seen:
                    self.seen.add((key, instant.note))
                    self.look(image, instant.note, depth, f"{here}, arrived {choice}")
            if depth == 0 and self.rng.random() < 0.1:
                killed = MemoryDisk(instant.durable.copy(), instant.pending, instant.cached)
                self.history(killed, lambda disk=killed: Volume.repair(PATH, io=disk), 1, f"{here}, killed")  # type: ignore[misc]

    def look(self, image: Durable, note: str | None, depth: int, trail: str) -> None:
        """A second process reads or repairs what a power cut left; at times its own crashes, too."""
        if self.rng.random() < LOOKS:
            self.guard(trail, lambda: self.read_as_it_is(MemoryDisk(image.copy(), recorded=False)))
        if depth == 0 and self.rng.random() < 0.03:
            disk = MemoryDisk(image)
            self.history(disk, lambda: Volume.repair(PATH, io=disk), 1, f"{trail}; then")
        else:
            self.guard(trail, lambda: self.again(MemoryDisk(image, recorded=False), note))

    def again(self, disk: MemoryDisk, note: str | None) -> None:
        """A repair of what is left completes, and all is as it was; a second one finds nothing to do."""
        if note is None and not self.before:
            return  # nothing led anywhere, not even before the crash
        try:
            if note is None:
                report = Volume.repair(PATH, io=disk)
                if not report.ok:
                    raise Violation(f"left: {report.problems[:3]}")
        except CorruptionError:
            self.require_as_before(disk)
            return
        if shown_of(disk) != self.truth:
            raise Violation("the repaired volume shows something else")

    def read_as_it_is(self, disk: MemoryDisk) -> None:
        self.score.looked += 1
        self.require_as_before(disk)

    def require_as_before(self, disk: MemoryDisk) -> None:
        """What was readable before the repair began is readable now."""
        now = readable(disk, self.truth)
        for place, block in self.before.items():
            if now.get(place) != block:
                what = "unreadable" if place not in now else "wrong bytes"
                raise Violation(f"{place[0] or 'live'} at {place[1]} was readable before the repair, and is {what} now")

    def guard(self, trail: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever comes out of it is a violation
            self.violation(trail, error)

    def violation(self, trail: str, error: BaseException) -> None:
        self.score.violations.append(f"{error!r}\n  {self.task}, {self.how}{trail}")


def disk_with(content: bytes, *, recorded: bool = True) -> MemoryDisk:
    start = Durable({1: bytearray(content)}, {"/": DIRECTORY, "/disk": DIRECTORY, PATH: 1})
    return MemoryDisk(start, recorded=recorded)


def sealed(image: Image) -> bytes:
    """The superblock that is not the newest one stays as it is."""
    image.seal()
    return bytes(image.data)


def shown_of(disk: MemoryDisk) -> Shown:
    """What an undamaged volume shows; it is checked and verified."""
    volume = Volume.open(PATH, io=disk, background=False)
    try:
        shown = replace_clean(show(volume))
        for report in (volume.check(), volume.verify()):
            if not report.ok:
                raise Violation(f"damaged: {report.problems[:3]}")
    finally:
        volume.close()
    return shown


def replace_clean(shown: Shown) -> Shown:
    return replace(shown, was_clean=False)


def blocks_of(shown: Shown) -> Iterator[bytes]:
    for content in (shown.live, *shown.clones.values(), *(each.content or b"" for each in shown.snapshots)):
        yield from (bytes(content[at : at + SLOT]) for at in range(0, len(content), SLOT))


def readable(disk: MemoryDisk, truth: Shown) -> Blocks:
    """What an open for reading gives, and what salvage does; both change nothing."""
    found = salvaged(disk, truth)
    try:
        volume = Volume.open(PATH, io=disk, background=False, read_only=True)
    except CowEngineError:
        return found
    try:
        found |= read(volume, "", volume.size)
        for each in truth.snapshots:
            if each.content is not None:
                found |= read(volume.get_snapshot(each.name), each.name, len(each.content))
    except CowEngineError:
        pass
    finally:
        volume.close()
    return found


def read(version: Any, name: str, size: int) -> Blocks:
    found = {}
    for at in range(0, size, SLOT):
        try:
            found[name, at] = version.pread(min(SLOT, size - at), at)
        except CorruptionError:
            continue
    return found


def salvaged(disk: MemoryDisk, truth: Shown) -> Blocks:
    found: Blocks = {}
    for name in ("", *(each.name for each in truth.snapshots if each.content is not None)):
        try:
            report = Volume.salvage(PATH, IMAGE, snapshot=name or None, io=disk)
        except CowEngineError:
            continue
        image = disk.cache.files[disk.cache.entries[IMAGE]]
        lost = {at for offset, length, _ in report.lost for at in range(offset // SLOT * SLOT, offset + length, SLOT)}
        if not report.problems or report.lost:
            found |= {(name, at): bytes(image[at : at + SLOT]) for at in range(0, len(image), SLOT) if at not in lost}
        disk.unlink(IMAGE)
    return found


def require_another(instant: Instant, write: Write) -> None:
    """A superblock goes over a damaged one, or the other slot has one, durably, that is as new."""
    content = instant.durable.files[write.inode]
    slots = [content[at : at + SLOT] for at in (0, SLOT)]
    mine, other = slots if write.offset < SLOT else slots[::-1]
    if is_superblock(mine) and not (is_superblock(other) and generation(other) >= generation(mine)):
        raise Violation(f"the newest good superblock is written over, at barrier {instant.position}")


def generation(slot: bytearray) -> int:
    return int.from_bytes(slot[72:80], "little")


def explore_many(histories: int, seed: int, seconds: float = 1e9) -> Score:
    score, late = Score(), time.monotonic() + seconds
    for number in range(seed, seed + histories):
        with determinism(number):
            RepairExplorer(number, score).run()
        if score.violations or time.monotonic() > late:
            break
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description="Explores crashes of repairs.")
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # every torn superblock is worth a warning
    shrink()
    started = time.monotonic()
    score = explore_many(arguments.histories, arguments.seed, arguments.seconds)
    print(*score.violations[:5], sep="\n")
    print(f"seed {arguments.seed}: {score}, {time.monotonic() - started:.0f} s")
    return 1 if score.violations else 0


if __name__ == "__main__":
    sys.exit(main())
