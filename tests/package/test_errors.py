"""The error classes: their codes never change, and each says what it is."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle

import pytest

import cowengine
from cowengine import errors

# Other programs store these numbers: add, never change or reuse.
CODES = {
    "CowEngineError": (1, None),
    "FormatError": (2, None),
    "UnsupportedVersionError": (3, None),
    "CorruptionError": (4, errno.EIO),
    "OutOfRangeError": (5, errno.EINVAL),
    "ExistsError": (6, errno.EEXIST),
    "NotFoundError": (7, errno.ENOENT),
    "BusyError": (8, errno.EBUSY),
    "NoSpaceError": (9, errno.ENOSPC),
    "ReadOnlyError": (10, errno.EROFS),
    "PoisonedError": (11, errno.EIO),
    "FullBackupRequired": (12, None),
    "RetentionError": (13, errno.EPERM),
    "WriterError": (14, None),
    "WriterTimeout": (15, None),
    "WriterVeto": (16, None),
    "ProviderError": (17, None),
    "BackupError": (18, None),
    "ClosedError": (19, errno.EBADF),
    "CancelledError": (20, None),
    "StorageError": (21, errno.EIO),
    "AnchorError": (22, errno.ENOENT),
}


def test_the_table_lists_every_public_error() -> None:
    public = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.CowEngineError) and not name.startswith("_")
    }
    assert public == set(CODES)
    assert public <= set(cowengine.__all__)


@pytest.mark.parametrize("name", CODES)
def test_the_error_keeps_its_code_its_errno_and_its_place_in_the_tree(name: str) -> None:
    kind = getattr(errors, name)
    code, number = CODES[name]
    assert kind.code == code and "code" in vars(kind)
    error = kind("what is wrong")
    assert str(error) == "what is wrong"
    assert isinstance(error, OSError) is (number is not None)
    assert getattr(error, "errno", None) == number
    assert inspect.getdoc(kind) and f"{name} " in (errors.__doc__ or "")


def test_no_two_errors_share_a_code() -> None:
    assert len({code for code, _ in CODES.values()}) == len(CODES)


@pytest.mark.parametrize("transport", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("name", CODES)
def test_the_error_survives_the_way_between_processes(name: str, transport: object) -> None:
    """Isolated writers run in processes of their own, and their errors come back as what they were."""
    kind = getattr(errors, name)
    arguments = ("text", "volume.cow") if issubclass(kind, OSError) else ("text",)
    sent = kind(*arguments)
    received = transport(sent)  # type: ignore[operator]
    assert type(received) is kind
    assert str(received) == str(sent)
    assert getattr(received, "errno", None) == getattr(sent, "errno", None)


def test_a_storage_error_keeps_the_errno_of_the_system() -> None:
    received = pickle.loads(pickle.dumps(errors.StorageError("a read failed", "v.cow", errno.ENXIO)))
    assert (received.errno, received.filename) == (errno.ENXIO, "v.cow")


def test_a_corruption_error_says_where_it_is() -> None:
    error = errors.CorruptionError("checksum", "v.cow", volume="v", snapshot="s", offset=4096)
    received = pickle.loads(pickle.dumps(error))
    assert (received.volume, received.snapshot, received.offset) == ("v", "s", 4096)
    assert received.filename == "v.cow"
