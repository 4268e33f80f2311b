/* The seal of a block: CRC32C (the polynomial of Castagnoli, reflected: 0x82F63B78) of its four quarters, and of these.
 *
 * The processor's instruction takes eight bytes a cycle but answers only after three; four independent quarters keep it
 * busy, and need no carry-less multiplication to be put together. All kernels return the same values. */
#include "seal_impl.h"

#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_STEP(crc, word) _mm_crc32_u64(crc, word)
typedef uint64_t crc_t;
static int has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define CRC_TARGET __attribute__((target("+crc")))
#define CRC_STEP(crc, word) __crc32cd(crc, word)
typedef uint32_t crc_t;
static int has_instruction(void) { return (getauxval(AT_HWCAP) & (1UL << 7)) != 0; }
#endif

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* tables[k][b]: the CRC of byte b followed by k zero bytes. Filled at the first use; twice at once does no harm. */
static uint32_t tables[8][256];
static int tables_ready;

static void fill_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
        __atomic_store_n(&tables[0][byte], crc, __ATOMIC_RELAXED);
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int k = 1; k < 8; k++) {
            uint32_t before = tables[k - 1][byte];
            __atomic_store_n(&tables[k][byte], before >> 8 ^ tables[0][before & 255], __ATOMIC_RELAXED);
        }
    __atomic_store_n(&tables_ready, 1, __ATOMIC_RELEASE);
}

static uint32_t step_portable(uint32_t crc, uint64_t word)
{
    word ^= crc;
    crc = 0;
    for (int k = 0; k < 8; k++)
        crc ^= tables[7 - k][word >> (8 * k) & 255];
    return crc;
}

static uint32_t crc32c_portable(const uint8_t *at, size_t bytes)
{
    uint32_t crc = ~(uint32_t)0;
    for (size_t done = 0; done < bytes; done += 8)
        crc = step_portable(crc, load64(at + done));
    return ~crc;
}

static uint32_t seal_portable(const uint8_t *at, size_t quarter, uint64_t slot)
{
    uint32_t sums[4];
    uint8_t last[24];
    if (!__atomic_load_n(&tables_ready, __ATOMIC_ACQUIRE))
        fill_tables();
    for (int i = 0; i < 4; i++)
        sums[i] = crc32c_portable(at + (size_t)i * quarter, quarter);
    memcpy(last, &slot, 8);
    memcpy(last + 8, sums, 16);
    return crc32c_portable(last, sizeof last);
}

#ifdef CRC_STEP
CRC_TARGET static uint32_t seal_by_instruction(const uint8_t *at, size_t quarter, uint64_t slot)
{
    const uint32_t ones = ~(uint32_t)0;
    crc_t a = ones, b = ones, c = ones, d = ones, last = ones;
    for (const uint8_t *end = at + quarter; at < end; at += 8) {
        a = CRC_STEP(a, load64(at));
        b = CRC_STEP(b, load64(at + quarter));
        c = CRC_STEP(c, load64(at + 2 * quarter));
        d = CRC_STEP(d, load64(at + 3 * quarter));
    }
    last = CRC_STEP(last, slot);
    last = CRC_STEP(last, (uint64_t)(uint32_t)~b << 32 | (uint32_t)~a);
    last = CRC_STEP(last, (uint64_t)(uint32_t)~d << 32 | (uint32_t)~c);
    return ~(uint32_t)last;
}
#endif

uint32_t ce_seal(const void *block, size_t bytes, uint64_t slot, int portable)
{
    uint32_t seal;
#ifdef CRC_STEP
    if (!portable && has_instruction())
        seal = seal_by_instruction(block, bytes / 4, slot);
    else
#endif
        seal = seal_portable(block, bytes / 4, slot);
    (void)portable;
    return seal ? seal : 1;
}
