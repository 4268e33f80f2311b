"""Lists of changes between branches, page by page (tests/torture/diff_pairs.py found it, history 1000000).

What each of two branches wrote since they parted is found by a walk of its own. Where rows of both join there were
fewer than asked for; the command line took that for the end of the list: the rest was missing, without an error.
"""

from __future__ import annotations

from pathlib import Path

from cowengine import Volume

BLOCK = 4096


def test_a_page_of_two_branches_is_full_or_the_last_one(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "volume", 64 * BLOCK, block_size=BLOCK, background=False) as volume:
        parted = volume.snapshot("parted")
        volume.pwrite(b"a" * 40 * BLOCK, 0)  # one row
        base = volume.snapshot("base")
        volume.rollback(parted)
        for block in (1, 3, 5, 50, 60):
            volume.pwrite(b"b" * BLOCK, block * BLOCK)
        wanted = [[0, 40 * BLOCK], [50 * BLOCK, BLOCK], [60 * BLOCK, BLOCK]]
        assert volume.changed_extents(base).tolist() == wanted
        for most in (1, 2, 3, 4):
            blocks, at, full = [], 0, True
            while full:
                page = volume.changed_extents(base, at, None, most).tolist()
                blocks += [
                    block for start, length in page for block in range(start // BLOCK, (start + length) // BLOCK)
                ]
                full = len(page) == most
                at = sum(page[-1]) if page else at
            assert blocks == [*range(40), 50, 60]
