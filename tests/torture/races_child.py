"""One process for races.py: threads that do at once, on one volume, all that the engine lets happen at once.

Some read and write through the kernels' own function table, from C and without the GIL (hammer.c); the others call
everything else that a volume has. ThreadSanitizer watches, and writes its reports where TSAN_OPTIONS says. The last
line on stdout is JSON: how many calls there were, and what went wrong besides.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cowengine import Snapshot, Volume
from cowengine.core import calltable
from cowengine.core.datapath import DataPath
from cowengine.errors import ClosedError, CorruptionError, CowEngineError, PoisonedError

BYTES = 256 << 20  # more nodes than the cache holds, so that they come and go
SNAPSHOTS_MAX, CLONES_MAX = 10, 2
HAMMERS, CALLERS = 4, 3
CALLS = 40  # of the function table, before the thread looks up
WRITES_AMONG = 3  # of the calls, one in so many writes


class Crowd:
    """The threads of one volume."""

    def __init__(self, volume: Volume, hammer: Any, seed: int) -> None:
        self.volume, self.hammer, self.seed = volume, hammer, seed
        self.stop = threading.Event()
        self.lock = threading.Lock()  # of what follows
        self.calls = 0
        self.errors: list[str] = []
        self.clones: dict[str, Volume] = {}
        self.serial = 0

    def run(self, until: Callable[[], object], works: list[Callable[[random.Random], int]]) -> None:
        """Each of `works` again and again in a thread of its own, until `until` returns."""
        self.stop.clear()
        threads = [threading.Thread(target=self._repeat, args=(work, n)) for n, work in enumerate(works)]
        for thread in threads:
            thread.start()
        until()
        self.stop.set()
        for thread in threads:
            thread.join()

    def _repeat(self, work: Callable[[random.Random], int], number: int) -> None:
        rng, calls = random.Random(self.seed * 100 + number), 0
        while not self.stop.is_set():
            try:
                calls += work(rng)
            except (CorruptionError, PoisonedError) as error:
                self._fail(error)
            except ClosedError:
                break
            except CowEngineError:
                calls += 1  # a name that is gone, a size that changed
            except Exception as error:
                self._fail(error)
        with self.lock:
            self.calls += calls

    def _fail(self, error: Exception) -> None:
        with self.lock:
            self.errors.append("".join(traceback.format_exception(error)))
        self.stop.set()

    def name(self) -> str:
        with self.lock:
            self.serial += 1
            return f"n{self.serial}"

    # -- without the GIL -----------------------------------------------------------------------------------------------
    def strike(self, rng: random.Random) -> int:
        """Reads and writes of the live volume, or reads of a snapshot."""
        path, root = self.volume.engine.path, None
        taken = self.volume.snapshots() if rng.random() < 0.3 else []
        if taken:
            root = self.volume.engine.lineage.root(rng.choice(taken).id)
        return strike(self.hammer, path, root, rng, WRITES_AMONG if root is None else 0)

    # -- with it -------------------------------------------------------------------------------------------------------
    def call(self, rng: random.Random) -> int:
        """Any other call."""
        volume = self.volume
        rng.choices(
            [lambda: self._discard(rng), volume.flush, lambda: self._snapshot(rng), lambda: self._delete(rng),
             lambda: self._read(rng), lambda: self._walk(rng), lambda: self._clone(rng), lambda: self._use_clone(rng),
             lambda: self._drop_clone(rng), volume.seal, lambda: self._compact(rng), lambda: self._look(rng),
             lambda: self._resize(rng), lambda: volume.rollback(self._any(rng))],
            [6, 4, 6, 5, 6, 4, 1, 6, 1, 2, 1, 3, 1, 1],
        )[0]()  # fmt: skip
        return 1

    def _any(self, rng: random.Random) -> Snapshot:
        taken = self.volume.snapshots()
        return rng.choice(taken) if taken else self.volume.snapshot(self.name())

    def _range(self, rng: random.Random, size: int) -> tuple[int, int]:
        """Offset and length, in the first quarter of a MiB more often than not."""
        length = rng.choice([1, 512, 4096, 10_000, 1 << 16])
        return rng.randrange((size if rng.random() < 0.4 else 1 << 18) - length), length

    def _discard(self, rng: random.Random) -> None:
        offset, length = self._range(rng, self.volume.size)
        self.volume.discard(offset, length * 4)

    def _snapshot(self, rng: random.Random) -> None:
        if len(self.volume.snapshots()) < SNAPSHOTS_MAX:
            self.volume.snapshot(self.name())

    def _delete(self, rng: random.Random) -> None:
        chosen = self._any(rng)
        if rng.random() < 0.3:
            chosen.to_anchor()
        else:
            chosen.delete()

    def _read(self, rng: random.Random) -> None:
        """Into memory that is written from next."""
        source = self.volume if rng.random() < 0.3 else self._any(rng)
        offset, length = self._range(rng, source.size)
        buffer = bytearray(length)
        if rng.random() < 0.5:
            source.pread_into(buffer, offset)
        else:
            source.pread_many(buffer, [(offset + length // 2, length - length // 2), (offset, length // 2)])
        self.volume.pwrite(buffer, offset)

    def _walk(self, rng: random.Random) -> None:
        chosen, base = self._any(rng), self._any(rng)
        rng.choice([
            chosen.allocated_extents, chosen.space, chosen.verify, self.volume.allocated_extents, self.volume.du,
            lambda: chosen.changed_extents(base), lambda: self.volume.changed_extents(base),
        ])()  # fmt: skip

    def _clone(self, rng: random.Random) -> None:
        with self.lock:
            enough = len(self.clones) >= CLONES_MAX
        if not enough:
            name = self.name()
            clone = self._any(rng).clone(name)
            with self.lock:
                self.clones[name] = clone

    def _use_clone(self, rng: random.Random) -> None:
        with self.lock:
            clone = rng.choice([*self.clones.values(), self.volume])
        offset, length = self._range(rng, clone.size)
        clone.pwrite(clone.pread(length, offset), offset)

    def _drop_clone(self, rng: random.Random) -> None:
        with self.lock:
            if not self.clones:
                return
            name = rng.choice(sorted(self.clones))
            clone = self.clones.pop(name)
        clone.close()
        self.volume.delete_head(name)

    def _compact(self, rng: random.Random) -> None:
        self.volume.compact(rng.randrange(self.volume.size))

    def _look(self, rng: random.Random) -> None:
        rng.choice([self.volume.stats, self.volume.heads, self.volume.unsealed_bytes, self.volume.reclaim])()

    def _resize(self, rng: random.Random) -> None:
        self.volume.resize(BYTES - rng.randrange(4) * (8 << 20))


def strike(hammer: Any, path: Any, root: Any, rng: random.Random, every: int) -> int:
    """One go of hammer.c, and what the engine does for a write that needs more room; how many calls it made."""
    status = ctypes.c_int()
    table, *places = calltable.addresses(path, root)
    calls: int = hammer(table, *places, rng.randrange(1 << 62), CALLS, every, ctypes.byref(status))
    calltable.settle(path, status.value) if status.value else None
    return calls


def play(path: Path, hammer: Any, seed: int, seconds: float) -> Crowd:
    """Everything at once; then the volume is closed under those that still read and write, and has to be sound."""
    rng = random.Random(seed)
    block_size = rng.choice([4096, 4096, 16384])
    volume = Volume.create(path, BYTES, block_size=block_size, log_size=1 << 16, cache_size=1 << 20)
    crowd = Crowd(volume, hammer, seed)
    crowd.run(lambda: crowd.stop.wait(seconds), [crowd.strike] * HAMMERS + [crowd.call] * CALLERS)
    crowd.run(volume.close, [crowd.strike] * HAMMERS)
    with Volume.open(path, background=False) as opened:
        crowd.errors += opened.check().problems
    return crowd


def play_planted(path: Path, hammer: Any, seed: int, seconds: float) -> Crowd:
    """Two threads read a snapshot under two different mutexes: as kernels do that forget theirs."""
    with Volume.create(path, BYTES, background=False) as volume:
        for offset in range(0, BYTES, 1 << 20):
            volume.pwrite(b"x", offset)
        volume.snapshot("s")
    with Volume.open(path, background=False) as volume:  # no node is in memory
        first, root = volume.engine.path, volume.engine.lineage.root(volume.get_snapshot("s").id)
        second = DataPath(first.io, first.fd, volume.engine.fold, 12, 1 << 16, None, None)
        crowd = Crowd(volume, hammer, seed)
        works = [lambda rng, path=path: strike(hammer, path, root, rng, 0) for path in (first, second)]
        crowd.run(lambda: crowd.stop.wait(seconds), works)
    return crowd


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--hammer", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--planted", action="store_true")
    arguments = parser.parse_args()
    hammer = ctypes.CDLL(arguments.hammer).hammer
    hammer.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_uint64] * 3 + [ctypes.c_void_p]
    hammer.restype = ctypes.c_uint64
    crowd = (play_planted if arguments.planted else play)(arguments.path, hammer, arguments.seed, arguments.seconds)
    print(json.dumps({"calls": crowd.calls, "errors": crowd.errors[:5]}), flush=True)


if __name__ == "__main__":
    main()
