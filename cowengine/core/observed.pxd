"""Words that are changed under a volume's mutex and looked at without it: see observed.h."""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "observed.h" nogil:
    ctypedef uint64_t observed_t
    ctypedef int64_t observed_signed_t
    ctypedef int observed_int_t
    ctypedef bint observed_bint_t "observed_int_t"
    void observed_add(observed_t *word, uint64_t more)
    void observed_enter(observed_t *word)
    void observed_leave(observed_t *word)
