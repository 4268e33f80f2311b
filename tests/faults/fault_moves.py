"""The cases of a store that files come to, and of one that is only looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from crash_oracle import content_of
from crash_workload import determinism
from fault_cases import SEED, Case
from fault_states import Asked, StateCase, World
from fault_stores import NO_WORLD, STORES, opened, shown, some_store
from memory_disk import MemoryDisk
from set_workload import STORE

from cowengine import Store, Volume
from cowengine.engine.intent import SUFFIX as INTENT_SUFFIX
from cowengine.errors import FormatError, StorageError

RAW, DETACHED = "/image.raw", f"{STORE}/detached/b.cow"
ASIDE = World(opened, Store.close, lambda disk: (shown(disk), aside(disk)))


def aside(disk: MemoryDisk) -> Any:
    """What lies beside the store, whole: a volume, and a raw image that may be one by now, under the same name."""
    if RAW + INTENT_SUFFIX in disk.cache.entries:
        with suppress(FormatError):
            Volume.undo_adoption(RAW, io=disk)
    return {path: content_aside(disk, path) for path in (DETACHED, RAW) if path in disk.cache.entries}


def content_aside(disk: MemoryDisk, path: str) -> bytes:
    try:
        with Volume.open(path, io=disk, background=False) as volume:
            return volume.pread(volume.size, 0)
    except FormatError:
        return bytes(disk.cache.files[disk.cache.entries[path]])


def move_cases() -> Iterator[Case]:
    """All of them."""
    disk = MemoryDisk()
    some_store(disk)
    with determinism(SEED + 2):
        image = disk.open(RAW, 0o102)
        disk.pwrite(image, b"raw" * 2000, 0)
        disk.truncate(image, 8192)
        disk.close(image)
        start = disk.cache.copy()
        with opened(disk) as store:
            store.detach("b")
    yield StateCase("store:adopt-volume", ASIDE, start, adopt_volume, (INTENT_SUFFIX,))
    yield StateCase("store:attach", ASIDE, disk.cache.copy(), lambda store: store.attach(DETACHED).close())
    yield StateCase("store:prepare-abort", STORES, start, prepared)
    yield StateCase("store:look", STORES, start, Asked(looked))
    yield StateCase("store:open-read-only", NO_WORLD, start, Asked(looked_at_closed))


def adopt_volume(store: Store) -> None:
    """One that failed behind the adoption, before the name was changed, left a volume that stands alone."""
    try:
        store.adopt_volume("c", RAW, raw=True).close()
    except FormatError:
        store.attach(RAW, "c").close()


def prepared(store: Store) -> None:
    with store.prepare_set(["a", "b"], "both") as pending:
        pending.flush()


def looked(store: Store) -> Any:
    """All that it says. What it could not look at is a problem, and that counts as an error here."""
    report = store.check()
    if not report.ok:
        raise StorageError("; ".join(report.problems))
    sets = [(each.name, each.missing, snapshots(each), each.ledger) for each in store.snapshot_sets()]
    documents = [store.get_document("backup", name) for name in store.documents("backup")]
    volumes = {name: content_of(store.open_volume(name).snapshots()[0]) for name in store.volumes()}
    return sets, documents, volumes, store.du()


def snapshots(one: Any) -> dict[str, bytes]:
    return {name: content_of(snapshot) for name, snapshot in one.snapshots.items()}


def looked_at_closed(disk: MemoryDisk) -> Any:
    with Store.open(STORE, read_only=True, io=disk, background=False) as store:
        if store.problems:
            raise StorageError("; ".join(store.problems))
        return store.volumes(), [each.name for each in store.snapshot_sets()], store.documents("backup")
