"""Verifying: every block that snapshots reach, against its seal, as the disk has it.

What is damaged is reported, and all else still looked at; nothing is repaired. A block that has no seal yet is read, so
that the disk's own errors show, and counted.

Threads   Any; holds no lock during I/O, and nobody up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cowengine.core.sealing import Fresh, verify_blocks
from cowengine.engine.pace import Pace
from cowengine.engine.report import Report
from cowengine.engine.sealing import Walk, disjoint_walks, whole_walk_of
from cowengine.errors import CorruptionError, NotFoundError, StorageError
from cowengine.format import SLOT_BYTES

if TYPE_CHECKING:
    from cowengine.core.roots import Root
    from cowengine.engine.engine import Engine

PROBLEMS_MAX = 200
NOT_SEALED = "does not hold what was sealed there"


class Verifying:
    """One verification: what it found so far, where it is, and at which speed it may go on."""

    def __init__(
        self, bytes_a_second: int | None, stop: threading.Event | None, progress: Callable[[Report], None] | None
    ) -> None:  # fmt: skip
        self._fresh = Fresh()
        self._pace = Pace(bytes_a_second, stop, progress)
        self.report = Report([], dict.fromkeys(("blocks", "verified", "unsealed", "damaged"), 0))
        self.position = 0  # in the snapshot that is verified: all blocks before this one are

    def snapshot(self, engine: Engine, number: int) -> None:
        """Verifies all of a snapshot from `position` on. Raises NotFoundError.

        Raises CorruptionError at metadata that cannot be read, with `position` as far as one came; a look at the same
        snapshot that is newer goes on there.
        """
        self.walk(engine, whole_walk_of(engine, number, self.position))

    def walk(self, engine: Engine, walk: Walk) -> None:
        """Verifies what lies on a way. Raises NotFoundError."""
        while not self._pace.stop.is_set() and (extent := walk.next(engine)):
            self._piece(engine, walk, *extent)
            self._pace.keep(self.report.counts["blocks"] * int(engine.path.block_bytes), self.report)

    def _piece(self, engine: Engine, walk: Walk, first: int, end: int) -> None:
        path, counts = engine.path, self.report.counts
        try:
            position, blocks, unsealed, bad = verify_blocks(path, walk.root, first, end, self._fresh)
        except StorageError as error:
            if end - first > 1:
                end = first + (end - first) // 2  # what cannot be read is told block by block
                self._piece(engine, walk, first, end)
                return
            position, blocks, unsealed, bad = first + 1, 1, 0, [(first, path.place(first, walk.root)[0])]
            self._tell(engine, walk.name, first, bad[0][1], f"cannot be read: {error.strerror}")
        else:
            for block, slot in bad:
                self._tell(engine, walk.name, block, slot, NOT_SEALED)
        walk.passed(position)
        self.position = position
        counts["blocks"] += blocks
        counts["unsealed"] += unsealed
        counts["damaged"] += len(bad)
        counts["verified"] += blocks - unsealed - len(bad)

    def _tell(self, engine: Engine, name: str, block: int, slot: int, what: str) -> None:
        problems = self.report.problems
        if len(problems) < PROBLEMS_MAX:
            problems.append(
                f"{engine.name}: snapshot {name!r}: the block at byte {block * engine.path.block_bytes} "
                f"{_in_slot(slot)} {what}"
            )
        elif len(problems) == PROBLEMS_MAX:
            problems.append(f"more than {PROBLEMS_MAX} blocks; the counts have all")


def verify_all(verifying: Verifying, engine: Engine) -> None:
    """All snapshots, each block once."""
    with engine.lock:
        engine.path.check_state()
        numbers = [record.id for record in engine.lineage.snapshots()]
    for walk in disjoint_walks(engine, numbers):
        with suppress(NotFoundError):  # deleted meanwhile
            verifying.walk(engine, walk)


def require_undamaged(engine: Engine, root: Root, first: int, end: int) -> None:
    """Raises CorruptionError if a sealed block of [first, end) is damaged: for who copies them without looking."""
    while first < end:
        first, _, _, bad = verify_blocks(engine.path, root, first, end, sealed_only=True)
        for block, slot in bad:
            start = block * int(engine.path.block_bytes)
            message = f"the block at byte {start} {_in_slot(slot)} {NOT_SEALED}"
            raise CorruptionError(message, offset=start, file_offset=slot * SLOT_BYTES)


def _in_slot(slot: int) -> str:
    return f"in slot {slot}, byte {slot * SLOT_BYTES} of the file,"
