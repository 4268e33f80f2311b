"""A mutex and a condition variable.

Rule: nobody waits for the mutex while holding the GIL. Then a holder of the mutex may take the GIL (an I/O table
written in Python does), and no two threads wait for each other.
"""


cdef class Mutex:
    """A plain, non-recursive mutex with one condition."""

    def __cinit__(self):
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.condition, NULL)

    def __dealloc__(self):
        pthread_cond_destroy(&self.condition)
        pthread_mutex_destroy(&self.mutex)

    cdef void acquire(self):
        if pthread_mutex_trylock(&self.mutex) != 0:
            with nogil:
                pthread_mutex_lock(&self.mutex)

    cdef void acquire_nogil(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)

    cdef void release(self) noexcept nogil:
        pthread_mutex_unlock(&self.mutex)

    cdef void wait(self) noexcept nogil:
        pthread_cond_wait(&self.condition, &self.mutex)

    cdef void wake(self) noexcept nogil:
        pthread_cond_broadcast(&self.condition)

    cdef void wake_one(self) noexcept nogil:
        pthread_cond_signal(&self.condition)

    cdef void renew(self) noexcept nogil:
        """Forgets who held it; for the child of a fork."""
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.condition, NULL)
