"""The exceptions of cowengine.

CowEngineError                      .code: a stable number, the same in every interface
 +- FormatError                     not a volume, store or backup, or one that breaks its format
 |   +- UnsupportedVersionError     made by a newer cowengine
 +- CorruptionError      (OSError)  EIO: a checksum or an invariant does not hold
 +- OutOfRangeError      (OSError, ValueError)  EINVAL: an argument, offset or length that cannot be
 +- ExistsError          (OSError)  EEXIST
 +- NotFoundError        (OSError)  ENOENT
 |   +- AnchorError                  the snapshot is an anchor: its data was given up
 +- BusyError            (OSError)  EBUSY: owned, held, being read, or a queue is full
 +- NoSpaceError         (OSError)  ENOSPC
 +- ReadOnlyError        (OSError)  EROFS
 +- ClosedError          (OSError, ValueError)  EBADF: closed, or used after fork
 +- PoisonedError        (OSError)  EIO: a sync failed; only a new open tells what is on the disk
 +- FullBackupRequired              no exact list of changes exists for this base
 +- RetentionError       (OSError)  EPERM
 +- StorageError         (OSError)  the system's errno: a read or write of the file failed
 +- WriterError                     a writer failed
 |   +- WriterTimeout               ... by taking too long
 |   +- WriterVeto                  ... by raising
 +- ProviderError                   a provider failed
 +- BackupError                     a backup or restore failed, or its data is damaged
 +- CancelledError                  the job was cancelled
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class CowEngineError(Exception):
    """Base of all errors of cowengine."""

    code: ClassVar[int] = 1


class FormatError(CowEngineError):
    """Not a volume, store or backup, or one whose format is broken. Check the path."""

    code: ClassVar[int] = 2


class UnsupportedVersionError(FormatError):
    """Made by a newer cowengine. Upgrade cowengine."""

    code: ClassVar[int] = 3


class _SystemError(CowEngineError, OSError):
    """An error with an errno: OSError's fields, filled in by the class."""

    default_errno: ClassVar[int] = errno.EIO

    def __init__(self, message: str, filename: str | None = None) -> None:
        # OSError.__new__ would turn (errno, text) into a subclass of its own choice; so set the fields by hand.
        super().__init__(message)
        self.errno = self.default_errno
        self.strerror = message
        if filename is not None:
            self.filename = filename

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.strerror, self.filename), self.__dict__)

    def __str__(self) -> str:
        name = f" [{self.filename}]" if self.filename is not None else ""
        return f"{self.strerror}{name}"


class CorruptionError(_SystemError):
    """A checksum or an invariant does not hold.

    Names, where they are known: the `volume`, the `snapshot`, the byte `offset` in it of the damaged block, and the
    byte `file_offset` in the volume file of the block or of the metadata that is damaged.
    """

    code: ClassVar[int] = 4
    default_errno: ClassVar[int] = errno.EIO

    def __init__(
        self,
        message: str,
        filename: str | None = None,
        *,
        volume: str | None = None,
        snapshot: str | None = None,
        offset: int | None = None,
        file_offset: int | None = None,
    ) -> None:
        super().__init__(message, filename)
        self.volume = volume
        self.snapshot = snapshot
        self.offset = offset
        self.file_offset = file_offset

    def found_in(self, filename: str, snapshot: str | None = None) -> CorruptionError:
        """The same error, which names the volume file, and the snapshot that was read, from now on."""
        if self.filename is None:
            self.filename = self.volume = filename
            self.snapshot = snapshot
            if snapshot is not None:
                self.strerror = f"snapshot {snapshot!r}: {self.strerror}"
        return self


class OutOfRangeError(_SystemError, ValueError):
    """An argument, offset or length that cannot be. Nothing was done."""

    code: ClassVar[int] = 5
    default_errno: ClassVar[int] = errno.EINVAL


class ExistsError(_SystemError):
    """The name is taken. Choose another or remove what is there."""

    code: ClassVar[int] = 6
    default_errno: ClassVar[int] = errno.EEXIST


class NotFoundError(_SystemError):
    """No such volume, snapshot, set or backup."""

    code: ClassVar[int] = 7
    default_errno: ClassVar[int] = errno.ENOENT


class AnchorError(NotFoundError):
    """The snapshot is an anchor: its data was given up. It still serves as a base for changed extents."""

    code: ClassVar[int] = 22


class BusyError(_SystemError):
    """Owned by another process or handle, held, being read, or a queue is full. Try again later."""

    code: ClassVar[int] = 8
    default_errno: ClassVar[int] = errno.EBUSY


class NoSpaceError(_SystemError):
    """The file system is full. Delete snapshots or free space; nothing acknowledged was lost."""

    code: ClassVar[int] = 9
    default_errno: ClassVar[int] = errno.ENOSPC


class ReadOnlyError(_SystemError):
    """Opened read-only."""

    code: ClassVar[int] = 10
    default_errno: ClassVar[int] = errno.EROFS


class PoisonedError(_SystemError):
    """A sync or a commit failed, so what is on the disk is unknown to this handle. Close it and open again."""

    code: ClassVar[int] = 11
    default_errno: ClassVar[int] = errno.EIO


class FullBackupRequired(CowEngineError):
    """No exact list of changes exists for this base. Take a full backup."""

    code: ClassVar[int] = 12


class RetentionError(_SystemError):
    """Protected until a date that has not come."""

    code: ClassVar[int] = 13
    default_errno: ClassVar[int] = errno.EPERM


class WriterError(CowEngineError):
    """A writer failed. `writer` and `phase` name it."""

    code: ClassVar[int] = 14

    def __init__(self, message: str, *, writer: str | None = None, phase: str | None = None) -> None:
        super().__init__(message)
        self.writer = writer
        self.phase = phase

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_writer_error, (type(self), self.args, self.writer, self.phase))


def _rebuild_writer_error(
    kind: type[WriterError], args: tuple[Any, ...], writer: str | None, phase: str | None
) -> WriterError:
    return kind(*args, writer=writer, phase=phase)


class WriterTimeout(WriterError):
    """A writer exceeded its limit and was given up."""

    code: ClassVar[int] = 15


class WriterVeto(WriterError):
    """A writer refused by raising."""

    code: ClassVar[int] = 16


class ProviderError(CowEngineError):
    """A provider failed or refused."""

    code: ClassVar[int] = 17


class BackupError(CowEngineError):
    """A backup, its verification or a restore failed. What was there before is unchanged."""

    code: ClassVar[int] = 18


class ClosedError(_SystemError, ValueError):
    """The handle is closed, or belongs to the parent of a forked process. Open it anew."""

    code: ClassVar[int] = 19
    default_errno: ClassVar[int] = errno.EBADF


class StorageError(_SystemError):
    """The file system failed a read or write; `errno` says how. The volume stays usable unless it is poisoned."""

    code: ClassVar[int] = 21

    def __init__(self, message: str, filename: str | None = None, number: int = errno.EIO) -> None:
        super().__init__(message, filename)
        self.errno = number

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.strerror, self.filename, self.errno), self.__dict__)


class CancelledError(CowEngineError):
    """The job was cancelled; everything it had begun was undone."""

    code: ClassVar[int] = 20
