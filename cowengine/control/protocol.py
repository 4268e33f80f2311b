"""The control protocol on the wire: JSON-RPC 2.0, one JSON text a line. The document is docs/control.md.

Messages and lines only: what a method does and how values are written is elsewhere.

Threads   A `Lines` belongs to one thread at a time; the functions to any.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any, Final

from cowengine.errors import BusyError, ClosedError, CowEngineError, OutOfRangeError

PROTOCOL_VERSIONS: Final = (1,)

LINE_BYTES_MAX: Final = (16 << 20) + (64 << 10)
PIECE_BYTES: Final = 4 << 20
"""Bytes of a volume that one message carries at most."""
READ_BYTES: Final = 1 << 16
LONG_BYTES: Final = 1 << 20

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
SYSTEM_ERROR: Final = -32000

Message = dict[str, Any]


class ProtocolError(CowEngineError):
    """What came is no message of this protocol; `number` is the error code that says how."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


# -- messages ----------------------------------------------------------------------------------------------------------
def request(number: int, method: str, params: Message) -> Message:
    """A call that wants an answer."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def notification(method: str, params: Message) -> Message:
    """What wants no answer."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def response(number: object, result: Any) -> Message:
    """What a call returned."""
    return {"jsonrpc": "2.0", "id": number, "result": result}


def failure(number: object, error: Message) -> Message:
    """How a call failed."""
    return {"jsonrpc": "2.0", "id": number, "error": error}


def encode(message: Message) -> bytes:
    """The line of a message. Raises OutOfRangeError for what JSON cannot hold, or one line cannot."""
    try:
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        try:
            line = text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, as a file name that is no UTF-8 has
            line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise OutOfRangeError(f"this cannot be sent as JSON: {error}") from None
    if len(line) >= LINE_BYTES_MAX:
        raise OutOfRangeError(f"a message has at most {LINE_BYTES_MAX} bytes of JSON, this one {len(line)}")
    return line + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line. Raises ProtocolError."""
    try:
        message = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(PARSE_ERROR, f"the line is no JSON text in UTF-8: {str(error)[:200]}") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise ProtocolError(INVALID_REQUEST, "a message is one JSON-RPC 2.0 object; batches are not taken")
    return message


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# -- lines -------------------------------------------------------------------------------------------------------------
class Lines:
    """The lines that come out of a stream socket, of bounded length."""

    def __init__(self, connection: socket.socket, long_lines: threading.Semaphore | None = None) -> None:
        """`long_lines`: how many longer than LONG_BYTES may be there at once, of all connections that share it."""
        self._long_lines = long_lines
        self._is_long = False
        self._socket = connection
        self._buffer = bytearray()
        self._searched = 0

    def take(self) -> bytes | None:
        """A line that has come already, without its end; None if there is none. Raises ProtocolError if too long."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) >= LINE_BYTES_MAX:
                raise ProtocolError(INVALID_REQUEST, f"a line has at most {LINE_BYTES_MAX} bytes")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    @property
    def begun(self) -> bool:
        """Whether a part of a line has come."""
        return bool(self._buffer)

    @property
    def full(self) -> bool:
        """Whether enough has come to wait with more."""
        return len(self._buffer) >= READ_BYTES

    def release(self) -> None:
        """The line that was taken is done with; the next one may be another connection's."""
        if self._is_long and self._long_lines is not None:
            self._is_long = False
            self._long_lines.release()

    def _keep_room(self, seconds: float | None) -> None:
        if self._long_lines is None or self._is_long or len(self._buffer) < LONG_BYTES:
            return
        if not self._long_lines.acquire(timeout=seconds):
            raise ClosedError("too many long lines come at once")
        self._is_long = True

    def receive(self) -> bool:
        """Takes in what comes next; False at the end of the stream. Raises OSError."""
        data = self._socket.recv(READ_BYTES)
        self._buffer += data
        return bool(data)

    def next(self, *, begin_seconds: float | None = None, end_seconds: float | None = None) -> bytes | None:
        """The next line, waited for; None at the end of the stream.

        Raises ClosedError if it does not begin in `begin_seconds` or, once begun, is not whole in `end_seconds` (no
        limits unless told), ProtocolError if it is too long, OSError.
        """
        deadline = None if begin_seconds is None else time.monotonic() + begin_seconds
        begun = False
        self.release()
        while (line := self.take()) is None:
            if self._buffer and not begun:
                begun, deadline = True, None if end_seconds is None else time.monotonic() + end_seconds
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise ClosedError("nothing whole came in time")
            self._keep_room(left)
            self._socket.settimeout(left)
            try:
                if not self.receive():
                    return None
            except TimeoutError:
                continue
        return line


def require_fields(message: Message) -> tuple[object, str, Message]:
    """(id, method, params) of a request or notification (whose id is None). Raises ProtocolError."""
    number, method, params = message.get("id"), message.get("method"), message.get("params", {})
    if not isinstance(method, str) or isinstance(number, bool) or not isinstance(number, int | str | None):
        raise ProtocolError(INVALID_REQUEST, "a request has a method, and an id that is a number or a string")
    if not isinstance(params, dict):
        raise ProtocolError(INVALID_PARAMS, "parameters are passed by name, as one object")
    return number, method, params


def too_many(what: str) -> BusyError:
    """The error of a limit."""
    return BusyError(f"the store's server has {what} already: close some, or try again later")
