"""Crashes of adopting and of flattening in place; and that the explorer would notice a missing step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from adopt_explorer import explore_many

from cowengine.engine import adopt, flatten, intent


def test_every_crash_leaves_the_raw_image_or_the_volume() -> None:
    score = explore_many(histories=2, seed=1)
    print(score)
    assert not score.violations, score.violations[0]
    assert len(score.states) > 500
    assert min(score.volumes, score.images) > 100
    assert score.refused > 2


def without_barrier_behind_the_superblocks(io: Any, fd: int, path: str, found: Any) -> None:
    io.pwrite(fd, found.head, 0)
    io.truncate(fd, found.size)
    io.fdatasync(fd)
    intent.remove_intent(io, path)


def without_its_barrier(io: Any, path: str, found: Any) -> None:
    fd = io.open(intent.intent_path(path), 0o102)
    io.pwrite(fd, intent.encode_intent(found), 0)
    io.close(fd)
    io.sync_directory("/disk")


def without_its_name(io: Any, path: str, found: Any) -> None:
    fd = io.open(intent.intent_path(path), 0o102)
    io.pwrite(fd, intent.encode_intent(found), 0)
    io.fdatasync(fd)
    io.close(fd)


def removed_too_early(io: Any, fd: int, path: str, found: Any) -> None:
    intent.remove_intent(io, path)
    io.pwrite(fd, found.head, 0)
    io.truncate(fd, found.size)
    io.fdatasync(fd)


def named_too_early(engine: Any, root: Any, size: int, target: str, name: Callable[[str], None]) -> None:
    fd = flatten._open_part(engine.io, target + flatten.PART_SUFFIX)
    flatten._copy(engine, root, size, fd)
    name(target + flatten.PART_SUFFIX)
    engine.io.fdatasync(fd)
    engine.io.close(fd)
    engine.io.sync_directory("/disk")


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("put_back", without_barrier_behind_the_superblocks),
        ("write_intent", without_its_barrier),
        ("write_intent", without_its_name),
        ("put_back", removed_too_early),
        ("_write_image", named_too_early),
    ],
)
def test_the_explorer_notices(monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable[..., None]) -> None:
    for module in (adopt, flatten, intent):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, mutant)
    assert explore_many(histories=12, seed=1).violations
