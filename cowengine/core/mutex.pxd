"""The lock of a volume: a mutex and a condition, for code with and without the GIL."""

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_cond_signal(pthread_cond_t *condition)


cdef class Mutex:
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t condition

    cdef void acquire(self)                             # with the GIL, which is released while waiting
    cdef void acquire_nogil(self) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef void wait(self) noexcept nogil                 # for wake(); without the GIL
    cdef void wake(self) noexcept nogil
    cdef void wake_one(self) noexcept nogil             # for one of several that wait for the same
    cdef void renew(self) noexcept nogil
