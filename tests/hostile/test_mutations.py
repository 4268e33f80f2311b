"""Volume files changed so that every checksum is right again: a typed error, or bytes that stay what they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hostile_image import Image
from hostile_steps import attack, work_folder
from hostile_volumes import VOLUMES, build
from mutate import attack_case, original

from cowengine import Volume

CASES = 12


@pytest.mark.parametrize("name", sorted(VOLUMES))
def test_hostile_files_do_no_harm(name: str) -> None:
    with work_folder() as folder:
        for seed in range(CASES):
            wrong, _ = attack_case(name, seed, folder)
            assert wrong is None, f"python tests/hostile/mutate.py --one {name}:{seed}\n{wrong}"


@pytest.mark.parametrize("name", sorted(VOLUMES))
def test_an_unchanged_volume_meets_every_step(name: str) -> None:
    """Sealing what was not changed changes nothing, a seed gives the same bytes, and nothing is refused."""
    image = Image(original(name))
    image.seal()
    assert image.data == original(name) == build(name)
    with work_folder() as folder:
        wrong, errors = attack(original(name), folder, 1)
    assert wrong is None
    assert not [error for error in errors.values() if error.startswith(("Corruption", "Poisoned", "Format"))]


def test_a_child_that_dies_or_raises_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness finds what it looks for."""
    with work_folder() as folder:
        for action, what in ((lambda: os.kill(os.getpid(), 9), "signal 9"), (lambda: 1 / 0, "ZeroDivisionError")):
            monkeypatch.setattr(Volume, "stats", lambda self, action=action: action())
            assert what in _seen(folder)
        monkeypatch.setattr(Volume, "stats", lambda self: bytearray(1 << 30))
        assert "MemoryError" in _seen(folder)
        monkeypatch.setattr(Volume, "stats", _spin)
        assert "signal 27" in _seen(folder, cpu_seconds=0.2)


def _seen(folder: Path, cpu_seconds: float = 10.0) -> str:
    """What was wrong; again, if the machine had no room for the volume just then."""
    errors: dict[str, str] = {}
    for _ in range(3):
        wrong, errors = attack(original("fresh"), folder, 1, cpu_seconds)
        if wrong:
            return wrong
    pytest.fail(f"nothing was seen, only {errors}")


def _spin(volume: object) -> None:
    while True:
        pass
