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

uint64_t ce_xxh64(const void *data, size_t length, uint64_t seed)
{
    const uint8_t *at = data;
    const uint8_t *const end = at + length;
    uint64_t hash;

    if (length >= 32) {
        uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
        do {
            a = step(a, load64(at));
            b = step(b, load64(at + 8));
            c = step(c, load64(at + 16));
            d = step(d, load64(at + 24));
            at += 32;
        } while (end - at >= 32);
        hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
        hash = merge(hash, a);
        hash = merge(hash, b);
        hash = merge(hash, c);
        hash = merge(hash, d);
    } else {
        hash = seed + P5;
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
