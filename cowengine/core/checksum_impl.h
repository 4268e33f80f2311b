/* XXH64 of a buffer, and of many. */
#ifndef CE_CHECKSUM_IMPL_H
#define CE_CHECKSUM_IMPL_H

#include <stddef.h>
#include <stdint.h>

uint64_t ce_xxh64(const void *data, size_t length, uint64_t seed);

typedef struct {
    const void *data;
    size_t length;
    uint64_t checksum;
} ce_sum_t;

/* The checksums, with seed 0, of many buffers; `portable`: without what only some processors have. */
void ce_xxh64_many(ce_sum_t *sums, size_t count, int portable);

#endif
