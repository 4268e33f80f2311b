"""Every class of cowengine.errors is raised by at least one real situation, with its code, its errno and the file."""

from __future__ import annotations

import errno
import inspect
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing_table import FailingTable

from cowengine import Provider, Requestor, Store, Volume, Writer, WriterMetadata, errors, restore, verify_backup
from cowengine.backup.write import write_backup
from cowengine.errors import CowEngineError
from cowengine.format import decode_superblock, encode_superblock

SIZE = 1 << 20


def volume_at(path: Path, **options: Any) -> Volume:
    return Volume.create(path / "v", SIZE, background=False, **options)


def no_volume(path: Path) -> None:
    (path / "v").write_bytes(b"no volume")
    Volume.open(path / "v")


def newer(path: Path) -> None:
    volume_at(path).close()
    with open(path / "v", "r+b") as file:
        superblock = decode_superblock(file.read(4096))
        superblock.features_incompatible = 1 << 40
        file.seek(0)
        file.write(encode_superblock(superblock))
    Volume.open(path / "v")


def corrupt(path: Path) -> None:
    volume_at(path).close()
    data = bytearray((path / "v").read_bytes())
    data[200] ^= 1
    data[4096 + 200] ^= 1
    (path / "v").write_bytes(data)
    Volume.open(path / "v")


def out_of_range(path: Path) -> None:
    with volume_at(path) as volume:
        volume.pread(1, SIZE)


def exists(path: Path) -> None:
    volume_at(path).close()
    volume_at(path)


def not_found(path: Path) -> None:
    Volume.open(path / "v")


def anchor(path: Path) -> None:
    with volume_at(path) as volume:
        snapshot = volume.snapshot("given up")
        snapshot.to_anchor()
        snapshot.pread(1, 0)


def busy(path: Path) -> None:
    with volume_at(path):
        Volume.open(path / "v")


def no_space(path: Path) -> None:
    table = FailingTable(number=errno.ENOSPC, for_ever=True)  # once is not enough: a write is tried again
    with volume_at(path, io=table) as volume:
        table.fail_at = table.calls + 1
        try:
            volume.pwrite(b"x", 0)
        finally:
            table.fail_at = 0


def read_only(path: Path) -> None:
    volume_at(path).close()
    with Volume.open(path / "v", read_only=True) as volume:
        volume.pwrite(b"x", 0)


def poisoned(path: Path) -> None:
    table = FailingTable()
    with volume_at(path, io=table) as volume:
        volume.pwrite(b"x", 0)
        table.fail_at, table.number = table.calls + 2, errno.EIO  # the record's: the first reads what was written
        volume.flush()


def closed(path: Path) -> None:
    volume = volume_at(path)
    volume.close()
    volume.pread(1, 0)


def storage(path: Path) -> None:
    table = FailingTable()
    with volume_at(path, io=table) as volume:
        volume.pwrite(b"x", 0)
        table.fail_at, table.number = table.calls + 1, errno.EIO
        volume.pread(1, 0)


def full_backup_required(path: Path) -> None:
    with volume_at(path) as volume:
        snapshot = volume.snapshot("s")
        snapshot.delete()
        volume.changed_extents(snapshot.change_id)


def backup_damaged(path: Path) -> None:
    target = path / "target"
    target.mkdir()
    with volume_at(path) as volume:
        volume.pwrite(os.urandom(SIZE), 0)
        backup = write_backup(target, {"v": volume.snapshot("s")}, kind="full")
    assert verify_backup(target).ok
    largest = max((file for file in target.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (path / "out").mkdir()
    restore(target, backup.id, path / "out")


class Told(Writer):
    """A writer that does what it is told when it is frozen."""

    name = "told"

    def __init__(self, what: Callable[[], None] | None = None, limit: float = 60.0) -> None:
        self.what = what
        self.freeze_limit = limit

    def identify(self) -> WriterMetadata:
        return WriterMetadata(self.name)

    def freeze(self, job: Any) -> None:
        if self.what is not None:
            self.what()


def refuse() -> None:
    raise RuntimeError("not now")


def with_store(path: Path, work: Callable[[Store], None]) -> None:
    with Store.create(path / "store") as store:
        store.create_volume("v", SIZE)
        work(store)


def veto(path: Path) -> None:
    with_store(path, lambda store: Requestor(store, writers=[Told(refuse)]).snapshot())


def timeout(path: Path) -> None:
    done = threading.Event()
    try:
        with_store(path, lambda store: Requestor(store, writers=[Told(lambda: done.wait(20) and None, 0.2)]).snapshot())
    finally:
        done.set()


class Refusing(Provider):
    """A provider for no volume at all."""

    name = "refusing"

    def is_volume_supported(self, job: Any, volume: str) -> bool:
        return False

    def commit(self, job: Any) -> None:
        raise AssertionError("it was refused")

    def delete(self, job: Any) -> None:
        raise AssertionError("it has nothing")


def provider(path: Path) -> None:
    with_store(path, lambda store: Requestor(store, provider=Refusing()).snapshot())


def cancelled(path: Path) -> None:
    frozen, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        frozen.set()
        go_on.wait(20)

    def work(store: Store) -> None:
        job = Requestor(store, writers=[Told(wait)]).start_snapshot()
        assert frozen.wait(20)
        job.cancel()
        go_on.set()
        job.wait()

    with_store(path, work)


SITUATIONS: dict[str, Callable[[Path], None]] = {
    "FormatError": no_volume,
    "UnsupportedVersionError": newer,
    "CorruptionError": corrupt,
    "OutOfRangeError": out_of_range,
    "ExistsError": exists,
    "NotFoundError": not_found,
    "AnchorError": anchor,
    "BusyError": busy,
    "NoSpaceError": no_space,
    "ReadOnlyError": read_only,
    "PoisonedError": poisoned,
    "ClosedError": closed,
    "StorageError": storage,
    "FullBackupRequired": full_backup_required,
    "BackupError": backup_damaged,
    "WriterVeto": veto,
    "WriterTimeout": timeout,
    "ProviderError": provider,
    "CancelledError": cancelled,
}
#: Bases, of which the classes above are raised; and what only retention locks will raise.
NOT_RAISED_HERE = {"CowEngineError", "WriterError", "RetentionError"}


@pytest.mark.parametrize("name", SITUATIONS)
def test_this_class_is_raised(tmp_path: Path, name: str) -> None:
    before = time.monotonic()
    with pytest.raises(CowEngineError) as caught:
        SITUATIONS[name](tmp_path)
    error = caught.value
    assert type(error).__name__ == name
    assert str(error)
    if isinstance(error, OSError):
        assert error.errno is not None and error.strerror
    assert time.monotonic() - before < 15


def test_every_class_is_raised_by_one_of_them() -> None:
    classes = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, CowEngineError)}
    public = {name for name in classes if not name.startswith("_")}
    assert public == SITUATIONS.keys() | NOT_RAISED_HERE


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [getattr(errors, name).code for name in SITUATIONS.keys() | NOT_RAISED_HERE]
    assert len(set(codes)) == len(codes)
    assert min(codes) == 1
