"""The NBD protocol by hand: for what no client that is right would send. Independent of the client of cowengine."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

OPTION_REPLY = struct.Struct(">QIII")


class Wire:
    """A connection on which anything can be said. Waits at most `patience` seconds for an answer."""

    def __init__(self, path: Path | str, *, flags: int | None = 3, patience: float = 20) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        sock.settimeout(patience)
        self._begin(sock, flags)

    @classmethod
    def to(cls, sock: socket.socket) -> Wire:
        """One over a socket that is connected."""
        wire = cls.__new__(cls)
        wire._begin(sock, 3)
        return wire

    def _begin(self, sock: socket.socket, flags: int | None) -> None:
        self.sock = sock
        if flags is not None:
            assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
            self.sock.sendall(struct.pack(">I", flags))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def take(self, count: int) -> bytes:
        """Exactly so many bytes; EOFError if the server ends before."""
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError(f"{len(data)} of {count} bytes")
            data += part
        return data

    def ends(self) -> bool:
        """Whether the server closes the connection, whatever it says before."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def send(self, data: bytes) -> None:
        """As it is."""
        self.sock.sendall(data)

    def option(self, number: int, data: bytes = b"", length: int | None = None) -> None:
        """An option, which may lie about its length."""
        self.send(struct.pack(">QII", 0x49484156454F5054, number, len(data) if length is None else length) + data)

    def reply(self) -> tuple[int, int, bytes]:
        """(option, kind, payload) of the next reply to an option."""
        magic, option, kind, length = OPTION_REPLY.unpack(self.take(20))
        assert magic == 0x3E889045565A9
        return option, kind, self.take(length)

    def ask(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Sends an option; all replies to it, the last of which is an acknowledgement or an error."""
        self.option(number, data)
        found = []
        while True:
            option, kind, payload = self.reply()
            assert option == number
            found.append((kind, payload))
            if kind == 1 or kind & 0x80000000:
                return found

    def go(self, name: str = "", *, structured: bool = False, extended: bool = False) -> tuple[int, int]:
        """To the transmission; (size, flags) of the export."""
        if structured:
            assert self.ask(8) == [(1, b"")]
        if extended:
            assert self.ask(11) == [(1, b"")]
        replies = self.ask(7, text(name) + b"\0\0")
        assert replies[-1] == (1, b""), replies
        infos = [payload for kind, payload in replies if kind == 3 and payload[:2] == b"\0\0"]
        _, size, flags = struct.unpack(">HQH", infos[0])
        return size, flags

    def request(self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7) -> None:
        """The header of a request."""
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length))

    def requests(self, kind: int, count: int, length: int) -> None:
        """So many headers at once, of the front of the export: what a socket holds is counted by calls, too."""
        self.send(b"".join(struct.pack(">IHHQQI", 0x25609513, 0, kind, i, 0, length) for i in range(count)))

    def answer(self) -> tuple[int, int]:
        """(error, cookie) of a simple reply, whose data is not read."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698
        return error, cookie


def text(name: str) -> bytes:
    """A length and so many bytes."""
    return struct.pack(">I", len(name.encode())) + name.encode()
