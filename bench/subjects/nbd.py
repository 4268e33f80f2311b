"""libnbd in process: a connection to a server on a Unix socket, so that a request costs one round trip on a socket.

Through cffi, which cowengine needs anyway: Debian's Python binding is bound to one version of Python.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import cffi
from subjects.subject import Disk

LIBRARY = "libnbd.so.0"
PACKAGE = "libnbd0"
LARGEST = 2**32 - 65536  # bytes that one question about extents may cover

DECLARATIONS = """
struct nbd_handle;
typedef struct {
    int (*callback)(void *user_data, const char *context, uint64_t offset, uint32_t *entries, size_t count, int *error);
    void *user_data;
    void (*free)(void *user_data);
} nbd_extent_callback;
struct nbd_handle *nbd_create(void);
void nbd_close(struct nbd_handle *handle);
const char *nbd_get_error(void);
int nbd_set_export_name(struct nbd_handle *handle, const char *name);
int nbd_add_meta_context(struct nbd_handle *handle, const char *name);
int nbd_set_pread_initialize(struct nbd_handle *handle, bool request);
int nbd_connect_unix(struct nbd_handle *handle, const char *path);
int64_t nbd_get_size(struct nbd_handle *handle);
int nbd_pread(struct nbd_handle *handle, void *buffer, size_t count, uint64_t offset, uint32_t flags);
int nbd_pwrite(struct nbd_handle *handle, const void *buffer, size_t count, uint64_t offset, uint32_t flags);
int nbd_flush(struct nbd_handle *handle, uint32_t flags);
int nbd_block_status(
    struct nbd_handle *handle, uint64_t count, uint64_t offset, nbd_extent_callback callback, uint32_t flags);
int nbd_shutdown(struct nbd_handle *handle, uint32_t flags);
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)


@cache
def library() -> Any:
    """libnbd; OSError where it is not installed."""
    return ffi.dlopen(LIBRARY)


def lacking() -> list[str]:
    """What is missing for connections, and how to get it."""
    try:
        library()
    except OSError:
        return [f"{LIBRARY} (apt install {PACKAGE})"]
    return []


class Connection:
    """One connection to one export. The GIL is released in every call."""

    def __init__(self, socket: Path, export: str = "", context: str = "") -> None:
        """`context` is the name of the metadata that `extents` will list."""
        self._lib = library()
        self._handle = self._lib.nbd_create()
        try:
            self._check(self._lib.nbd_set_pread_initialize(self._handle, False))
            self._check(self._lib.nbd_set_export_name(self._handle, export.encode()))
            if context:
                self._check(self._lib.nbd_add_meta_context(self._handle, context.encode()))
            self._check(self._lib.nbd_connect_unix(self._handle, str(socket).encode()))
        except BaseException:
            self._lib.nbd_close(self._handle)
            raise

    def pwrite(self, data: bytes, offset: int) -> None:
        self._check(self._lib.nbd_pwrite(self._handle, ffi.from_buffer(data), len(data), offset, 0))

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        self._check(self._lib.nbd_pread(self._handle, ffi.from_buffer(buffer), len(buffer), offset, 0))

    def flush(self) -> None:
        self._check(self._lib.nbd_flush(self._handle, 0))

    def extents(self) -> list[tuple[int, int]]:
        """(length, value) of each extent of the metadata context, from front to back; neighbours may have one value."""
        size = self._lib.nbd_get_size(self._handle)
        result: list[tuple[int, int]] = []
        done = 0

        @ffi.callback("int(void *, const char *, uint64_t, uint32_t *, size_t, int *)")
        def keep(_data: Any, _context: Any, _offset: int, entries: Any, count: int, _error: Any) -> int:
            words = ffi.unpack(entries, count)
            result.extend(zip(words[::2], words[1::2], strict=True))
            return 0

        handler = ffi.new("nbd_extent_callback *", {"callback": keep})
        while done < size:
            known = len(result)
            length = min(size - done, LARGEST)
            self._check(self._lib.nbd_block_status(self._handle, length, done, handler[0], 0))
            done += sum(length for length, _ in result[known:])
        return result

    def close(self) -> None:
        self._lib.nbd_shutdown(self._handle, 0)
        self._lib.nbd_close(self._handle)

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(ffi.string(self._lib.nbd_get_error()).decode())


class View(Disk):
    """A snapshot that is read through a connection."""

    def __init__(self, connection: AbstractContextManager[Connection]) -> None:
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(connection)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        self._connection.pread_into(buffer, offset)

    def close(self) -> None:
        self._stack.close()
