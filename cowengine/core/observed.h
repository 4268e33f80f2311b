/* Words that are changed under a volume's mutex and looked at without it: counters, limits, states.
 * C11 atomics, so that a look is no data race: it costs what a plain load costs. Changes are plain assignments but
 * where every read or write of a volume makes them; there `observed_add`, which needs no locked instruction. */
#ifndef COWENGINE_OBSERVED_H
#define COWENGINE_OBSERVED_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint64_t observed_t;
typedef _Atomic int64_t observed_signed_t;
typedef _Atomic int observed_int_t;

/* Adds to a word, below 0 too; the mutex is held. */
static inline void observed_add(observed_t *word, uint64_t more)
{
    uint64_t before = atomic_load_explicit(word, memory_order_relaxed);
    atomic_store_explicit(word, before + more, memory_order_relaxed);
}

/* One more, and one less, of those who use what somebody wants to take away: he sees no one left only when all that the
 * last one did is done. */
static inline void observed_enter(observed_t *word)
{
    atomic_fetch_add_explicit(word, 1, memory_order_relaxed);
}

static inline void observed_leave(observed_t *word)
{
    atomic_fetch_sub_explicit(word, 1, memory_order_release);
}

#endif
