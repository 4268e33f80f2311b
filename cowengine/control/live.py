"""The bytes of a live volume that another process serves: over its NBD socket, or in messages where that cannot be.

A read or write that the NBD server refuses, or cannot answer any more, is done once more in messages, which name what
is wrong as the volume itself does. It is waited for as long as it takes, as with a disk: one that was given up and done
once more could still be carried out later, over what was written since.

Threads   Any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cowengine.control.encoding import decode_bytes, encode_bytes
from cowengine.control.protocol import PIECE_BYTES
from cowengine.errors import CowEngineError

if TYPE_CHECKING:
    from cowengine.nbd.client import Client as NbdClient

T = TypeVar("T")

HANDSHAKE_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 1.0
OFFSET_MAX: Final = 1 << 48


class LiveBytes:
    """Reads and writes of one volume."""

    def __init__(self, call: Callable[..., Any], nbd_path: str | None, export: str, *, read_only: bool) -> None:
        """`call`: calls a method about the volume. `nbd_path`: where it is exported, if anywhere, as `export`."""
        self._read_only = read_only
        self._call = call
        self._path = nbd_path
        self._export = export
        self._lock = threading.Lock()
        self._client: NbdClient | None = None
        self._not_before = 0.0

    def read(self, view: memoryview, offset: int) -> None:
        """Fills a buffer. Raises as `Volume.pread`."""
        if not self._over_nbd(lambda nbd: nbd.pread_into(view, offset), offset):
            for at in range(0, len(view), PIECE_BYTES):
                piece = view[at : at + PIECE_BYTES]
                piece[:] = decode_bytes(self._call("volume.pread", length=len(piece), offset=offset + at))

    def write(self, view: memoryview, offset: int) -> None:
        """Writes a buffer. Raises as `Volume.pwrite`."""
        if self._read_only or not self._over_nbd(lambda nbd: nbd.pwrite(view, offset), offset):
            for at in range(0, max(1, len(view)), PIECE_BYTES):
                self._call("volume.pwrite", data=encode_bytes(view[at : at + PIECE_BYTES]), offset=offset + at)

    def _over_nbd(self, work: Callable[[NbdClient], object], offset: int) -> bool:
        """Whether it was done; if not, it is to be done in messages."""
        if self._path is None or not 0 <= offset < OFFSET_MAX:
            return False
        try:
            client = self._connected()
            if client is None:
                return False
            work(client)
        except CowEngineError:  # a volume that was resized, a server that has enough clients, or what is told at once
            self.close()
            self._not_before = time.monotonic() + AGAIN_SECONDS
            return False
        return True

    def _connected(self) -> NbdClient | None:
        with self._lock:
            if self._client is None and time.monotonic() >= self._not_before and self._path is not None:
                from cowengine.nbd.client import Client as NbdClient

                self._client = NbdClient(self._path, self._export, handshake_seconds=HANDSHAKE_SECONDS)
            return self._client

    def close(self) -> None:
        """Ends the connection. When it returns the server counts this client no more. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
