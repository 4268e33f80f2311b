"""Keys of the index of names: hashes of names and numbers, made whenever a snapshot is looked for or taken.

A key is the hash of a kind and a stem, with what follows the stem in its highest byte, so that neighbours lie together.

On disk   docs/format.md section 4.
Threads   No state.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcpy

from cowengine.core.checksum cimport ce_xxh64

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *length) except NULL
    bint PyUnicode_IS_ASCII(object text)

cdef enum:
    NAME_BYTES_MAX = 255

cdef uint64_t STEM_MASK = (<uint64_t>1 << 56) - 1


cdef inline uint64_t key_of(uint64_t hashed, uint64_t tail) noexcept nogil:
    cdef uint64_t key = hashed & STEM_MASK | tail << 56
    return key if key != 0 else 1


def is_plain_name(name):
    """Whether it is a str that can be a name, in ASCII."""
    cdef Py_ssize_t length
    cdef const char *raw
    if type(name) is not str or not PyUnicode_IS_ASCII(name):
        return False
    raw = PyUnicode_AsUTF8AndSize(name, &length)
    return 1 <= length <= NAME_BYTES_MAX and memchr(raw, b"/", length) == NULL and memchr(raw, 0, length) == NULL


def text_key(uint64_t fold, unsigned char kind, str text not None):
    """Of a text: the last byte of its UTF-8 is what follows the stem. A surrogate in it counts as any character."""
    cdef Py_ssize_t length, stem
    cdef const unsigned char *raw
    cdef bytes encoded, hashed
    if PyUnicode_IS_ASCII(text):
        raw = <const unsigned char *>PyUnicode_AsUTF8AndSize(text, &length)
    else:
        encoded = text.encode("utf-8", "surrogatepass")
        raw, length = <const unsigned char *>PyBytes_AS_STRING(encoded), len(encoded)
    stem = length - 1 if length > 0 else 0
    hashed = PyBytes_FromStringAndSize(NULL, 1 + stem)
    cdef unsigned char *into = <unsigned char *>PyBytes_AS_STRING(hashed)
    into[0] = kind
    memcpy(into + 1, raw, stem)
    return key_of(ce_xxh64(into, 1 + stem, fold), raw[stem] if length > 0 else 0)


def number_key(uint64_t fold, unsigned char kind, uint64_t number):
    """Of a number: its lowest four bits are what follows the stem."""
    cdef unsigned char hashed[9]
    cdef uint64_t stem = number >> 4
    hashed[0] = kind
    memcpy(&hashed[1], &stem, sizeof(stem))
    return key_of(ce_xxh64(hashed, sizeof(hashed), fold), number & 15)
