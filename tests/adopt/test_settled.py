"""What an adoption, a way back or an open does with an intent file that it finds, whatever that says."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from cowengine import CorruptionError, ExistsError, FormatError, StorageError, UnsupportedVersionError, Volume
from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable
from cowengine.engine.intent import intent_path
from cowengine.format import SLOT_BYTES
from cowengine.format.intent import Intent, encode_intent

RAW = b"the raw image ".ljust(4096, b".") * 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A raw image that has become a volume."""
    (tmp_path / "v").write_bytes(RAW)
    Volume.adopt(tmp_path / "v", background=False).close()
    return tmp_path / "v"


def put_intent(path: Path, data: bytes | None = None, *, volume_uuid: bytes | None = None) -> Path:
    """Lays an intent beside a volume: by default the one of its own adoption."""
    own = volume_uuid or path.read_bytes()[40:56]
    intent = Path(intent_path(str(path)))
    intent.write_bytes(encode_intent(Intent(len(RAW), own, RAW[: 1 << 20])) if data is None else data)
    return intent


def shown(path: Path) -> bytes:
    with Volume.open(path, background=False) as volume:
        return volume.pread(volume.size, 0)


def test_an_adoption_that_had_reached_its_end_is_taken_up_as_a_volume(path: Path) -> None:
    intent = put_intent(path)
    with Volume.adopt(path, background=False) as volume:
        assert volume.pread(len(RAW), 0) == RAW
    assert not intent.exists()


def test_an_adoption_that_had_reached_its_end_is_not_undone(path: Path) -> None:
    intent = put_intent(path)
    with pytest.raises(FormatError, match="the adoption was finished"):
        Volume.undo_adoption(path)
    assert not intent.exists() and shown(path) == RAW


def test_a_damaged_intent_beside_a_volume_is_told_of(path: Path) -> None:
    intent = put_intent(path, put_intent(path).read_bytes()[:-1])
    for call in (Volume.adopt, Volume.undo_adoption):
        with pytest.raises(CorruptionError, match="intent file is incomplete"):
            call(path)
        assert intent.exists()
    assert shown(path) == RAW
    assert not intent.exists()  # an open knows that it says nothing


def test_the_intent_of_another_volume_is_left_alone(path: Path) -> None:
    intent = put_intent(path, volume_uuid=bytes(range(16)))
    for call in (Volume.adopt, Volume.undo_adoption):
        with pytest.raises(FormatError, match="not the one"):
            call(path)
    assert shown(path) == RAW and intent.exists()


def test_what_is_no_intent_is_left_alone(path: Path) -> None:
    intent = put_intent(path, b"somebody's notes")
    with pytest.raises(ExistsError):
        Volume.adopt(path)
    assert shown(path) == RAW
    with Volume.open(path, background=False) as volume, pytest.raises(ExistsError, match="in the way"):
        volume.flatten()
    assert intent.read_bytes() == b"somebody's notes"


def test_a_volume_of_a_newer_format_is_never_put_back(path: Path) -> None:
    intent = put_intent(path)
    data = bytearray(path.read_bytes())
    for slot in (0, SLOT_BYTES):
        data[slot + 16] = 255  # features nobody knows yet
        struct.pack_into("<Q", data, slot + 4088, xxh64(bytes(data[slot : slot + 4088]), 0))
    path.write_bytes(data)
    for call in (Volume.adopt, Volume.undo_adoption, Volume.open):
        with pytest.raises(UnsupportedVersionError):
            call(path)
    assert path.read_bytes() == data and intent.exists()


def test_an_intent_that_never_became_durable_is_no_reason_to_touch_the_image(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(RAW)
    intent = Path(intent_path(str(raw)))
    intent.write_bytes(bytes(8192))
    with Volume.adopt(raw, background=False) as volume:
        assert volume.pread(len(RAW), 0) == RAW
    assert not intent.exists()


class Refusing(IOTable):
    """Its `call` gives EIO."""

    def __init__(self, call: str) -> None:
        self._call = call

    def _maybe(self, call: str) -> None:
        if call == self._call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def rename(self, path: str, target: str) -> None:
        self._maybe("rename")
        super().rename(path, target)

    def unlink(self, path: str) -> None:
        self._maybe("unlink")
        super().unlink(path)


def test_a_volume_whose_name_cannot_be_changed_keeps_its_old_one(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(RAW)
    with pytest.raises(StorageError):
        Volume.adopt(raw, tmp_path / "v", io=Refusing("rename"), background=False)
    assert not (tmp_path / "v").exists() and shown(raw) == RAW


def test_an_undo_that_meets_an_error_of_the_disk_says_so(path: Path) -> None:
    intent = put_intent(path)
    with pytest.raises(StorageError):
        Volume.undo_adoption(path, io=Refusing("unlink"))
    assert intent.exists() and shown(path) == RAW
