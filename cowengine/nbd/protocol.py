"""The numbers of the NBD protocol that this server and client use: docs/nbd.md as code. A test compares the two.

All of them go over the wire with the most significant byte first.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

# -- handshake --------------------------------------------------------------------------------------------------------
MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9

GREETING = Struct(">QQH")  # MAGIC, OPTION_MAGIC, HandshakeFlag
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # OPTION_MAGIC, Option, bytes of data
OPTION_REPLY = Struct(">QIII")  # OPTION_REPLY_MAGIC, Option, Reply, bytes of data
U16 = Struct(">H")
U32 = Struct(">I")
INFO_EXPORT = Struct(">HQH")  # Info.EXPORT, size, TransmissionFlag
INFO_BLOCK_SIZE = Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum
EXPORT_NAME_REPLY = Struct(">QH")  # size, TransmissionFlag
ZEROES_BYTES = 124  # behind EXPORT_NAME_REPLY, unless NO_ZEROES


class HandshakeFlag(IntFlag):
    """What either side can do, said before the options."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """What a client asks for before the transmission."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """How an option was answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009
    ERR_EXT_HEADER_REQD = 0x8000000A


class Info(IntEnum):
    """What is said of an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What can be done with an export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


# -- transmission -----------------------------------------------------------------------------------------------------
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

REQUEST = Struct(">IHHQQI")  # magic, CommandFlag, Command, cookie, offset, length
EXTENDED_REQUEST = Struct(">IHHQQQ")
SIMPLE_REPLY = Struct(">IIQ")  # magic, Errno, cookie
STRUCTURED_REPLY = Struct(">IHHQI")  # magic, ChunkFlag, Chunk, cookie, length of the payload
EXTENDED_REPLY = Struct(">IHHQQQ")  # the same, with the offset of the request before the length


class Command(IntEnum):
    """What a client asks for during the transmission."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """How it is to be done."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class ChunkFlag(IntFlag):
    """Of a structured or extended reply."""

    DONE = 1 << 0


class Chunk(IntEnum):
    """What a structured or extended reply holds."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


class Errno(IntEnum):
    """The errors of the protocol; their numbers are not the system's."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class Replies(IntEnum):
    """Which form of replies client and server agreed on."""

    SIMPLE = 0
    STRUCTURED = 1
    EXTENDED = 2


# -- contexts ---------------------------------------------------------------------------------------------------------
ALLOCATION = "base:allocation"
DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"  # and the name of a snapshot

STATE_HOLE = 1
STATE_ZERO = 2
STATE_DIRTY = 1

# -- limits -----------------------------------------------------------------------------------------------------------
REQUEST_BYTES_MAX = 32 << 20  # of a read or write
NAME_BYTES_MAX = 4096  # of an export, a description or a context
OPTION_BYTES_MAX = 64 << 10  # of the data of an option
SKIPPED_BYTES_MAX = 1 << 20  # of the data of an option that is refused and passed over
OPTIONS_MAX = 128  # of one connection
QUERIES_MAX = 64  # of one option
CONTEXTS_MAX = 32  # selected by one connection
LISTED_MAX = 10_000  # exports or contexts that a list has
DESCRIPTORS_MAX = 8192  # of one context in one reply
REPLY_DESCRIPTORS_MAX = 32768  # of all contexts in one reply
