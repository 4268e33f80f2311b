/* The seal of a block: CRC32C (the polynomial of Castagnoli, reflected: 0x82F63B78) of its four quarters, and of these.
 *
 * The processor's instruction takes eight bytes a cycle but answers only after three; four independent quarters keep it
 * busy, and need no carry-less multiplication to be put together. Where vectors of 512 bits are multiplied so, each
 * quarter is folded into one first, which is some three times as fast. All kernels return the same values. */
#include "seal_impl.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
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
/* The seal of the CRCs of four quarters, before their last inversion. */
CRC_TARGET static inline uint32_t seal_of_sums(crc_t a, crc_t b, crc_t c, crc_t d, uint64_t slot)
{
    crc_t last = CRC_STEP((crc_t)~(uint32_t)0, slot);
    last = CRC_STEP(last, (uint64_t)(uint32_t)~b << 32 | (uint32_t)~a);
    last = CRC_STEP(last, (uint64_t)(uint32_t)~d << 32 | (uint32_t)~c);
    return ~(uint32_t)last;
}

CRC_TARGET static uint32_t seal_by_instruction(const uint8_t *at, size_t quarter, uint64_t slot)
{
    const uint32_t ones = ~(uint32_t)0;
    crc_t a = ones, b = ones, c = ones, d = ones;
    for (const uint8_t *end = at + quarter; at < end; at += 8) {
        a = CRC_STEP(a, load64(at));
        b = CRC_STEP(b, load64(at + quarter));
        c = CRC_STEP(c, load64(at + 2 * quarter));
        d = CRC_STEP(d, load64(at + 3 * quarter));
    }
    return seal_of_sums(a, b, c, d, slot);
}
#endif

#if defined(__x86_64__)
#define FOLD_TARGET __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

static int has_folding(void)
{
    return has_instruction() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
}

/* The 128 bits in each lane, moved on by as many bits as its keys stand for: x^(bits + 31) and x^(bits - 33) modulo the
 * polynomial, reflected. */
FOLD_TARGET static inline __m512i moved(__m512i sum, __m512i keys)
{
    return _mm512_xor_si512(_mm512_clmulepi64_epi128(sum, keys, 0x00), _mm512_clmulepi64_epi128(sum, keys, 0x11));
}

FOLD_TARGET static inline __m512i folded(__m512i sum, const uint8_t *at)
{
    const __m512i by_512 = _mm512_set_epi64(
        0x9e4addf8, 0x740eef02, 0x9e4addf8, 0x740eef02, 0x9e4addf8, 0x740eef02, 0x9e4addf8, 0x740eef02);
    return _mm512_xor_si512(moved(sum, by_512), _mm512_loadu_si512(at));
}

/* The CRC, before its last inversion, of what was folded into 512 bits: their lanes are put together in the last. */
FOLD_TARGET static inline crc_t crc_of(__m512i sum)
{
    const __m512i by_rest = _mm512_set_epi64(0, 0, 0x493c7d27, 0xf20c0dfe, 0xba4fc28e, 0x3da6d0cb, 0xddc0152b, 0x1c291d04);
    uint64_t parts[8], last[8];
    _mm512_storeu_si512(parts, moved(sum, by_rest));
    _mm512_storeu_si512(last, sum);
    return CRC_STEP(CRC_STEP(0, parts[0] ^ parts[2] ^ parts[4] ^ last[6]), parts[1] ^ parts[3] ^ parts[5] ^ last[7]);
}

/* A quarter is a multiple of 64 bytes. */
FOLD_TARGET static uint32_t seal_by_folding(const uint8_t *at, size_t quarter, uint64_t slot)
{
    const __m512i ones = _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, 0xffffffff);
    __m512i a = _mm512_xor_si512(ones, _mm512_loadu_si512(at));
    __m512i b = _mm512_xor_si512(ones, _mm512_loadu_si512(at + quarter));
    __m512i c = _mm512_xor_si512(ones, _mm512_loadu_si512(at + 2 * quarter));
    __m512i d = _mm512_xor_si512(ones, _mm512_loadu_si512(at + 3 * quarter));
    for (size_t done = 64; done < quarter; done += 64) {
        a = folded(a, at + done);
        b = folded(b, at + quarter + done);
        c = folded(c, at + 2 * quarter + done);
        d = folded(d, at + 3 * quarter + done);
    }
    return seal_of_sums(crc_of(a), crc_of(b), crc_of(c), crc_of(d), slot);
}
#endif

uint32_t ce_seal(const void *block, size_t bytes, uint64_t slot, int kernel)
{
    uint32_t seal = 0;
#if defined(__x86_64__)
    if (kernel == CE_FASTEST && bytes > 0 && bytes % 256 == 0 && has_folding())
        seal = seal_by_folding(block, bytes / 4, slot);
    else
#endif
#ifdef CRC_STEP
    if (kernel != CE_PORTABLE && has_instruction())
        seal = seal_by_instruction(block, bytes / 4, slot);
    else
#endif
        seal = seal_portable(block, bytes / 4, slot);
    (void)kernel;
    return seal ? seal : 1;
}
