"""The table of exit codes is what the code does and what the document says."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path

import pytest

from cowengine import errors
from cowengine.cli import exits

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.CowEngineError)]
EXPECTED = {
    "CowEngineError": 1,
    "FormatError": 4,
    "UnsupportedVersionError": 1,
    "CorruptionError": 4,
    "OutOfRangeError": 2,
    "ExistsError": 1,
    "NotFoundError": 1,
    "BusyError": 5,
    "NoSpaceError": 6,
    "ReadOnlyError": 1,
    "PoisonedError": 1,
    "FullBackupRequired": 3,
    "RetentionError": 5,
    "WriterError": 7,
    "WriterTimeout": 7,
    "WriterVeto": 7,
    "ProviderError": 1,
    "BackupError": 1,
    "ClosedError": 1,
    "CancelledError": 130,
    "StorageError": 1,
    "AnchorError": 1,
}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if not kind.__name__.startswith("_")])
def test_every_error_class_has_the_published_exit_code(kind):
    assert exits.exit_code(kind("message")) == EXPECTED[kind.__name__]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "full"), 6),
        (errors.StorageError("full", None, errno.ENOSPC), 6),
        (OSError(errno.EDQUOT, "quota"), 6),
        (OSError(errno.EBUSY, "busy"), 5),
        (BlockingIOError(errno.EAGAIN, "locked"), 5),
        (PermissionError(errno.EACCES, "no"), 1),
        (OSError("no errno"), 1),
        (RuntimeError("a bug"), 1),
    ],
    ids=repr,
)
def test_system_errors_have_the_published_exit_code(error, code):
    assert exits.exit_code(error) == code


def test_the_document_has_the_same_table():
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for code, meaning, causes in exits.table():
        assert f"| {code} | {meaning} | {causes} |" in document


def test_help_prints_the_table(run):
    text = run("help", "exit-codes").out
    rows = run("help", "exit-codes", "--json").document["exit_codes"]
    assert [row["exit_code"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 7, 130]
    assert all(row["meaning"] in text and row["errors"] in text for row in rows)
