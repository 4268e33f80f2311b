"""Encodes records of the commit log, and the event of a snapshot: what every commit waits for.

Decides nothing and writes nothing: who calls says what goes in.

On disk   docs/format.md section 6.
Threads   No state.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cowengine.core.checksum cimport ce_xxh64

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *length) except NULL

ctypedef struct header_t:
    char magic[4]
    uint32_t record_bytes
    uint64_t salt
    uint64_t sequence
    uint64_t generation
    uint64_t previous
    uint64_t epoch
    uint64_t time_ns
    uint32_t flags
    uint32_t delta_count
    uint32_t freed_count
    uint32_t freed_node_count
    uint32_t check_count
    uint32_t event_bytes
    uint64_t size
    uint64_t unused[4]
    uint64_t checksum

ctypedef struct snapshot_t:     # an event: its header, and what has a fixed place in it
    uint16_t type
    uint16_t flags
    uint32_t bytes
    uint64_t id
    uint64_t epoch
    uint64_t tag
    uint64_t created_ns
    char set_id[16]
    uint16_t name_bytes
    uint16_t lineage_flags
    uint32_t metadata_bytes

cdef enum:
    DELTA_BYTES = 32
    NAME_BYTES_MAX = 255
    EVENT_SNAPSHOT = 1
    EVENT_BEFORE = 1
    EVENT_HEAD_SHIFT = 8


def pack_record(
    uint64_t fold, uint64_t salt, uint64_t sequence, uint64_t generation, uint64_t previous, uint64_t epoch,
    uint64_t time_ns, uint64_t size, uint32_t flags, bytes deltas not None, freed, freed_nodes, checks,
    bytes events not None, uint64_t unit,
):
    """(bytes of a record, with zeros up to a multiple of `unit`; its checksum).

    Freed runs, freed nodes and checks are pairs of numbers, or packed as in a record.
    """
    cdef bytes raw_freed = packed_pairs(freed), raw_nodes = packed_pairs(freed_nodes)
    cdef bytes raw_checks = packed_pairs(checks), record
    cdef header_t *header
    cdef uint64_t length = (
        sizeof(header_t) + PyBytes_GET_SIZE(deltas) + PyBytes_GET_SIZE(raw_freed) + PyBytes_GET_SIZE(raw_nodes)
        + PyBytes_GET_SIZE(raw_checks) + PyBytes_GET_SIZE(events))
    cdef uint64_t room = (length + unit - 1) // unit * unit
    cdef char *at
    record = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>room)
    header = <header_t *>PyBytes_AS_STRING(record)
    memset(header, 0, sizeof(header_t))
    memcpy(header.magic, b"CWRC", 4)
    header.record_bytes, header.salt, header.sequence, header.generation = <uint32_t>length, salt, sequence, generation
    header.previous, header.epoch, header.time_ns, header.flags, header.size = previous, epoch, time_ns, flags, size
    header.delta_count = <uint32_t>(PyBytes_GET_SIZE(deltas) // DELTA_BYTES)
    header.freed_count = <uint32_t>(PyBytes_GET_SIZE(raw_freed) // 16)
    header.freed_node_count = <uint32_t>(PyBytes_GET_SIZE(raw_nodes) // 16)
    header.check_count = <uint32_t>(PyBytes_GET_SIZE(raw_checks) // 16)
    header.event_bytes = <uint32_t>PyBytes_GET_SIZE(events)
    at = appended(<char *>header + sizeof(header_t), deltas)
    at = appended(at, raw_freed)
    at = appended(at, raw_nodes)
    at = appended(at, raw_checks)
    at = appended(at, events)
    memset(at, 0, room - length)
    header.checksum = ce_xxh64(header, length, fold + sequence)
    return record, header.checksum


cdef inline char *appended(char *at, bytes data):
    memcpy(at, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return at + PyBytes_GET_SIZE(data)


cdef bytes packed_pairs(pairs):
    """Pairs of numbers as they stand in a record."""
    cdef uint64_t first, second
    cdef uint64_t *at
    cdef bytes packed
    if type(pairs) is bytes:
        return pairs
    packed = PyBytes_FromStringAndSize(NULL, 16 * len(pairs))
    at = <uint64_t *>PyBytes_AS_STRING(packed)
    for first, second in pairs:
        at[0], at[1] = first, second
        at += 2
    return packed


def pack_snapshot(
    uint64_t number, uint64_t epoch, uint64_t tag, uint64_t created_ns, str name not None, bytes set_id not None,
    uint16_t flags, bytes metadata not None, bint before, int head,
):
    """The event that a snapshot is taken, header and padding included."""
    cdef Py_ssize_t name_bytes, metadata_bytes = PyBytes_GET_SIZE(metadata)
    cdef const char *raw_name = PyUnicode_AsUTF8AndSize(name, &name_bytes)
    cdef Py_ssize_t length = sizeof(snapshot_t) + name_bytes + metadata_bytes, room = (length + 7) // 8 * 8
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, room)
    cdef snapshot_t *event = <snapshot_t *>PyBytes_AS_STRING(packed)
    if PyBytes_GET_SIZE(set_id) != 16 or not 1 <= name_bytes <= NAME_BYTES_MAX:
        raise ValueError("the id of a set has 16 bytes, a name 1 to 255")
    event.type, event.bytes = EVENT_SNAPSHOT, <uint32_t>room
    event.flags = <uint16_t>((EVENT_BEFORE if before else 0) | head << EVENT_HEAD_SHIFT)
    event.id, event.epoch, event.tag, event.created_ns = number, epoch, tag, created_ns
    memcpy(event.set_id, PyBytes_AS_STRING(set_id), 16)
    event.name_bytes, event.lineage_flags = <uint16_t>name_bytes, flags
    event.metadata_bytes = <uint32_t>metadata_bytes
    memcpy(<char *>event + sizeof(snapshot_t), raw_name, name_bytes)
    memcpy(<char *>event + sizeof(snapshot_t) + name_bytes, PyBytes_AS_STRING(metadata), metadata_bytes)
    memset(<char *>event + length, 0, room - length)
    return packed
