/* The seal of a block: docs/format.md section 8. */
#ifndef CE_SEAL_IMPL_H
#define CE_SEAL_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* Kernels, for comparison: the fastest that the processor has; the portable one; that of the processor's instruction. */
enum { CE_FASTEST, CE_PORTABLE, CE_BY_INSTRUCTION };

/* `bytes` is a multiple of 32. Never 0. */
uint32_t ce_seal(const void *block, size_t bytes, uint64_t slot, int kernel);

#endif
