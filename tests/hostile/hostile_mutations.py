"""What is done to the fields of a volume file before its checksums are made right again. One generator decides all."""

from __future__ import annotations

import contextlib
import random
import struct

from hostile_image import SLOT, Image, Spot

from cowengine import format as f
from cowengine.format import layout

NAMES = (
    b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"..", b".", b"a/b", b"a\0b", b"\xe2\x80\xaegnp.exe", b"\n\r\t\x1b[2J",
    b"\xf4\x90\x80\x80", b"\xef\xbb\xbfbom", b" ", b"%s%n", b"s0", b"s1", b"live", b"x" * 255, "\u00e9".encode(),
    "e\u0301".encode(), b"-rf", b"\x7f", "\U0010ffff".encode(),
)  # fmt: skip
JSONS = (b"[" * 2000, b"{" + b'"a":{' * 600, b"1" * 4096, b'{"a":NaN}', b"null", b"\xff", b'{"a":1e999}', b"[]", b"{}")


def mutate(image: Image, rng: random.Random) -> list[str]:
    """Changes an image in one to four places and seals it; returns what was done."""
    done = []
    by_structure: dict[str, list[Spot]] = {}
    for spot in image.spots:
        by_structure.setdefault(spot.what.split(".")[0], []).append(spot)
    other = SLOT - image.superblock
    if rng.random() < 0.7:
        image.data[other : other + SLOT] = bytes(SLOT)
        done.append("other superblock erased")
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if rng.random() < 0.2:
            done.append(_append(image, rng))
        else:
            structure = by_structure[rng.choice(sorted(by_structure))]
            fields: dict[str, list[Spot]] = {}
            for spot in structure:
                fields.setdefault(spot.what, []).append(spot)
            done.append(_change(image, rng, rng.choice(fields[rng.choice(sorted(fields))])))
    image.seal()
    return done


def _change(image: Image, rng: random.Random, spot: Spot) -> str:
    before = bytes(image.data[spot.offset : spot.offset + spot.bytes])
    field = spot.what.rsplit(".", 1)[-1]
    if spot.what == "free_map.bits":
        _bits(image, rng, spot)
    elif spot.bytes == layout.POINTER_BYTES or spot.what == "lineage":
        _copy_over(image, rng, spot)
    elif field == "target":
        image.put(spot.offset, target(image, rng, image.u64(spot.offset)))
    elif field in ("name", "hold_reason"):
        _text(image, rng, spot)
    elif field == "metadata_bytes" and rng.random() < 0.5:
        _metadata(image, rng, spot)
    elif spot.bytes in (1, 2, 4, 8):
        old = int.from_bytes(before, "little")
        image.put(spot.offset, number(image, rng, old, spot.bytes), spot.bytes)
    else:
        at = spot.offset + rng.randrange(spot.bytes)
        image.data[at] ^= 1 << rng.randrange(8)
    after = bytes(image.data[spot.offset : spot.offset + spot.bytes])
    return f"{spot.what}@{spot.offset:#x} {before[:32].hex()} -> {after[:32].hex()}"


def number(image: Image, rng: random.Random, old: int, count: int) -> int:
    """An integer for a field of `count` bytes."""
    edges = (0, 1, 2, 255, 4096, 2**31, 2**32 - 1, 2**40, 2**47 - 1, 2**47, 2**48 - 4096, 2**48 - 1, 2**48, 2**63 - 1,
             2**63, 2**64 - 1, 2**64 - 2, layout.ID_MAX, layout.ID_MAX + 1, layout.EPOCH_MAX - 1025)  # fmt: skip
    another = rng.choice(image.spots)
    chosen: int = rng.choice((
        rng.choice(edges), rng.choice(edges), rng.choice(edges), old + rng.choice((-1, 1, -2, 2, 8, 512, -512, 4096)),
        old ^ 1 << rng.randrange(8 * count), old << rng.randrange(1, 40), rng.randrange(16), rng.randrange(2**14),
        image.slots + rng.choice((-1, 0, 1)), int.from_bytes(image.data[another.offset : another.offset + 8], "little"),
        rng.getrandbits(8 * count), rng.randrange(2, max(image.slots, 3)),
    ))  # fmt: skip
    return chosen % (1 << 8 * count)


