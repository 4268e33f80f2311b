"""Where a PostgreSQL cluster writes, and which of the given mounts each of these places lies on.

A crash-consistent set is a valid copy of a cluster only if it holds, at one instant, everything that the server writes:
the data directory, the WAL, each tablespace, and whatever somebody has moved elsewhere behind a symbolic link.

Threads: stateless; each question looks anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cowengine.errors import NotFoundError, StorageError, WriterError
from cowengine.mounts import Mount, MountTable
from cowengine.writers.postgresql_server import Cluster


class Place(NamedTuple):
    """A folder of the cluster: what it is, where it really lies, and the volume (None: of none that was given)."""

    role: str
    path: str
    volume: str | None
    mount: Mount

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the volume, and the path inside of its file system."""
        return {"volume": self.volume, "path": os.path.relpath(self.path, self.mount.point)}


def places_of(cluster: Cluster, mounts: Mapping[str, str | None]) -> list[Place]:
    """All folders of the cluster that lie on a mount of their own or behind a link; the data directory first.

    `mounts`: where each volume is mounted; None for the file system that the data directory lies on. Raises WriterError
    if the data directory is not here or is not that of this server, NotFoundError, StorageError.
    """
    table = MountTable()
    data = os.path.realpath(cluster.data_directory)
    _check_identity(cluster, data)
    home = table.of_path(data)
    volumes: dict[str, str] = {}
    for volume, point in mounts.items():
        mount = home if point is None else _mount_at(table, volume, point)
        volumes[mount.device] = volume
    found = [Place("data directory", data, volumes.get(home.device), home)]
    for role, path in _folders(cluster, data):
        real = os.path.realpath(path)
        mount = table.of_path(real)
        if mount.device != home.device or not real.startswith(data + os.sep):
            found.append(Place(role, real, volumes.get(mount.device), mount))
    return found


def _mount_at(table: MountTable, volume: str, point: str) -> Mount:
    mount = table.of_path(point)
    if os.path.realpath(point) != mount.point:
        raise WriterError(f"nothing is mounted at {point}, where volume {volume!r} should be")
    return mount


def _check_identity(cluster: Cluster, data: str) -> None:
    """The folder is that of the server that was asked: a server may run in a container, or on another machine."""
    control = os.path.join(data, "global", "pg_control")
    try:
        with open(control, "rb") as file:
            identifier = int.from_bytes(file.read(8), "little")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("the server's data directory is not on this machine", data) from None
    except OSError as error:
        hint = "run as root, or as the user of the server"
        raise StorageError(f"cannot be read ({error.strerror}); {hint}", control, error.errno or 0) from error
    if identifier != cluster.system_identifier:
        raise WriterError(f"{data} belongs to another server than the one that was asked")


def _folders(cluster: Cluster, data: str) -> Iterator[tuple[str, str]]:
    for name, location in cluster.tablespaces.items():
        yield f"tablespace {name}", os.path.join(data, location)
    logs = os.path.realpath(os.path.join(data, cluster.settings["log_directory"]))
    for folder in (data, os.path.join(data, "base")):
        for name in _names(folder):
            path = os.path.join(folder, name)
            # The server's log and its statistics of the moment are no part of the cluster.
            if os.path.isdir(path) and name not in ("lost+found", "pg_stat_tmp") and os.path.realpath(path) != logs:
                yield ("WAL" if name in ("pg_wal", "pg_xlog") else os.path.relpath(path, data)), path


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise StorageError(f"cannot be listed: {error.strerror}", folder, error.errno or 0) from error
