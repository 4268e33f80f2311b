/* Reads and writes of an open volume without Python: several threads here are ordered by nothing but the kernels' own
 * locks, so what these forget is a race that ThreadSanitizer sees. Compiled and called by races_child.py. */
#include "calltable.h"

#include <string.h>

enum { SECTOR = 512, BYTES_MAX = 1 << 16, HOT_BYTES = 1 << 18 };

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* `calls` reads of `root`, one in `every` instead a write; half of them where all threads meet. Returns how many ended
 * well before the first that did not, whose status is `*status`. */
uint64_t hammer(const calltable_t *table, void *path, void *root, uint64_t seed, uint64_t calls, uint64_t every,
                int *status)
{
    char data[BYTES_MAX];
    uint64_t state = seed * 2 + 1, call, offset, length, within, done;
    memset(data, (int)seed, sizeof data);
    for (call = 0, *status = 0; call < calls; call++) {
        within = next_random(&state) & 1 ? HOT_BYTES : table->size(path);
        length = next_random(&state) % (next_random(&state) & 7 ? 4 * SECTOR : BYTES_MAX) + 1;
        if (within <= length)
            continue;
        offset = next_random(&state) % (within - length);
        done = 0;
        if (every != 0 && next_random(&state) % every == 0)
            *status = table->write(path, data, length, offset, &done);
        else
            *status = table->read(path, root, data, length, offset);
        if (*status != 0)
            break;
        table->is_crowded(path);
    }
    return call;
}
