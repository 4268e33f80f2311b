/* XXH64, written from the algorithm's specification (Yann Collet, "xxHash fast digest algorithm", version 0.1.1).
 * Little-endian hosts only; the build refuses others. */
#include "checksum_impl.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "cowengine's formats are little-endian and its kernels assume a little-endian host"
#endif

static const uint64_t P1 = 0x9E3779B185EBCA87ULL;
static const uint64_t P2 = 0xC2B2AE3D27D4EB4FULL;
static const uint64_t P3 = 0x165667B19E3779F9ULL;
static const uint64_t P4 = 0x85EBCA77C2B2AE63ULL;
static const uint64_t P5 = 0x27D4EB2F165667C5ULL;

static inline uint64_t rotate(uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t load32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t step(uint64_t lane, uint64_t input) { return rotate(lane + input * P2, 31) * P1; }

static inline uint64_t merge(uint64_t hash, uint64_t lane) { return (hash ^ step(0, lane)) * P1 + P4; }

typedef struct {
    uint64_t a, b, c, d;
} lanes_t;

static inline lanes_t begin(uint64_t seed) { return (lanes_t){seed + P1 + P2, seed + P2, seed, seed - P1}; }

static inline void stripe(lanes_t *lanes, const uint8_t *at)
{
    lanes->a = step(lanes->a, load64(at));
    lanes->b = step(lanes->b, load64(at + 8));
    lanes->c = step(lanes->c, load64(at + 16));
    lanes->d = step(lanes->d, load64(at + 24));
}

/* From `at` on, where `lanes` has come to, to the end. */
static inline __attribute__((always_inline)) uint64_t finish(lanes_t lanes, const uint8_t *at, const uint8_t *end, size_t length, uint64_t seed)
{
    uint64_t hash = seed + P5;

    for (; end - at >= 32; at += 32)
        stripe(&lanes, at);
    if (length >= 32) {
        hash = rotate(lanes.a, 1) + rotate(lanes.b, 7) + rotate(lanes.c, 12) + rotate(lanes.d, 18);
        hash = merge(hash, lanes.a);
        hash = merge(hash, lanes.b);
        hash = merge(hash, lanes.c);
        hash = merge(hash, lanes.d);
    }
    hash += (uint64_t)length;
    for (; end - at >= 8; at += 8)
        hash = rotate(hash ^ step(0, load64(at)), 27) * P1 + P4;
    if (end - at >= 4) {
        hash = rotate(hash ^ (uint64_t)load32(at) * P1, 23) * P2 + P3;
        at += 4;
    }
    for (; at < end; at++)
        hash = rotate(hash ^ *at * P5, 11) * P1;
    hash ^= hash >> 33;
    hash *= P2;
    hash ^= hash >> 29;
    hash *= P3;
    hash ^= hash >> 32;
    return hash;
}

uint64_t ce_xxh64(const void *data, size_t length, uint64_t seed)
{
    return finish(begin(seed), data, (const uint8_t *)data + length, length, seed);
}

/* Many buffers at once. One alone waits for its own products, five cycles for 32 bytes; four, each in a vector of its
 * own, take three times as many bytes in the same time where the processor multiplies 64-bit lanes (AVX-512DQ). */
enum { AT_ONCE = 4 };

typedef struct {
    lanes_t lanes;
    const uint8_t *at, *end;
    ce_sum_t *sum;
} run_t;

static void conclude(const run_t *run)
{
    run->sum->checksum = finish(run->lanes, run->at, run->end, run->sum->length, 0);
}

#if defined(__x86_64__)
#include <immintrin.h>
#define WIDE __attribute__((target("avx512f,avx512dq,avx512vl")))

static int has_wide(void) { return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"); }

WIDE static inline __m256i wide_load(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }

WIDE static inline __m256i wide_step(__m256i lanes, const uint8_t *at)
{
    lanes = _mm256_add_epi64(lanes, _mm256_mullo_epi64(wide_load(at), _mm256_set1_epi64x((long long)P2)));
    return _mm256_mullo_epi64(_mm256_rol_epi64(lanes, 31), _mm256_set1_epi64x((long long)P1));
}

/* Takes `bytes`, a multiple of 32, of each of four runs. */
WIDE static void wide_stripes(run_t *runs, size_t bytes)
{
    __m256i a = wide_load(&runs[0].lanes), b = wide_load(&runs[1].lanes);
    __m256i c = wide_load(&runs[2].lanes), d = wide_load(&runs[3].lanes);

    for (size_t done = 0; done < bytes; done += 32) {
        a = wide_step(a, runs[0].at + done);
        b = wide_step(b, runs[1].at + done);
        c = wide_step(c, runs[2].at + done);
        d = wide_step(d, runs[3].at + done);
    }
    _mm256_storeu_si256((__m256i *)&runs[0].lanes, a);
    _mm256_storeu_si256((__m256i *)&runs[1].lanes, b);
    _mm256_storeu_si256((__m256i *)&runs[2].lanes, c);
    _mm256_storeu_si256((__m256i *)&runs[3].lanes, d);
    for (int i = 0; i < AT_ONCE; i++)
        runs[i].at += bytes;
}
#else
static int has_wide(void) { return 0; }

static void wide_stripes(run_t *runs, size_t bytes) { (void)runs, (void)bytes; }
#endif

void ce_xxh64_many(ce_sum_t *sums, size_t count, int portable)
{
    ce_sum_t *const end = sums + count;
    run_t runs[AT_ONCE];
    int used = 0;

    while (!portable && has_wide()) {
        size_t least = SIZE_MAX;
        int going = 0;

        for (; used < AT_ONCE && sums < end; sums++)
            runs[used++] = (run_t){begin(0), sums->data, (const uint8_t *)sums->data + sums->length, sums};
        if (used < AT_ONCE)
            break;
        for (int i = 0; i < AT_ONCE; i++) {
            const size_t left = (size_t)(runs[i].end - runs[i].at);
            least = left < least ? left : least;
        }
        wide_stripes(runs, least & ~(size_t)31);
        for (int i = 0; i < AT_ONCE; i++) {
            if (runs[i].end - runs[i].at < 32)
                conclude(&runs[i]);
            else
                runs[going++] = runs[i];
        }
        used = going;
    }
    while (used > 0)
        conclude(&runs[--used]);
    for (; sums < end; sums++)
        sums->checksum = ce_xxh64(sums->data, sums->length, 0);
}
