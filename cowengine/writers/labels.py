"""Puts the labels of a PostgreSQL backup into a restored data directory, where recovery looks for them.

Threads: stateless. Durable: what was written, when it returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cowengine.core.iotable import KERNEL
from cowengine.errors import ExistsError, FormatError, NotFoundError, OutOfRangeError
from cowengine.names import check_path
from cowengine.oserrors import typed

_UNFINISHED = ".cowengine-unfinished"
_LABELS = ("backup_label", "tablespace_map")


def write_labels(folder: str | os.PathLike[str], metadata: Mapping[str, Any]) -> list[str]:
    """Write `backup_label` and `tablespace_map` byte for byte into a data directory that no server runs on yet.

    `metadata`: what the writer noted, from `set_.ledger["writer_notes"][NAME]` or from the backup's documents. Returns
    the names of the files written: none for a set in the mode "atomic", which needs none.

    Raises FormatError if the metadata is not of a PostgreSQLWriter or its backup was not ended, OutOfRangeError if the
    folder belongs to another cluster, NotFoundError if it is no data directory, ExistsError if other labels are there.
    """
    data = check_path(folder)
    if metadata.get("mode") == "atomic":
        return []
    texts = {name: metadata.get(name) for name in _LABELS}
    if metadata.get("mode") != "backup" or not all(isinstance(text, str) for text in texts.values()):
        raise FormatError("this is not what a PostgreSQLWriter notes of a backup that it has ended")
    owner = _check_cluster(data, str(metadata.get("system_identifier")))
    wanted = {name: str(text).encode() for name, text in texts.items() if text}
    for name, text in wanted.items():
        _check_free(os.path.join(data, name), text)
    with typed(data):
        for name, text in wanted.items():
            _write(os.path.join(data, name), text, owner)
        KERNEL.sync_directory(data)
    return list(wanted)


def _check_cluster(data: str, identifier: str) -> os.stat_result:
    """Who owns the cluster's files."""
    control = os.path.join(data, "global", "pg_control")
    try:
        with typed(control), open(control, "rb") as file:
            found = int.from_bytes(file.read(8), "little")
            owner = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("this is no PostgreSQL data directory", data) from None
    if str(found) != identifier:
        raise OutOfRangeError(f"the labels are of cluster {identifier}, and this is cluster {found}", data)
    return owner


def _check_free(path: str, text: bytes) -> None:
    try:
        with typed(path), open(path, "rb") as file:
            found = file.read(len(text) + 1)
    except FileNotFoundError:
        return
    if found != text:
        raise ExistsError("another backup's label is there already", path)


def _write(path: str, text: bytes, owner: os.stat_result) -> None:
    fd = KERNEL.open(path + _UNFINISHED, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
    try:
        KERNEL.pwrite(fd, text, 0)
        if os.geteuid() == 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        KERNEL.fdatasync(fd)
    finally:
        KERNEL.close(fd)
    KERNEL.rename(path + _UNFINISHED, path)
