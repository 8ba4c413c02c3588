/* block_pattern.h - what a block of the schedule test holds: a function of its key, word by word.
 */
#ifndef KVL_TESTS_BLOCK_PATTERN_H
#define KVL_TESTS_BLOCK_PATTERN_H

#include <stdint.h>

#ifdef __CUDACC__
#define KVL_BOTH_SIDES __host__ __device__
#else
#define KVL_BOTH_SIDES
#endif

/* splitmix64 (Vigna) of a counter. */
static inline KVL_BOTH_SIDES uint64_t block_word(uint64_t seed, uint64_t index) {
    uint64_t x = seed + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

#endif
