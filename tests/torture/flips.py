"""Damages volumes one place at a time, as a disk may, and reads everything: a typed error, or what was there before.

A bit flips; a sector or slot is zeros; a slot is *stale*, as if its last write had been lost; it holds what belongs
into another (*duplicate*), and that other one may be stale for it (*misdirected*). Checksums are left as they are.
Three volumes: `clean` was closed; of `killed`, the last records are confirmed by nobody; in `sealed`, all data is
sealed and damaged, too. The first two are damaged in their metadata, which has 64 KiB or more.

    python -P tests/torture/flips.py --seconds 100 --seed 1
    python -P tests/torture/flips.py --all clean                # every bit of its metadata
    python -P tests/torture/flips.py --one clean:flip:12345     # one place again, and what was seen
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("hostile", "crash", "torture")]

from flip import Contents, contents  # noqa: E402
from hostile_image import SLOT, Image  # noqa: E402
from hostile_volumes import repeatable  # noqa: E402
from memory_disk import Durable, Event, MemoryDisk, Write  # noqa: E402
from row import Tally, tell  # noqa: E402

from cowengine import Volume  # noqa: E402

PATH = Path("/disk/v")
INODE = 1
SECTOR = 512
WRITABLE_ONE_IN = 16  # opened for writing, on a copy: recovery must not make damage permanent and silent
VIOLATIONS_MAX = 10
VOLUMES = ("clean", "killed", "sealed")
KINDS = ("flip",) * 20 + ("zero", "sector", "stale", "duplicate", "misdirected")


@dataclass(frozen=True)
class Original:
    """A volume, what its slots held before, and what may show: `states` by how many records of the log were lost."""

    name: str
    data: bytes
    slots: tuple[int, ...]  # that are damaged
    older: dict[int, tuple[bytes, ...]]
    newest: dict[int, int]  # when a slot was written last
    records: tuple[tuple[int, int], ...]  # begin and end of those that nobody confirmed, in order
    states: tuple[Contents, ...]

    def allowed(self, begin: int, end: int) -> tuple[Contents, ...]:
        """What may show when a range is damaged: what the volume holds, and what it held before the first record there
        that nobody confirmed, or a later one, if no record lies behind the range: that looks like a torn write."""
        lost = [n for n, (first, last) in enumerate(self.records) if first < end and last > begin]
        return self.states[lost[0] :] if lost and lost[-1] == len(self.records) - 1 else self.states[-1:]


@functools.cache
def original(name: str) -> Original:
    """One of VOLUMES."""
    disk = MemoryDisk()
    with repeatable(len(name)) as rng:
        volume = Volume.create(PATH, 50 * SLOT, log_size=16384, background=False, io=disk)
        _fill(volume, rng)
        if name == "sealed":
            volume.seal()
        if name == "killed":
            for more in ("s2", "s4", "s5"):  # several records behind the last checkpoint
                volume.get_snapshot(more).hold("kept")
        else:
            volume.close()
        data, journal = bytes(disk.cache.files[INODE]), list(disk.journal)
        volume.close()
    older, newest = _older(journal)
    image = Image(data)
    log = range(2, 2 + image.u64(image.superblock + 104))
    metadata = {0, 1, *log, *image.metadata_slots()}
    slots = {slot for slot in range(image.slots) if any(data[slot * SLOT : (slot + 1) * SLOT])} | metadata
    tip = image.u64(image.superblock + 136)
    records = [(at, at + int.from_bytes(data[at + 4 : at + 8], "little")) for at in _chain(image, tip)]
    states = [_shown(data)]
    for begin, _ in reversed(records):
        states.append(_shown(data[:begin] + bytes(log[-1] * SLOT + SLOT - begin) + data[log[-1] * SLOT + SLOT :]))
    return Original(
        name, data, tuple(sorted(slots if name == "sealed" else metadata)),
        {slot: tuple(found) for slot, found in older.items()}, newest, tuple(records), tuple(reversed(states)),
    )  # fmt: skip


def _fill(volume: Volume, rng: random.Random) -> None:
    for number in range(6):
        for _ in range(4):
            volume.pwrite(rng.randbytes(6000), rng.randrange(volume.size - 6000))
        volume.snapshot(f"s{number}", metadata={"number": number})
        if number == 2:
            volume.discard(10 * SLOT, 8 * SLOT)
            volume.engine.checkpoint()
    volume.get_snapshot("s1").hold("kept")
    volume.get_snapshot("s3").delete()
    volume.get_snapshot("s0").to_anchor()
    volume.snapshot("last")


def _older(journal: Sequence[Event]) -> tuple[dict[int, list[bytes]], dict[int, int]]:
    """What each slot held before each write of it, oldest first, and the position of the last write of it."""
    content, older, newest = bytearray(), {}, {}
    for position, event in enumerate(journal):
        if not isinstance(event, Write):
            continue
        end = event.offset + len(event.data)
        content.extend(bytes(max(0, end - len(content))))
        for slot in range(event.offset // SLOT, -(-end // SLOT)):
            newest[slot] = position
            older.setdefault(slot, []).append(bytes(content[slot * SLOT : slot * SLOT + SLOT]).ljust(SLOT, b"\0"))
        content[event.offset : end] = event.data
    return older, newest


def _chain(image: Image, tip: int) -> list[int]:
    return sorted((at for at in image.records if image.u64(at + 16) > tip), key=lambda at: image.u64(at + 16))


def _disk(data: bytes | bytearray) -> MemoryDisk:
    content = data if isinstance(data, bytearray) else bytearray(data)
    return MemoryDisk(Durable({INODE: content}, {"/": 0, "/disk": 0, str(PATH): INODE}), recorded=False)


def _shown(data: bytes) -> Contents:
    shown, errors = contents(PATH, _disk(data))
    assert not errors, errors
    return shown


# -- damage ------------------------------------------------------------------------------------------------------------
def damages(volume: Original, spec: str) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of what a damage writes. Its places are bits, sectors or slots of the file."""
    kind, *places = spec.split(":")[1:]
    place, other = int(places[0]), int(places[-1])
    if kind == "flip":
        yield place >> 3, bytes([volume.data[place >> 3] ^ 1 << (place & 7)])
    elif kind == "sector":
        yield place * SECTOR, bytes(SECTOR)
    elif kind == "zero":
        yield place * SLOT, bytes(SLOT)
    elif kind == "stale":
        yield place * SLOT, volume.older[place][other]
    else:
        yield place * SLOT, volume.data[other * SLOT : other * SLOT + SLOT].ljust(SLOT, b"\0")
        if kind == "misdirected":
            yield other * SLOT, volume.older[other][-1]


