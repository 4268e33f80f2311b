"""The verbs of images of other formats, as a script would use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raw_images import write_image

from cowengine import Volume
from cowengine.cli.main import main

MIB = 1 << 20


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must end with `expect`; returns its document."""

    def command(*words: object, expect: int = 0) -> Any:
        code = main([*(str(word) for word in words), "--json"])
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return json.loads(captured.out) if code == 0 else captured.err

    return command


def test_adopt_and_flatten(run: Any, tmp_path: Path) -> None:
    image, copy = tmp_path / "disk.img", tmp_path / "copy.img"
    data = write_image(image, MIB)
    assert run("volume", "adopt", image)["size"] == MIB
    run("snapshot", "create", f"{image}@one")
    with Volume.open(image) as volume:
        volume.pwrite(b"later", 0)
    assert run("volume", "flatten", f"{image}@one", copy)["size"] == MIB
    assert copy.read_bytes() == data
    run("volume", "flatten", image, expect=2)
    run("volume", "flatten", image, copy, "--in-place", expect=2)
    run("volume", "flatten", image, copy, expect=1)
    assert "1 snapshots" in run("volume", "flatten", image, "--in-place", expect=5)
    run("snapshot", "delete", f"{image}@one")
    run("volume", "adopt", copy, tmp_path / "disk.cow")
    run("volume", "flatten", tmp_path / "disk.cow", "--in-place")
    assert (tmp_path / "disk.cow").read_bytes() == data


def test_adopt_into_a_store_and_what_it_refuses(run: Any, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    data = bytearray(write_image(image, MIB))
    data[:4] = b"QFI\xfb"
    image.write_bytes(data)
    run("store", "create", tmp_path / "store")
    place = f"{tmp_path}/store:disk"
    assert "--yes-it-is-raw" in run("volume", "adopt", image, place, expect=4)
    run("volume", "adopt", image, "--undo", expect=1)
    assert run("volume", "adopt", image, place, "--yes-it-is-raw")["size"] == MIB
    run("volume", "flatten", place, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == data
