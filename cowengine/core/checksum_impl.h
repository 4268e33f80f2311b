/* XXH64 of a buffer. */
#ifndef CE_CHECKSUM_IMPL_H
#define CE_CHECKSUM_IMPL_H

#include <stddef.h>
#include <stdint.h>

uint64_t ce_xxh64(const void *data, size_t length, uint64_t seed);

#endif