def drawn(volume: Original, rng: random.Random) -> str:
    """A damage; half of the flipped bits are where the bytes are not zero."""
    kind, slot, other = rng.choice(KINDS), rng.choice(volume.slots), rng.choice(volume.slots)
    if kind == "flip":
        at = slot * SLOT + rng.randrange(SLOT)
        for _ in range(20 if rng.random() < 0.5 else 0):
            at = rng.choice(volume.slots) * SLOT + rng.randrange(SLOT)
            if volume.data[at : at + 1].strip(b"\0"):
                break
        place = f"{min(at, len(volume.data) - 1) * 8 + rng.randrange(8)}"
    elif kind == "sector":
        place = f"{slot * 8 + rng.randrange(8)}"
    elif kind in ("stale", "misdirected") and not volume.older.get(other):
        return drawn(volume, rng)
    elif kind == "misdirected" and volume.newest.get(slot, -1) > volume.newest[other]:
        return drawn(volume, rng)  # what was written since would lie over it
    elif kind == "stale":
        place = f"{other}:{rng.randrange(len(volume.older[other]))}"
    else:
        place = f"{slot}:{other}"
    return f"{volume.name}:{kind}:{place}"


def wrong(spec: str, writable: bool) -> tuple[str | None, int]:
    """What shows and must not, if anything does, and how many errors told of the damage."""
    volume = original(spec.split(":")[0])
    pieces = list(damages(volume, spec))
    content, disk = _scratch(volume.name) if not writable else (bytearray(volume.data), None)
    disk = disk or _disk(content)
    before = len(content)
    for offset, piece in pieces:
        content[offset : offset + len(piece)] = piece[: before - offset]
    try:
        shown, errors = contents(PATH, disk, read_only=not writable)
    except Exception as error:
        return f"{type(error).__name__}: {error}", 0
    finally:
        for offset, piece in pieces if not writable else ():
            content[offset : offset + len(piece)] = volume.data[offset : offset + len(piece)]
    expected = [state for at, piece in pieces for state in volume.allowed(at, at + len(piece))]
    right = [state for state in expected if all(state.get(what) == value for what, value in shown.items())]
    if not right:
        return ", ".join(what for what, value in shown.items() if expected[-1].get(what) != value) + " are others", len(
            errors
        )
    if not errors and shown not in right:
        return "something is missing, and nobody says so", 0
    return None, len(errors)


@functools.cache
def _scratch(name: str) -> tuple[bytearray, MemoryDisk]:
    """A copy to damage and mend again, which is faster than a copy each time."""
    content = bytearray(original(name).data)
    return content, _disk(content)


# -- the command line --------------------------------------------------------------------------------------------------
def specs(options: argparse.Namespace) -> Iterator[str]:
    """What is tried, in order."""
    if options.all:
        for slot in original(options.all).slots:
            yield from (f"{options.all}:flip:{bit}" for bit in range(slot * SLOT * 8, (slot + 1) * SLOT * 8))
        return
    rng = random.Random(options.seed)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        yield drawn(original(rng.choice(VOLUMES)), rng)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--row", action="store_true", help="end with a line of JSON for the scoreboard")
    parser.add_argument("--all", choices=VOLUMES)
    parser.add_argument("--one", metavar="VOLUME:KIND:PLACE")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.one:
        for writable in (False, True):
            problem, errors = wrong(options.one, writable)
            print(f"{'opened for writing' if writable else 'read only'}: {problem or 'right'}, {errors} errors")
        return int(problem is not None)
    tally, noticed = Tally(), 0
    for spec in specs(options):
        problem, errors = wrong(spec, tally.count % WRITABLE_ONE_IN == 0)
        tally.count += 1
        noticed += bool(errors)
        if problem:
            tally.violation(f"--one {spec}: {problem}")
            if len(tally.violations) == VIOLATIONS_MAX:
                break
    tally.more = f"{noticed:,} noticed, the others without effect"
    return tell(tally, options, "damages")


if __name__ == "__main__":
    sys.exit(main())
