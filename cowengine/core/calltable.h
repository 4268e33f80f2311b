/* The data path of an open volume as plain function pointers: what callers use that hold neither the GIL nor a
 * reference. `path` is a DataPath, `root` a Root or None; both must be kept alive by whoever calls. Returned are the
 * kernels' own statuses, 0 for success; `settle` in calltable.pyx says what to do about the others. */
#ifndef COWENGINE_CALLTABLE_H
#define COWENGINE_CALLTABLE_H

#include <stdint.h>

typedef struct {
    /* Reads a range that was checked. */
    int (*read)(void *path, void *root, char *data, uint64_t length, uint64_t offset);
    /* Writes from `*done` on and moves it; stops at the first part that needs something. The range was checked. */
    int (*write)(void *path, const char *data, uint64_t length, uint64_t offset, uint64_t *done);
    /* The size of the live volume now, in bytes. */
    uint64_t (*size)(void *path);
    /* Whether the map has more nodes in memory than it should; `trim` of the engine's memory.py mends that. */
    int (*is_crowded)(void *path);
    /* The descriptor of the file. */
    int (*descriptor)(void *path);
} calltable_t;

#endif
