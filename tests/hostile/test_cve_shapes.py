"""Files in the shapes that broke others are refused, in bounded time and memory; and what is not is seen."""

from __future__ import annotations

from pathlib import Path

import cve_shapes
import pytest
from cve_shapes import SHAPES, Shape, VolumeSession, refused
from mutate import original

from cowengine.backup import codec


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_refused(name: str) -> None:
    wrong, errors = refused(name)
    assert wrong is None, f"{wrong} {errors}"


def test_there_are_enough_and_each_is_told_of() -> None:
    assert len(SHAPES) >= 40
    told = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    by_cve: dict[str, list[str]] = {}
    for _, shape in SHAPES.values():
        by_cve.setdefault(shape.like.split(":")[0], []).append(shape.name)
    lines = [f"| {cve} | {', '.join(names)} |" for cve, names in sorted(by_cve.items())]
    assert not [line for line in lines if line not in told], "\n".join(lines)


def test_what_is_taken_or_takes_too_much_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Shape("sound", "nothing", lambda: original("snapshots"))
    monkeypatch.setitem(cve_shapes.SHAPES, "sound", (VolumeSession, sound))
    assert refused("sound")[0] == "it was taken as it is"
    monkeypatch.setattr(codec, "decompress", lambda stored, *_: bytearray(1 << 30))
    monkeypatch.setattr("cowengine.backup.stream_reader.decompress", codec.decompress)
    assert "MemoryError" in str(refused("frame_that_lies")[0])
