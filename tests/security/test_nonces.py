"""Ids and salts come from the kernel: no fork, no seed and no copy of a file brings one back."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_child import told_in_child

from cowengine import Store, Volume
from cowengine.backup import write_backup
from cowengine.core.iotable import KERNEL
from cowengine.engine.recovery import choose_superblock

SIZE = 1 << 20
ROUNDS = 8


def superblock_ids(path: Path) -> tuple[str, int]:
    """(uuid, salt) in a closed file's superblock."""
    fd = os.open(path, os.O_RDONLY)
    try:
        superblock, _, _ = choose_superblock(KERNEL, fd, str(path))
    finally:
        os.close(fd)
    return superblock.volume_uuid.hex(), superblock.salt


def new_volume(folder: Path) -> list[object]:
    with Volume.create(folder / "v", SIZE) as volume:
        identity = volume.id
    return [identity, superblock_ids(folder / "v")[1]]


def new_store(folder: Path) -> list[object]:
    with Store.create(folder / "store") as store:
        store.create_volume("v", SIZE).close()
        return [store.id, store.log.header.salt, store.snapshot(["v"], "set").id]


def new_backup(folder: Path) -> list[object]:
    with Volume.create(folder / "v", SIZE) as volume:
        return [write_backup(folder / "target", {"v": volume.snapshot("s")}, kind="full").id]


MAKERS: dict[str, Callable[[Path], list[object]]] = {"volume": new_volume, "store": new_store, "backup": new_backup}


@pytest.mark.parametrize("maker", MAKERS)
def test_children_of_one_process_never_make_the_same(tmp_path: Path, maker: str) -> None:
    """Each begins with the same memory, and with the same state of Python's own generator."""
    random.seed(7)

    def work(folder: Path) -> None:
        random.seed(7)
        (folder / "told").write_text(json.dumps(MAKERS[maker](folder)))

    seen: list[object] = []
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert told_in_child(lambda folder=folder: work(folder)) == "nothing"
        seen += json.loads((folder / "told").read_text())
    assert len(set(map(str, seen))) == len(seen)


def test_a_salt_lives_for_one_opening_and_copies_get_others(tmp_path: Path) -> None:
    """A file that a crash or a copy took back goes on with other salts: no record of the old time fits the new one."""
    Volume.create(tmp_path / "v", SIZE).close()
    salts = [superblock_ids(tmp_path / "v")[1]]
    shutil.copy(tmp_path / "v", tmp_path / "as it was")
    for number in range(ROUNDS):
        shutil.copy(tmp_path / "as it was", tmp_path / f"copy {number}")
        Volume.open(tmp_path / f"copy {number}").close()
        Volume.open(tmp_path / "v").close()
        salts += [superblock_ids(tmp_path / f"copy {number}")[1], superblock_ids(tmp_path / "v")[1]]
    assert len(set(salts)) == len(salts)


def test_records_of_another_time_are_not_replayed(tmp_path: Path) -> None:
    """Two openings of one file, both killed: the log of the one, laid over the other, brings nothing in."""
    path, twin = tmp_path / "v", tmp_path / "twin"
    Volume.create(path, SIZE).close()
    shutil.copy(path, twin)
    images = []
    for file, name in ((path, "mine"), (twin, "theirs")):
        with Volume.open(file, background=False) as volume:
            volume.snapshot("both")
            volume.snapshot(name)
            images.append(bytearray(file.read_bytes()))
    mine, theirs = images
    log = slice(2 * 4096, 2 * 4096 + (256 << 10))
    mixed = bytearray(mine)
    mixed[log] = theirs[log]
    (tmp_path / "mixed").write_bytes(mixed)
    told = told_in_child(lambda: Volume.open(tmp_path / "mixed", background=False).get_snapshot("theirs"))
    assert told.startswith(("NotFoundError", "CorruptionError")), told
