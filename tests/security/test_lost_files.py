"""What happens to the file while it is open: renamed, linked, deleted, replaced, cut, made longer."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cowengine import CowEngineError, NotFoundError, StorageError, Store, Volume
from cowengine.core.iotable import IOTable

SIZE = 1 << 20
BLOCK = 4096


def replace(path: Path) -> None:
    Volume.create(path.with_name("other"), SIZE).close()
    os.replace(path.with_name("other"), path)


LOSSES: dict[str, Callable[[Path], object]] = {
    "deleted": os.unlink,
    "replaced": replace,
    "cut": lambda path: os.truncate(path, 64 << 10),
    "emptied": lambda path: os.truncate(path, 0),
}
COMMITS: dict[str, Callable[[Volume], object]] = {
    "flush": lambda volume: volume.flush(),
    "snapshot": lambda volume: volume.snapshot("new"),
    "rollback": lambda volume: volume.rollback("s"),
    "delete": lambda volume: volume.get_snapshot("s").delete(),
    "resize": lambda volume: volume.resize(2 * SIZE),
    "hold": lambda volume: volume.get_snapshot("s").hold("audit"),
    "clone": lambda volume: volume.get_snapshot("s").clone("c"),
}


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume.create(tmp_path / "v", SIZE, background=False)
    volume.pwrite(b"kept", SIZE - BLOCK)
    volume.snapshot("s")
    volume.pwrite(b"live", 0)
    return volume


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("commit", COMMITS)
def test_nothing_is_acknowledged_that_would_be_gone(tmp_path: Path, volume: Volume, loss: str, commit: str) -> None:
    LOSSES[loss](tmp_path / "v")
    with pytest.raises(StorageError, match="while it was open") as caught:
        COMMITS[commit](volume)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(StorageError, match="while it was open"):
        volume.close()  # the write is not on any file that could be opened again
    assert volume.closed
    volume.close()


@pytest.mark.parametrize("loss", ["deleted", "replaced"])
def test_what_a_lost_file_holds_can_be_read_and_copied(tmp_path: Path, volume: Volume, loss: str) -> None:
    LOSSES[loss](tmp_path / "v")
    with pytest.raises(StorageError, match="export or flatten"):
        volume.flush()
    assert volume.pread(4, 0) == b"live" and volume.get_snapshot("s").pread(4, SIZE - BLOCK) == b"kept"
    volume.get_snapshot("s").flatten(tmp_path / "rescued")
    with pytest.raises(StorageError):
        volume.close()
    assert (tmp_path / "rescued").read_bytes() == bytes(SIZE - BLOCK) + b"kept" + bytes(BLOCK - 4)


def test_a_file_that_was_deleted_when_all_was_committed_is_closed_with_a_word_in_the_log(
    tmp_path: Path, volume: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    volume.flush()
    os.unlink(tmp_path / "v")
    volume.close()
    assert "deleted or replaced while it was open" in caplog.text
    assert os.listdir(tmp_path) == []


def test_what_took_its_name_is_not_touched(tmp_path: Path, volume: Volume) -> None:
    replace(tmp_path / "v")
    before = (tmp_path / "v").read_bytes()
    volume.pwrite(os.urandom(SIZE), 0)
    with pytest.raises(StorageError):
        volume.close()
    assert (tmp_path / "v").read_bytes() == before
    with Volume.open(tmp_path / "v") as other:
        assert other.snapshots() == []


def test_a_file_that_was_cut_gives_errors_and_no_other_bytes(tmp_path: Path, volume: Volume) -> None:
    volume.flush()
    os.truncate(tmp_path / "v", 64 << 10)
    for offset in range(0, SIZE, BLOCK):
        try:
            assert volume.get_snapshot("s").pread(4, offset) == (b"kept" if offset == SIZE - BLOCK else bytes(4))
        except CowEngineError:
            continue
    volume.close()
    with pytest.raises(CowEngineError, match="bytes"):
        Volume.open(tmp_path / "v")


def test_a_file_that_was_cut_to_what_it_was_when_it_was_opened_is_noticed(tmp_path: Path, volume: Volume) -> None:
    volume.close()
    opened_with = (tmp_path / "v").stat().st_size
    with Volume.open(tmp_path / "v", background=False) as grown:
        grown.pwrite(b"b" * SIZE, 0)  # redirected to what the file grows by
        grown.snapshot("grown")
        assert (tmp_path / "v").stat().st_size > opened_with
        os.truncate(tmp_path / "v", opened_with)
        with pytest.raises(StorageError, match="was cut to"):
            grown.snapshot("next")


def test_a_file_that_somebody_made_longer_is_as_it_was(tmp_path: Path, volume: Volume) -> None:
    with open(tmp_path / "v", "ab") as file:
        file.write(b"rubbish" * 100_000)
    volume.pwrite(b"more", BLOCK)
    volume.snapshot("more")
    volume.close()
    with Volume.open(tmp_path / "v") as volume:
        assert volume.pread(4, BLOCK) == b"more" and volume.get_snapshot("s").pread(4, SIZE - BLOCK) == b"kept"
        assert volume.check().ok


@pytest.mark.parametrize("way", ["renamed", "linked", "linked and deleted"])
def test_a_file_that_still_has_a_name_goes_on(tmp_path: Path, volume: Volume, way: str) -> None:
    if way == "renamed":
        os.rename(tmp_path / "v", tmp_path / "w")
    else:
        os.link(tmp_path / "v", tmp_path / "w")
        if way == "linked and deleted":
            os.unlink(tmp_path / "v")
    volume.snapshot("more")
    volume.close()
    with Volume.open(tmp_path / "w") as again:
        assert again.pread(4, 0) == b"live" and again.check().ok
        assert [snapshot.name for snapshot in again.snapshots()] == ["s", "more"]


def test_a_reader_goes_on_with_the_file_that_it_opened(tmp_path: Path, volume: Volume) -> None:
    with Volume.open(tmp_path / "v", read_only=True) as reader:
        held = reader.get_snapshot("s")
        volume.flush()
        replace(tmp_path / "v")
        assert held.pread(4, SIZE - BLOCK) == b"kept"
        with Volume.open(tmp_path / "v", read_only=True) as other:
            assert other.snapshots() == []
    volume.close()


def test_a_volume_of_a_store_that_was_taken_away_is_noticed_and_the_store_goes_on(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        first, second = store.create_volume("a", SIZE), store.create_volume("b", SIZE)
        store.snapshot(["a", "b"], "both")
        os.unlink(store.volume_path("a"))
        first.pwrite(b"lost", 0)
        with pytest.raises(NotFoundError, match="no volume 'a'"):
            store.snapshot(["a", "b"], "never")
        second.pwrite(b"kept", 0)
        store.snapshot(["b"], "alone")
        with pytest.raises(StorageError, match="while it was open"):
            first.close()
    with Store.open(tmp_path / "store") as store:
        assert store.volumes() == ["b"]
        assert store.open_volume("b").get_snapshot("alone").pread(4, 0) == b"kept"
        assert store.get_snapshot_set("both").missing == ["a"]


def test_a_store_whose_folder_was_moved_goes_on_under_its_new_name(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        store.create_volume("a", SIZE).close()
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    with Store.open(tmp_path / "elsewhere") as store:
        store.snapshot(["a"], "set")
        assert store.problems == []


def test_a_file_that_cannot_be_asked_about_is_an_error_and_no_loss(tmp_path: Path) -> None:
    class Silent(IOTable):
        silent = False

        def stands(self, fd: int) -> tuple[int, int]:
            if self.silent:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().stands(fd)

    table = Silent()
    with Volume.create(tmp_path / "v", SIZE, io=table, background=False) as volume:
        volume.pwrite(b"kept", 0)
        table.silent = True
        with pytest.raises(StorageError):
            volume.flush()
        table.silent = False
        volume.flush()
        assert volume.pread(4, 0) == b"kept"
