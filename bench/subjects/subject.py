"""What is measured: one interface for cowengine, the raw file and every peer, so that each row is written once.

A *subject* is a way to store a disk; a *disk* is one that is open. What a subject does not offer raises NotOffered, and
the table shows a dash and the reason. docs: bench/README.md, "How to add a peer".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotOffered(Exception):
    """The subject has no such operation; the text says why."""


class Disk(ABC):
    """One open disk of a fixed size, read as zeros where it was not written. Calls come from one thread at a time."""

    def pwrite(self, data: bytes, offset: int) -> object:
        """Writes all of `data`; durable only after `flush` or `snapshot`."""
        raise NotOffered("it is read-only")

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> object:
        """Fills the buffer."""
        raise NotOffered("it cannot be read")

    def flush(self) -> None:
        """All that was written is durable on return: it survives a loss of power. The same promise for all subjects."""
        raise NotOffered("it has no flush")

    def snapshot(self, name: str) -> None:
        """Takes a snapshot; it and all that was written are durable on return."""
        raise NotOffered("it has no snapshots")

    def open_snapshot(self, name: str) -> Disk:
        """A snapshot to read from: only `pread_into` and `close`, which closes the view and leaves the snapshot."""
        raise NotOffered("its snapshots cannot be read")

    def delete(self, name: str) -> None:
        """The snapshot is gone, durably, on return."""
        raise NotOffered("its snapshots cannot be deleted")

    def changed(self, base: str, target: str) -> int:
        """Lists what differs between two snapshots; the number of extents."""
        raise NotOffered("it cannot list what changed")

    @abstractmethod
    def close(self) -> None:
        """Closes the disk and removes what it and its snapshots stored: it is not opened again."""


class Subject(ABC):
    """A way to store disks."""

    name: str
    """As in the table."""

    settings: str
    """One line: version, cluster size, how it is driven, what its flush is."""

    starts_at_once: bool = True
    """Whether `running` takes a second at most; else it takes no part in --benchmark-disable."""

    def why_missing(self) -> str:
        """Empty, or what this machine lacks and how to get it; the subject is never started then."""
        return ""

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Daemons and mounts, once a session; cleans up whatever happens. `folder` is the subject's own and empty."""
        yield

    @abstractmethod
    def create(self, folder: Path, name: str, size: int) -> Disk:
        """A new disk of `size` bytes; `name` is unique in the session. Its files lie in `folder`, or on a mount of its
        own; they are gone after `Disk.close`.
        """
