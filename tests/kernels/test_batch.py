"""The open batch: which changes become one delta."""

from __future__ import annotations

import struct

from kernel_path import BLOCK, RUNWAY, Path

from cowengine import format as f

FIRST = RUNWAY[0][0]


def test_changes_that_continue_one_another_are_one_delta() -> None:
    made = Path()
    clone = made.path.add_head(1)
    clone.load(f.hole(1).encode())
    clone.set_size(1024 * BLOCK)
    clone.set_epochs(1, 0)
    clone.open()
    made.write(0, 2)
    made.write(2, 2)  # with the one before
    made.write(6)
    made.path.discard(7, 8)  # a hole behind what is mapped
    made.path.discard(8, 9)  # with the one before
    made.path.discard(12, 13)
    made.write(13)  # mapped behind a hole
    made.give((90_000, 9))
    made.write(14)  # somewhere else
    made.write(15, head=clone)  # another head's
    deltas, *_ = made.path.take_batch([])

    def entry(slot: int) -> int:
        return f.POINTER_RUN << 56 | slot

    assert [*struct.iter_unpack("<QQQQ", deltas)] == [
        (0, 4, entry(FIRST), 1),
        (6, 1, entry(FIRST + 4), 1),
        (7, 2, 0, 1),
        (12, 1, 0, 1),
        (13, 1, entry(FIRST + 5), 1),
        (14, 1, entry(90_000), 1),
        (15, 1, entry(90_001), 1 | 1 << 48),
    ]
