/* The seal of a block: docs/format.md section 8. */
#ifndef CE_SEAL_IMPL_H
#define CE_SEAL_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* `bytes` is a multiple of 32. Never 0. `portable`: without the processor's instruction, for comparison. */
uint32_t ce_seal(const void *block, size_t bytes, uint64_t slot, int portable);

#endif
