"""Hunts with two calls at once: one is held in the middle of its I/O while another runs. No luck with the scheduler.

The disk in memory stops a call where it reads, writes or syncs, and goes on when the other call has ended or is seen
to wait. What may come of it is then the same as on any machine.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from crash_explorer import Keeps
from crash_workload import PATH, SMALL, determinism
from memory_disk import MemoryDisk, instants
from planted_hunts import constants
from planting import Played, Trace

from cowengine import Volume
from cowengine.errors import BusyError, NotFoundError

BLOCK = 4096
BLOCKS = 24
WAITS_SECONDS = 0.05  # a call that has not ended by then waits for the one that is held


class HeldDisk(MemoryDisk):
    """A disk that runs something else in the middle of a call: `held[kind]`, once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: dict[str, Callable[[], None]] = {}

    def _hold(self, kind: str) -> None:
        work = self.held.pop(kind, None)
        if work is not None:
            work()

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if any(bytes(data)):  # zeros are new space, for which no write is under way yet
            self._hold("write")
        super().pwrite(fd, data, offset)

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        self._hold("read")
        return super().pread_into(fd, buffer, offset)

    def fdatasync(self, fd: int) -> None:
        self._hold("barrier")
        super().fdatasync(fd)


class Scene:
    """A volume whose contents are known, and a call that runs beside another one."""

    def __init__(self) -> None:
        self.disk = HeldDisk()
        self.volume: Any = Volume.create(PATH, BLOCKS * BLOCK, log_size=16384, io=self.disk, background=False)
        self.live = bytearray(BLOCKS * BLOCK)
        self.serial = 0
        self.problems: list[BaseException] = []

    def fill(self, length: int) -> bytes:
        self.serial += 1
        return self.serial.to_bytes(4, "little") * (length // 4)

    def write(self, data: bytes, offset: int) -> None:
        self.volume.pwrite(data, offset)
        self.live[offset : offset + len(data)] = data

    def beside(self, kind: str, call: Callable[[], Any], other: Callable[[], Any]) -> None:
        """`call` is held at its first I/O of that kind while `other` runs as far as it can."""
        threads: list[threading.Thread] = []

        def run() -> None:
            try:
                other()
            except Exception as error:
                self.problems.append(error)

        def hold() -> None:
            threads.append(threading.Thread(target=run, daemon=True))
            threads[0].start()
            threads[0].join(WAITS_SECONDS)

        self.disk.held[kind] = hold
        call()
        self.disk.held.clear()
        for thread in threads:
            thread.join()
        if self.problems:
            raise self.problems[0]

    # -- what may happen ----------------------------------------------------------------------------------------------
    def snapshot_beside_write(self, block: int, count: int) -> None:
        """The snapshot has each block as before the write or behind it, and what it lacks is a change."""
        before, (data, offset) = bytes(self.live), self.range(block, count)
        name = f"s{self.serial}"
        self.beside("write", lambda: self.write(data, offset), lambda: self.volume.snapshot(name))
        if name not in [each.name for each in self.volume.snapshots()]:
            return  # the write needed no I/O that could be held
        snapshot = self.volume.get_snapshot(name)
        found = snapshot.pread(len(before), 0)
        changed = bytearray(len(before))
        for start, length in self.volume.changed_extents(snapshot).tolist():
            changed[start : start + length] = b"\1" * length
        for at in range(0, len(before), BLOCK):
            part, now = found[at : at + BLOCK], self.live[at : at + BLOCK]
            assert part in (before[at : at + BLOCK], now), f"snapshot {name} has a torn block"
            told = part == now or changed[at]
            assert told, f"block {at // BLOCK} differs from snapshot {name} and is not told"

    def flush_beside_flush(self, block: int, count: int) -> None:
        """Who writes and flushes while another flush runs finds that durable when its own call returns."""
        self.write(*self.range(block + 5, 1))
        data, offset = self.range(block, count)

        def other() -> None:
            self.write(data, offset)
            self.volume.flush()

        self.beside("barrier", self.volume.flush, other)
        *_, last = instants(self.disk.start, self.disk.journal)
        with Volume.open(PATH, io=MemoryDisk(last.durable.copy(), recorded=False), background=False) as found:
            assert found.pread(len(data), offset) == data, f"block {offset // BLOCK} was flushed, and is lost"

    def delete_beside_read(self, block: int, count: int) -> None:
        """A snapshot that is deleted while it is read shows its bytes or an error."""
        content = bytes(self.live)
        snapshot = self.volume.snapshot(f"r{self.serial}")
        for at in range(BLOCKS):
            self.write(self.fill(BLOCK), at * BLOCK)

        def other() -> None:
            snapshot.delete()
            self.volume.reclaim()
            for at in range(BLOCKS):
                self.write(self.fill(BLOCK), at * BLOCK)
            self.volume.flush()

        def call() -> None:
            with suppress(NotFoundError):
                data = snapshot.pread(count * BLOCK, block * BLOCK)
                assert data == content[block * BLOCK : (block + count) * BLOCK], "a read shows other bytes"

        self.volume.flush()
        self.beside("read", call, other)

    def halves_beside(self, block: int, count: int) -> None:
        """Two writes of the halves of one block, which a snapshot shares, both arrive."""
        if count % 2:
            self.volume.snapshot(f"h{self.serial}")
        first, second = self.fill(BLOCK // 2), self.fill(BLOCK // 2)
        at = block * BLOCK
        self.beside("write", lambda: self.write(first, at), lambda: self.write(second, at + BLOCK // 2))
        assert self.volume.pread(BLOCK, at) == first + second, f"half of block {block} was lost"

    def range(self, block: int, count: int) -> tuple[bytes, int]:
        first = block % BLOCKS
        return self.fill(min(count, BLOCKS - first) * BLOCK), first * BLOCK

    def end(self) -> None:
        for snapshot in self.volume.snapshots():
            snapshot.delete()
        problems = self.volume.check().problems
        assert not problems, f"check: {problems[:2]}"


@dataclass(frozen=True)
class Beside:
    """Plays one kind of scene, with plain writes in between."""

    kind: str  # a method of Scene
    length: int = 6
    harness: str = "two calls at once"

    def trace(self, number: int) -> Trace:
        rng = random.Random(number)
        kinds = (self.kind, "plain")
        return tuple(
            (rng.choice(kinds), rng.randrange(BLOCKS - 4), rng.choice((1, 1, 2, 3))) for _ in range(self.length)
        )

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        with constants(SMALL), determinism(number):
            scene = Scene()
            try:
                for name, block, count in trace:
                    if name == "plain":
                        scene.write(*scene.range(block, count))
                    else:
                        getattr(scene, name)(block, count)
                scene.end()
            except Exception as error:
                return Played(f"{type(error).__name__}: {error}")
            finally:
                with suppress(Exception):
                    scene.volume.close()
        return Played(None)


@dataclass(frozen=True)
class Readers:
    """An owner and a reader beside it on one file: what the reader has pinned stays."""

    length: int = 10
    harness: str = "owner and reader"

    def trace(self, number: int) -> Trace:
        rng = random.Random(number)
        return tuple(
            (rng.choice(("write", "snapshot", "pin", "delete")), rng.randrange(64)) for _ in range(self.length)
        )

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        with constants(SMALL), determinism(number):
            scene = Scene()
            reader = Volume.open(PATH, io=scene.disk, read_only=True, background=False)
            try:
                self._play(scene, reader, trace)
            except Exception as error:
                return Played(f"{type(error).__name__}: {error}")
            finally:
                for volume in (reader, scene.volume):
                    with suppress(Exception):
                        volume.close()
        return Played(None)

    def _play(self, scene: Scene, reader: Any, trace: Trace) -> None:
        contents: dict[str, bytes] = {}
        pinned: dict[str, Any] = {}
        for name, number in trace:
            if name == "write":
                scene.write(*scene.range(number, 1 + number % 3))
            elif name == "snapshot":
                taken = scene.volume.snapshot(f"s{len(contents)}-{scene.serial}-{number}")
                contents[taken.name] = bytes(scene.live)
            elif contents:
                chosen = sorted(contents)[number % len(contents)]
                if name == "pin":
                    pinned[chosen] = reader.get_snapshot(chosen).open()
                elif chosen in pinned:
                    with suppress(BusyError):
                        scene.volume.get_snapshot(chosen).delete()
                        raise AssertionError(f"snapshot {chosen} is being read and could be deleted")
                else:
                    scene.volume.get_snapshot(chosen).delete()
                    del contents[chosen]
            for snapshot, opened in pinned.items():
                opened.seek(0)
                assert opened.read() == contents[snapshot], f"snapshot {snapshot} changed under its reader"
