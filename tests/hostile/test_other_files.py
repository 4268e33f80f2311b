"""Backup streams, stores and intent files, changed and sealed again: a typed error, or data."""

from __future__ import annotations

import io

import pytest
from hostile_others import log_records, parsed, sealed, sealed_log, store_files, stream
from hostile_steps import work_folder
from mutate import OTHERS

from cowengine.backup.verify import verify_stream

CASES = 10


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_hostile_files_of_other_formats_do_no_harm(name: str) -> None:
    with work_folder() as folder:
        for seed in range(CASES):
            wrong, _ = OTHERS[name](seed, folder, 10.0)
            assert wrong is None, f"python tests/hostile/mutate.py --one {name}:{seed}\n{wrong}"


def test_sealing_what_was_not_changed_changes_nothing() -> None:
    assert sealed(parsed(stream())) == stream()
    assert verify_stream(io.BytesIO(stream())).ok
    log = store_files()["store.log"]
    assert len(log_records(log)) >= 4
    assert sealed_log(bytearray(log), log_records(log)) == log
