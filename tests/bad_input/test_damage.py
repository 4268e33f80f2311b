"""Files cut short or with flipped bits: a typed error, or the right bytes. Damaged metadata never passes for data."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import CowEngineError

SIZE = 32 * 4096
LOG = 16384
BLOCKS = SIZE // 4096


class Unsynced(IOTable):
    """Nothing here is about what survives a crash."""

    def fdatasync(self, fd: int) -> None:
        pass

    def forget(self, fd: int, offset: int = 0, length: int = 0) -> None:
        pass


UNSYNCED = Unsynced()


class Original:
    """A volume file with some of everything, and what it holds."""

    def __init__(self, path: Path, *, crashed: bool) -> None:
        self.crashed = crashed
        rng = random.Random(3)
        self.path = path
        self.states: dict[str, bytes] = {}
        volume = Volume.create(path.with_suffix(".made"), SIZE, log_size=LOG, io=UNSYNCED, background=False)
        for number in range(8):
            for _ in range(4):
                volume.pwrite(rng.randbytes(rng.randrange(1, 9000)), rng.randrange(SIZE - 9000))
            volume.discard(rng.randrange(BLOCKS - 4) * 4096, 4 * 4096)
            volume.snapshot(f"s{number}", metadata={"number": number})
            self.states[f"s{number}"] = volume.pread(SIZE, 0)
        for name in ("s3", "s6"):
            volume.get_snapshot(name).delete()
            del self.states[name]
        volume.engine.checkpoint()
        self.before_last = volume.pread(SIZE, 0)
        volume.pwrite(rng.randbytes(20_000), 8000)
        volume.snapshot("last", metadata={"last": True})
        self.states["last"] = volume.pread(SIZE, 0)
        volume.flush()
        self.live = volume.pread(SIZE, 0)
        if crashed:
            shutil.copy(path.with_suffix(".made"), path)
            volume.close()
        else:
            volume.close()
            shutil.copy(path.with_suffix(".made"), path)
        self.data = path.read_bytes()

    def lost(self, found: Iterable[str]) -> set[str]:
        """What may be missing: the last record of a file that was not closed, damaged itself or in a block that it
        places, cannot be told from one that was being written (I52)."""
        return {"last"} - set(found) if self.crashed else set()


@pytest.fixture(scope="module", params=[False, True], ids=["clean", "crashed"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("original") / "v", crashed=request.param)


def attempt(call: Callable[[], object]) -> object:
    """What a call returns, or the typed error that it raised. Anything else it raises fails the test."""
    try:
        return call()
    except CowEngineError as error:
        str(error).encode()
        return error


def examine(path: Path, original: Original, *, read_only: bool = False, wrong_max: int = 1) -> list[object]:
    """Opens a damaged file, reads all of it and returns the errors. Whatever is read is right but for the byte that was
    flipped, if it was data: a damaged map would show another block, and every block here is different."""
    errors: list[object] = []
    volume = attempt(lambda: Volume.open(path, read_only=read_only, io=UNSYNCED, background=False))
    if not isinstance(volume, Volume):
        return [volume]
    try:
        lost: set[str] = set()
        found = attempt(lambda: {snapshot.name: snapshot for snapshot in volume.snapshots()})
        if isinstance(found, dict):
            lost = original.lost(found)
            assert found.keys() == original.states.keys() - lost, "a damaged lineage was believed"
        else:
            errors.append(found)
            found = {}
        live = original.before_last if lost else original.live
        readers: list[tuple[bytes, Callable[[int, int], bytes]]] = [(live, volume.pread)]
        readers += [(original.states[name], snapshot.pread) for name, snapshot in found.items()]
        for contents, pread in readers:
            for offset in range(0, SIZE, 8 * 4096):
                got = attempt(lambda pread=pread, offset=offset: pread(8 * 4096, offset))
                if isinstance(got, bytes):
                    right = contents[offset : offset + len(got)]
                    wrong = 0 if got == right else sum(a != b for a, b in zip(got, right, strict=True))
                    assert wrong <= wrong_max, "damaged metadata led to wrong bytes"
                else:
                    errors.append(got)
        for snapshot in found.values():
            metadata = attempt(lambda snapshot=snapshot: snapshot.metadata)
            if isinstance(metadata, CowEngineError):
                errors.append(metadata)
            elif snapshot.name != "last":
                assert metadata == {"number": int(snapshot.name[1:])}
            extents = attempt(snapshot.allocated_extents)
            if isinstance(extents, CowEngineError):
                errors.append(extents)
        report = attempt(volume.check)
        if isinstance(report, CowEngineError):
            errors.append(report)
        elif errors:
            assert not report.ok, f"check found nothing, but reads raised {errors[0]!r}"
        return errors
    finally:
        attempt(volume.close)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_flipped_bit_gives_a_typed_error_or_the_right_bytes(
    tmp_path: Path, original: Original, read_only: bool
) -> None:
    rng = random.Random(4)
    path = tmp_path / "v"
    caught: set[str] = set()
    slots = range(len(original.data) // 4096)
    used = [slot for slot in slots if any(original.data[slot * 4096 : slot * 4096 + 4096])]
    unused = sorted(set(slots) - set(used))
    for slot in [*used, *rng.sample(unused, min(20, len(unused)))]:
        for _ in range(4 if slot < 6 else 1):
            data = bytearray(original.data)
            data[slot * 4096 + rng.choice([rng.randrange(4096), rng.randrange(256)])] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            caught.update(type(error).__name__ for error in examine(path, original, read_only=read_only))
    assert "CorruptionError" in caught
    assert caught <= {"CorruptionError", "FormatError"}


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_cut_short_gives_a_typed_error_or_the_right_bytes(
    tmp_path: Path, original: Original, read_only: bool
) -> None:
    path = tmp_path / "v"
    length = len(original.data)
    used_end = len(original.data.rstrip(b"\0"))
    cuts = {
        *range(0, min(used_end + 8192, length), 4096),
        *range(used_end, length, 40_000),
        1,
        511,
        513,
        4095,
        4097,
        8191,
        8193,
        length - 1,
        length // 2 + 100,
    }
    noticed = 0
    for cut in sorted(cuts):
        path.write_bytes(original.data[:cut])
        errors = examine(path, original, read_only=read_only, wrong_max=0)
        if errors:
            noticed += 1
            assert {type(error).__name__ for error in errors} <= {"CorruptionError", "FormatError"}
        elif not read_only:
            go_on(path, original)
    assert noticed > len(cuts) // 3


def go_on(path: Path, original: Original) -> None:
    """What was cut off was in use by nobody; so writing on must not harm what is there."""
    with Volume.open(path, io=UNSYNCED, background=False) as volume:
        volume.pwrite(random.Random(5).randbytes(SIZE), 0)
        volume.snapshot("after the cut")
        volume.pwrite(bytes(SIZE), 0)
        for name in original.states.keys() - original.lost(snapshot.name for snapshot in volume.snapshots()):
            assert volume.get_snapshot(name).pread(SIZE, 0) == original.states[name]
        report = volume.check()
        assert report.ok, report.problems
