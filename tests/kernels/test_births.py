"""When blocks were written, on the kernel: what is merged, where an answer ends, and what cannot be read."""

from __future__ import annotations

import struct

import pytest
from kernel_path import Path

from cowengine.core.roots import Root
from cowengine.errors import ClosedError, CorruptionError, NotFoundError, OutOfRangeError

Birth = tuple[int, int, int]


def births(made: Path, first: int, end: int, max_results: int = 1000, root: Root | None = None) -> list[Birth]:
    return [*struct.iter_unpack("<QQQ", made.path.births(root or made.live, first, end, max_results))]


def aged() -> Path:
    """Blocks of three epochs, 10 to 40, with holes between."""
    made = Path(2000)
    made.write(10, 10)
    made.snapshot()
    made.write(20, 5)
    made.write(12, 2)
    made.snapshot()
    made.write(39, 1)
    return made


def test_blocks_of_one_epoch_are_one_row_wherever_they_lie() -> None:
    rows = births(aged(), 0, 2000)
    assert rows == [(0, 10, 0), (10, 2, 1), (12, 2, 2), (14, 6, 1), (20, 5, 2), (25, 14, 0), (39, 1, 3), (40, 1960, 0)]
    assert births(aged(), 13, 22) == [(13, 1, 2), (14, 6, 1), (20, 2, 2)]
    assert births(aged(), 5, 5) == []


@pytest.mark.parametrize("max_results", [1, 2, 3, 7])
def test_an_answer_has_no_more_rows_than_asked_for(max_results: int) -> None:
    assert births(aged(), 0, 2000, max_results) == births(aged(), 0, 2000)[:max_results]


def test_many_looks_are_no_more_rows() -> None:
    """Blocks that were written backwards lie in no row, so that each is looked up alone."""
    made = Path(1200)
    for block in reversed(range(1200)):
        made.write(block)
    assert births(made, 0, 1200) == [(0, 512, 1), (512, 512, 1), (1024, 176, 1)]


def test_a_long_search_ends_before_the_end() -> None:
    blocks = 70_000
    made = Path(blocks, batch_bytes=1 << 24, runway=((1_000, 90_000),))
    made.disk.pwrite = lambda fd, data, offset: 0  # type: ignore[method-assign]
    for block in reversed(range(blocks)):
        made.write(block)
    rows = births(made, 0, blocks, blocks)
    assert rows[0] == (0, 512, 1) and rows[-1][0] + rows[-1][1] == 1 << 16


def test_more_of_the_map_than_should_be_is_trimmed() -> None:
    made, trimmed = aged(), []
    made.path.bound(0, lambda: trimmed.append(1))
    births(made, 0, 2000)
    assert trimmed


def test_what_cannot_be_asked() -> None:
    made = aged()
    with pytest.raises(OutOfRangeError):
        births(made, 0, 2001)
    root = made.snapshot()
    made.lose_map()
    with pytest.raises((CorruptionError, OSError)):
        births(made, 0, 2000)
    root.retire()
    with pytest.raises(NotFoundError):
        births(made, 0, 1, root=root)
    made.path.shut()
    with pytest.raises(ClosedError):
        births(made, 0, 1)
