"""qcow2, VHDX and VMDK in and out, by the real qemu-img."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from raw_images import write_image

from cowengine import (
    ExistsError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
    Store,
    Volume,
    convert,
    export_image,
    import_image,
)
from cowengine.cli.main import main
from cowengine.core.iotable import IOTable

MIB = 1 << 20
GIB = 1 << 30
FORMATS = ["qcow2", "vhdx", "vmdk"]
pytestmark = pytest.mark.needs("qemu-img")


def qemu_img(*words: object) -> str:
    return subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [512, 10 * MIB + 512])
def test_both_ways_qemu_img_finds_no_difference(tmp_path: Path, format: str, size: int) -> None:
    raw, image, made = tmp_path / "disk.img", tmp_path / f"disk.{format}", tmp_path / f"made.{format}"
    data = write_image(raw, size)
    qemu_img("convert", "-f", "raw", "-O", format, raw, image)
    with import_image(image, tmp_path / "disk.cow", format=format) as volume:
        assert volume.size == size
        assert volume.pread(size, 0) == data
        assert volume.check().ok
        snapshot = volume.snapshot("before")
        volume.pwrite(b"later", 0)
        export_image(snapshot, made, format=format)
        export_image(volume, tmp_path / "later", format=format)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", format, raw, made)
    assert "identical" in qemu_img("compare", "-f", format, "-F", format, image, made)
    qemu_img("convert", "-f", format, "-O", "raw", tmp_path / "later", tmp_path / "later.img")
    assert (tmp_path / "later.img").read_bytes() == (b"later" + data[5:])[:size]
    assert os.stat(tmp_path / "disk.cow").st_mode & 0o777 == os.stat(made).st_mode & 0o777 == 0o600
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("format", FORMATS)
def test_holes_stay_holes_both_ways(tmp_path: Path, format: str) -> None:
    with Volume.create(tmp_path / "disk.cow", 4 * GIB) as volume:
        for start in (0, 2 * GIB, 4 * GIB - MIB):
            volume.pwrite(b"d" * 70000, start)
        export_image(volume, tmp_path / "image", format=format)
        allocated = volume.allocated_extents().tolist()
    assert os.stat(tmp_path / "image").st_blocks * 512 < 64 * MIB
    with import_image(tmp_path / "image", tmp_path / "again.cow", format=format) as volume:
        assert volume.size == 4 * GIB
        for start, length in allocated:
            assert volume.pread(length, start).rstrip(b"\0") == b"d" * 70000
        assert sum(length for _, length in volume.allocated_extents().tolist()) < MIB
    assert os.stat(tmp_path / "again.cow").st_blocks * 512 < 32 * MIB


def test_into_a_store(tmp_path: Path) -> None:
    data = write_image(tmp_path / "disk.img", MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "disk.img", tmp_path / "disk.qcow2")
    with Store.create(tmp_path / "store") as store:
        volume = import_image(tmp_path / "disk.qcow2", "mail", format="qcow2", store=store)
        assert volume.pread(MIB, 0) == data
        assert store.volumes() == ["mail"]
        with pytest.raises(ExistsError):
            import_image(tmp_path / "disk.qcow2", "mail", format="qcow2", store=store)
        assert store.check().ok
    assert not [name for name in os.listdir(tmp_path / "store") if name.startswith(".")]


def backed(folder: Path) -> str:
    (folder / "secret").write_bytes(b"secret" * 1000)
    qemu_img("create", "-f", "qcow2", "-b", folder / "secret", "-F", "raw", folder / "image")
    return "qcow2"


def data_elsewhere(folder: Path) -> str:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={folder}/data", folder / "image", "1M")
    return "qcow2"


def flat(folder: Path) -> str:
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", folder / "image", "1M")
    return "vmdk"


def garbage(folder: Path) -> str:
    (folder / "image").write_bytes(b"no image" * 1000)
    return "qcow2"


def another_format(folder: Path) -> str:
    qemu_img("create", "-f", "vhdx", folder / "image", "1M")
    return "qcow2"


@pytest.mark.parametrize("make", [backed, data_elsewhere, flat, garbage, another_format])
def test_an_image_that_is_none_or_leads_elsewhere_is_refused(tmp_path: Path, make: Any) -> None:
    format = make(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FormatError, match=r"another file|not in qcow2 format"):
        import_image(tmp_path / "image", tmp_path / "disk.cow", format=format)
    assert sorted(os.listdir(tmp_path)) == before


def test_what_is_wrong_with_the_call_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, path = tmp_path / "disk.qcow2", tmp_path / "disk.cow"
    qemu_img("create", "-f", "qcow2", image, "1M")
    with pytest.raises(OutOfRangeError, match="is ever guessed"):
        import_image(image, path, format="raw")
    with pytest.raises(NotFoundError):
        import_image(tmp_path / "no-image", path, format="qcow2")
    with pytest.raises(NotFoundError):
        import_image(image, tmp_path / "nowhere" / "disk.cow", format="qcow2")
    with pytest.raises(ExistsError):
        import_image(image, image, format="qcow2")
    with Volume.create(path, MIB) as volume:
        volume.pwrite(b"d" * MIB, 0)
        with pytest.raises(ExistsError):
            export_image(volume, image, format="qcow2")
        with pytest.raises(NotFoundError):
            export_image(volume, tmp_path / "nowhere" / "disk.qcow2", format="qcow2")
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
        with pytest.raises(NoSpaceError, match="4096 are free"):
            export_image(volume, tmp_path / "made", format="qcow2")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(NotFoundError, match="qemu-utils"):
            export_image(volume, tmp_path / "made", format="qcow2")
    with pytest.raises(NotFoundError, match="qemu-utils"):
        import_image(image, tmp_path / "made", format="qcow2")
    assert sorted(os.listdir(tmp_path)) == ["disk.cow", "disk.qcow2"]


@pytest.mark.parametrize("says", ["Input/output error", "No space left on device"])
def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    real = subprocess.run(["which", "qemu-img"], check=True, capture_output=True, text=True).stdout.strip()
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "qemu-img").write_text(
        f'#!/bin/sh\n[ "$1" = convert ] || exec {real} "$@"\nfor last; do :; done\necho half > "$last"\n'
        f"echo 'error while writing: {says}' >&2\nexit 1\n"
    )
    (tools / "qemu-img").chmod(0o755)
    qemu_img("create", "-f", "qcow2", tmp_path / "disk.qcow2", "1M")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    error = NoSpaceError if "space" in says else (FormatError, OSError)
    with Volume.create(tmp_path / "disk.cow", MIB) as volume:
        with pytest.raises(error, match=says):
            export_image(volume, tmp_path / "made.qcow2", format="qcow2")
        assert volume.snapshots() == []
    with pytest.raises(error, match=says):
        import_image(tmp_path / "disk.qcow2", tmp_path / "made.cow", format="qcow2")
    assert sorted(os.listdir(tmp_path)) == ["disk.cow", "disk.qcow2", "tools"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object, expect: int = 0) -> Any:
        assert main([*map(str, words), "--json"]) == expect
        out = capsys.readouterr().out
        return json.loads(out) if out else None

    data = write_image(tmp_path / "disk.img", MIB)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", tmp_path / "disk.img", tmp_path / "disk.vmdk")
    run("store", "create", tmp_path / "store")
    place = f"{tmp_path}/store:disk"
    assert run("volume", "import", tmp_path / "disk.vmdk", place, "--format", "vmdk")["size"] == MIB
    run("snapshot", "create", f"{place}@one")
    assert run("volume", "export", f"{place}@one", tmp_path / "one.qcow2", "--format", "qcow2")["snapshot"] == "one"
    assert run("volume", "import", tmp_path / "one.qcow2", tmp_path / "one.cow", "--format", "qcow2")["size"] == MIB
    with Volume.open(tmp_path / "one.cow") as volume:
        assert volume.pread(MIB, 0) == data
    run("volume", "import", tmp_path / "one.qcow2", tmp_path / "two.cow", "--format", "vhdx", expect=4)
    run("volume", "export", place, tmp_path / "one.qcow2", "--format", "qcow2", expect=1)
    run("volume", "export", place, tmp_path / "two", "--format", "raw", expect=2)


class Failing(IOTable):
    """Calls of one name fail."""

    failing = ""

    def _fail(self, name: str) -> None:
        if name == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._fail("open")
        return super().open(path, flags, mode)

    def fdatasync(self, fd: int) -> None:
        self._fail("fdatasync")

    def rename(self, source: str, target: str) -> None:
        self._fail("rename")
        super().rename(source, target)

    def sync_directory(self, path: str) -> None:
        self._fail("sync_directory")


@pytest.mark.parametrize("call", ["open", "fdatasync", "rename", "sync_directory"])
def test_a_disk_that_fails_gives_a_typed_error_and_leaves_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    table = Failing()
    table.failing = call
    monkeypatch.setattr(convert, "KERNEL", table)
    with Volume.create(tmp_path / "v", MIB) as volume:
        with pytest.raises(StorageError, match="Input/output error"):
            export_image(volume, tmp_path / "image", format="qcow2")
        assert os.listdir(tmp_path) == ["v"]
        table.failing = ""
        export_image(volume, tmp_path / "image", format="qcow2")