def target(image: Image, rng: random.Random, old: int) -> int:
    """A target of a pointer, map entry or delta: kind, level and slot change, each for itself."""
    kind, level, slot = old >> 56, old >> 48 & 0xFF, old & f.SLOT_MASK
    what = rng.randrange(4)
    if what == 0:
        kind = rng.choice((0, 1, 2, 3, 255))
    if what == 1:
        level = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 63, 255, level + 1, max(level - 1, 0)))
    if what >= 2 or (kind and not slot):
        others = [spot.offset for spot in image.spots if spot.what.endswith("target")]
        slot = rng.choice((
            rng.randrange(image.slots), rng.randrange(image.slots), image.u64(rng.choice(others)), slot + 1, slot - 1,
            0, 1, 2, 2**47 - 1, 2**47, 2**48 - 1, image.slots, image.slots - 1, 2**36,
        )) & f.SLOT_MASK  # fmt: skip
    return (kind & 0xFF) << 56 | (level & 0xFF) << 48 | slot


def _bits(image: Image, rng: random.Random, spot: Spot) -> None:
    for _ in range(rng.choice((1, 1, 5, 50))):
        at = spot.offset + rng.randrange(spot.bytes)
        image.data[at] = rng.choice((0, 255, image.data[at] ^ 1 << rng.randrange(8)))
    if rng.random() < 0.1:
        image.data[spot.offset : spot.offset + SLOT] = bytes([rng.choice((0, 255))]) * SLOT


def _copy_over(image: Image, rng: random.Random, spot: Spot) -> None:
    """Puts another pointer or lineage record here; a record keeps its id, unless it should not."""
    source = rng.choice([other for other in image.spots if other.bytes == spot.bytes])
    number = image.u64(spot.offset + 8)
    data = image.data[source.offset : source.offset + spot.bytes]
    image.data[spot.offset : spot.offset + spot.bytes] = bytes(spot.bytes) if rng.random() < 0.15 else data
    if spot.what == "lineage" and rng.random() < 0.9 and image.data[spot.offset]:
        image.put(spot.offset + 8, number)


def _text(image: Image, rng: random.Random, spot: Spot) -> None:
    text = rng.choice(NAMES)[: spot.bytes]
    image.data[spot.offset : spot.offset + spot.bytes] = text + bytes(spot.bytes - len(text))
    if spot.what == "lineage.name":
        image.put(spot.offset - 190, len(text), 2)
    elif spot.what == "event1.name":
        image.put(spot.offset - 8, len(text), 2)
        image.put(spot.offset - 4, max(0, spot.bytes - len(text) - rng.randrange(8)), 4)
    elif spot.what == "event8.name":
        image.put(spot.offset - 8, len(text))


def _metadata(image: Image, rng: random.Random, spot: Spot) -> None:
    """Other metadata, in the slot where it was or in any."""
    text = rng.choice(JSONS)[:SLOT]
    slot = image.u64(spot.offset + 124) or rng.randrange(2, image.slots)
    if slot < image.slots:
        image.data[slot * SLOT : slot * SLOT + len(text)] = text
        image.put(spot.offset, len(text), 4)
        image.put(spot.offset + 124, slot)


