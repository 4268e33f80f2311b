"""Documents of a store: JSON objects in files of their own, each written whole or not at all.

Freeze ledgers, backup documents and policies live here; the catalogue has copies. What a document says is not looked
at.

Threads     Every method may be called from any thread.
Durability  `put` and `delete` are durable when they return.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

from cowengine.core.iotable import IOTable
from cowengine.engine.files import open_regular
from cowengine.errors import CorruptionError, NotFoundError, OutOfRangeError
from cowengine.oserrors import typed
from cowengine.store.names import UNFINISHED_SUFFIX, document_file, parse_document_file

DOCUMENT_BYTES_MAX: Final = 16 * 1024 * 1024

Document = dict[str, Any]


def encode_document(document: Document) -> bytes:
    """JSON of a document. Raises OutOfRangeError if it is no object, not JSON, or too long."""
    if not isinstance(document, dict):
        raise OutOfRangeError(f"a document is a dict, not {type(document).__name__}")
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise OutOfRangeError(f"a document must be JSON: {error}") from None
    if len(text) > DOCUMENT_BYTES_MAX:
        raise OutOfRangeError(f"a document has at most {DOCUMENT_BYTES_MAX} bytes of JSON, this one {len(text)}")
    return text


def decode_document(text: bytes, file_name: str) -> Document:
    """The document, or CorruptionError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptionError("the document is not JSON", file_name) from None
    if not isinstance(document, dict):
        raise CorruptionError("the document is not a JSON object", file_name)
    return document


class Documents:
    """The documents folder of one store."""

    def __init__(self, io: IOTable, folder: str) -> None:
        self._io = io
        self._folder = folder
        self._lock = threading.Lock()

    def put(self, kind: str, document_id: str, document: Document) -> None:
        """Write a document, or replace it; durable on return. Raises OutOfRangeError, OSError."""
        path = os.path.join(self._folder, document_file(kind, document_id))
        text = encode_document(document)
        unfinished = path + UNFINISHED_SUFFIX
        with self._lock, typed(self._folder):
            self._unlink(unfinished)
            fd = self._io.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                self._io.pwrite(fd, text, 0)
                self._io.fdatasync(fd)
            finally:
                self._io.close(fd)
            self._io.rename(unfinished, path)
            self._io.sync_directory(self._folder)

    def get(self, kind: str, document_id: str) -> Document:
        """The document. Raises NotFoundError, FormatError (no regular file), CorruptionError, OutOfRangeError."""
        name = document_file(kind, document_id)
        try:
            fd = open_regular(self._io, os.path.join(self._folder, name), read_only=True)
        except NotFoundError:
            raise NotFoundError(f"there is no document {kind} {document_id}") from None
        try:
            with typed(self._folder):
                length = self._io.size(fd)
                if length > DOCUMENT_BYTES_MAX:
                    raise CorruptionError(f"the document has more than {DOCUMENT_BYTES_MAX} bytes", name)
                return decode_document(self._io.pread(fd, length, 0), name)
        finally:
            self._io.close(fd)

    def delete(self, kind: str, document_id: str) -> bool:
        """Remove a document; durable on return. False if there was none."""
        with self._lock, typed(self._folder):
            found = self._unlink(os.path.join(self._folder, document_file(kind, document_id)))
            if found:
                self._io.sync_directory(self._folder)
        return found

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(kind, id) of each document, in the order of their file names."""
        for name in self._names():
            parsed = parse_document_file(name)
            if parsed is not None:
                yield parsed

    def remove_unfinished(self) -> None:
        """Remove what a crash left half written."""
        for name in self._names():
            if name.endswith(UNFINISHED_SUFFIX):
                self._unlink(os.path.join(self._folder, name))

    def _names(self) -> list[str]:
        if not self._io.is_folder(self._folder):  # no link is followed
            raise CorruptionError(
                "the store's folder of documents is gone; make an empty one to go on without them", self._folder
            )
        return self._io.names(self._folder)

    def _unlink(self, path: str) -> bool:
        try:
            self._io.unlink(path)
        except FileNotFoundError:
            return False
        return True
