"""What a volume on a small disk was told and has acknowledged, so that it can be compared with what is there."""

from __future__ import annotations

import random
from pathlib import Path

from small_disk import MIB, Disk

from cowengine import Volume

SIZE = MIB
BLOCK = 4096
VICTIM = 100 * BLOCK


class Ledger:
    """A volume, and what each of its bytes may be: what was acknowledged, or what a failed write wanted."""

    def __init__(self, disk: Disk, path: Path, log_size: int, block_size: int = BLOCK) -> None:
        self.disk = disk
        self.path = path
        self.random = random.Random(6)
        self.live = bytearray(self.random.randbytes(SIZE))
        self.doubtful: list[tuple[int, bytes]] = []
        self.snapshots: dict[str, bytes] = {}
        self.maybe: dict[str, bytes] = {}
        self.anchors: dict[str, bytes] = {}
        self.volume = Volume.create(
            path, SIZE, block_size=block_size, log_size=log_size, io=disk.io, background=False
        )  # fmt: skip
        self.volume.pwrite(self.live, 0)
        for number in range(2):
            self.snapshot(f"base{number}")
            self.write(100_000)
        self.make_victim()

    def make_victim(self) -> None:
        """A snapshot that alone holds 100 blocks."""
        self.write(VICTIM, offset=BLOCK)
        self.snapshot("victim")
        self.write(VICTIM, offset=BLOCK)

    def write(self, length: int, offset: int | None = None) -> None:
        if offset is None:
            offset = self.random.randrange(len(self.live) - length)
        data = self.random.randbytes(length)
        try:
            self.volume.pwrite(data, offset)
        except BaseException:
            self.doubtful.append((offset, data))
            raise
        self.live[offset : offset + length] = data

    def discard(self) -> None:
        offset = self.random.randrange(len(self.live) // BLOCK - 8) * BLOCK
        self.doubtful.append((offset, bytes(8 * BLOCK)))
        self.volume.discard(offset, 8 * BLOCK)
        self.doubtful.pop()
        self.live[offset : offset + 8 * BLOCK] = bytes(8 * BLOCK)

    def resize(self, size: int) -> None:
        self.volume.resize(size)
        self.live = self.live[:size].ljust(size, b"\0")

    def snapshot(self, name: str) -> None:
        state = bytes(self.live)
        self.maybe[name] = state
        self.volume.snapshot(name)
        self.snapshots[name] = self.maybe.pop(name)

    def rollback(self, name: str) -> None:
        state = bytes(self.live)
        kept = self.volume.rollback(name)
        self.snapshots[kept.name] = state
        self.live = bytearray(self.snapshots[name])

    def delete(self, name: str) -> None:
        self.volume.get_snapshot(name).delete()
        del self.snapshots[name]

    def anchor(self, name: str) -> None:
        self.volume.get_snapshot(name).to_anchor()
        self.anchors[name] = self.snapshots.pop(name)

    def settle(self) -> None:
        """Looks at what failed writes left, which must be old or new, and takes it for granted from now on."""
        found = self.volume.pread(len(self.live), 0)
        for at in range(0, len(found) if found != self.live else 0, 512):
            sector = found[at : at + 512]
            if sector != self.live[at : at + 512]:
                allowed = [self._wanted(at, [write]) for write in self.doubtful]
                assert sector in (*allowed, self._wanted(at, self.doubtful)), f"byte {at} is neither old nor new"
        self.live = bytearray(found)
        self.doubtful = []

    def _wanted(self, at: int, writes: list[tuple[int, bytes]]) -> bytes:
        """A sector as these writes wanted it."""
        sector = self.live[at : at + 512]
        for offset, data in writes:
            begin, end = max(at, offset), min(at + 512, offset + len(data))
            if begin < end:
                sector[begin - at : end - at] = data[begin - offset : end - offset]
        return bytes(sector)

    def verify(self) -> None:
        """All that was acknowledged is there."""
        names = {snapshot.name for snapshot in self.volume.snapshots()}
        assert self.snapshots.keys() <= names <= self.snapshots.keys() | self.maybe.keys() | self.anchors.keys()
        self.settle()
        for name, contents in self.snapshots.items():
            assert self.volume.get_snapshot(name).pread(len(contents), 0) == contents, f"snapshot {name} is wrong"

    def reopen(self) -> None:
        self.volume.close()
        self.volume = Volume.open(self.path, io=self.disk.io, background=False)