# -- records that nobody wrote -----------------------------------------------------------------------------------------
def _append(image: Image, rng: random.Random) -> str:
    """One more record in the log, legal in its form: what it says is anything."""
    events = [_event(image, rng) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    epoch = max(1, min(number(image, rng, image.u64(image.superblock + 152), 8), layout.EPOCH_MAX))
    if rng.random() < 0.8:
        epoch = image.u64(image.superblock + 152) + rng.choice((0, 1, 2))
    record = f.Record(
        0, 0, 0, 0, epoch & layout.MASK64, 0, rng.choice((512, 4096 * 300, 2**48 - 4096)),
        one_barrier=rng.random() < 0.1,
        deltas=b"".join(_delta(image, rng, epoch) for _ in range(rng.choice((0, 0, 1, 3)))),
        freed=[_run(image, rng) for _ in range(rng.choice((0, 0, 1, 2)))],
        freed_nodes=[_run(image, rng) for _ in range(rng.choice((0, 0, 1, 2)))],
        checks=[_run(image, rng) for _ in range(rng.choice((0, 0, 0, 1)))],
        events=events,
    )  # fmt: skip
    appended = image.append_record(record)
    return f"record {record!r}" if appended else "no room for a record"


def _delta(image: Image, rng: random.Random, epoch: int) -> bytes:
    head = rng.choice((0, 0, 0, 1, 2, 3, 255)) << 48
    return struct.pack(
        "<4Q",
        rng.choice((0, 1, 7, 255, 256, 299, rng.randrange(1300), number(image, rng, 0, 8))),
        rng.choice((1, 1, 2, 44, 256, 2**36, number(image, rng, 1, 8))),
        rng.choice((0, target(image, rng, 1 << 56 | rng.randrange(2, image.slots)))),
        (rng.choice((epoch, epoch, 1, number(image, rng, epoch, 8))) | head) & layout.MASK64,
    )


def _run(image: Image, rng: random.Random) -> tuple[int, int]:
    slot = rng.choice((rng.randrange(2, image.slots), number(image, rng, 2, 8)))
    return slot, rng.choice((1, 1, 2, 16, 300, 2**32, 2**46, number(image, rng, 1, 8)))


def _event(image: Image, rng: random.Random) -> f.Event:
    member = rng.choice((0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 200, layout.ID_MAX, number(image, rng, 1, 8)))
    next_id = image.u64(image.superblock + 160)
    epoch = image.u64(image.superblock + 152)
    later = rng.choice((epoch, epoch, epoch + 1, epoch + 2, layout.EPOCH_MAX, number(image, rng, epoch, 8)))
    newer, epoch = (epoch + 1) & layout.MASK64, later & layout.MASK64
    size = rng.choice((512, 4096 * 7 + 512, 4096 * 300, 4096 * 600, 2**40, 2**48 - 4096, number(image, rng, 512, 8)))
    name = "s"
    with contextlib.suppress(UnicodeDecodeError):
        name = rng.choice(NAMES).decode()
    before = rng.random() < 0.2
    taken = rng.choice((next_id, next_id, next_id + 1, member)) & layout.MASK64
    head = rng.choice((0, 0, 1, 1, 2, 3, 4, 255))
    metadata = rng.choice((b"", b"{}", *JSONS))[:4000]
    return rng.choice((
        f.SnapshotEvent(taken, epoch, 1, 1, name, bytes(16), rng.choice((0, 0, 4, 1, 2)), metadata, before, head),
        f.SnapshotEvent(next_id, epoch, 1, 1, f"new{next_id}", before=before),
        f.DeleteEvent(member, before), f.ReclaimEvent(member, number(image, rng, 0, 8), before),
        f.ReclaimedEvent(member, before), f.RollbackEvent(head, member, epoch, size, before),
        f.StoreEvent(number(image, rng, 0, 8), before), f.AnchorEvent(member, before),
        f.HoldEvent(member, rng.choice(("", "held")), before),
        f.PolicyEvent(rng.randrange(3), number(image, rng, 0, 8),
                      number(image, rng, 0, 8), before),
        f.GiveUpEvent(member, number(image, rng, 0, 8), before),
        f.ResizeEvent(head, size, epoch, before),
        f.CloneEvent(head, taken, member, epoch, 1, name, before),
        f.CloneEvent(rng.choice((1, 5, 6, 7)), next_id, member, newer, 1, f"new{next_id}"),
        f.DeleteHeadEvent(head, epoch, before),
    ))  # fmt: skip
