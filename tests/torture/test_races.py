"""What the sanitizers' row finds where it is planted: a race, and a read beyond a buffer.

The races need kernels that were built for it, `make build/tsan-site`, as `make test` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sanitized
import sanitizers

import cowengine

RunHarness = Callable[..., dict[str, Any]]
SCRIPT = "tests/torture/races.py"
OVERFLOW = """
import ctypes

def test_reads_a_byte_too_many():
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    ctypes.string_at(malloc(8), 9)

def test_goes_well():
    pass
"""


def test_reads_under_two_mutexes_are_found(run_harness: RunHarness) -> None:
    row = run_harness(SCRIPT, "--seconds", "60", "--planted")  # it ends with the first that it finds
    assert row["violations"], row["said"]
    assert "data race" in row["said"]
    assert "BlockMap_find" in row["said"]


def test_kernels_keep_to_their_mutex(run_harness: RunHarness) -> None:
    row = run_harness(SCRIPT, "--seconds", "3", "--seed", "7")
    assert row["violations"] == 0, row["said"]
    assert row["count"]


@pytest.mark.needs("gcc")
def test_a_test_that_reads_beyond_a_buffer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "test_planted.py").write_text(OVERFLOW)
    monkeypatch.setattr(sanitized, "TESTS", tmp_path)
    monkeypatch.setattr(sanitized, "ASAN_SITE", Path(cowengine.__file__).parents[1])  # the interpreter reads, no kernel
    tally = sanitized.work(60, 1)
    assert "heap-buffer-overflow" in "\n".join(tally.violations)


def test_what_cannot_run_with_sanitizers_is_there() -> None:
    for name in sanitized.UNFIT:
        path, _, function = name.partition("::")
        assert (sanitized.TESTS / path).exists(), name
        assert not function or f"def {function.partition('[')[0]}(" in (sanitized.TESTS / path).read_text(), name


def test_a_report_is_told_once_for_each_pair_of_places_and_only_if_it_is_ours(tmp_path: Path) -> None:
    race = "WARNING: ThreadSanitizer: data race (pid=1)\n  Write:\n    #0 memcpy x (libtsan.so)\n    #1 {} at.c\n"
    reports = [race.format(name) for name in ("__pyx_f_9cowengine_a", "__pyx_f_9cowengine_a", "ce_seal", "PyList_New")]
    (tmp_path / "report.1").write_text(sanitizers.CUT.join(["", *reports]))
    assert set(sanitizers.races_in([tmp_path / "report.1"])) == {"__pyx_f_9cowengine_a", "ce_seal"}
