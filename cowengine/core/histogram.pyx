"""How long calls take: counts in powers of two of a microsecond. Every durable call adds to two of them.

Threads   The GIL guards it.
"""

from libc.stdint cimport uint64_t

cdef enum:
    BUCKETS = 28        # the last one: 2^27 microseconds, over two minutes, and more


cdef class Buckets:
    """Bucket n counts calls of at most 2^n microseconds and more than 2^(n-1)."""

    cdef uint64_t counts[BUCKETS]
    cdef readonly double longest        # seconds

    def add(self, double seconds):
        """Counts one call."""
        cdef uint64_t left = <uint64_t>(seconds * 1e6) if seconds > 0 else 0
        cdef int bucket = 0
        while left != 0 and bucket < BUCKETS - 1:
            left >>= 1
            bucket += 1
        self.counts[bucket] += 1
        if seconds > self.longest:
            self.longest = seconds

    def counted(self):
        """The calls in each bucket."""
        return [self.counts[bucket] for bucket in range(BUCKETS)]
