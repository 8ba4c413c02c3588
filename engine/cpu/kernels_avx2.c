/* kernels_avx2.c - the kernels on AVX2, FMA and F16C: 8 lanes are one register. Compiled with
 * -mavx2 -mfma -mf16c; nothing here runs before kvl_cpu_kernels_best has asked the CPU. */
#ifdef __x86_64__

#include <cpuid.h>
#include <stdbool.h>

#include "kernels_narrow.h"
#include "vector_avx2.h"

typedef __m256i veci;

static inline veci vi_load(const void *p) {
    return _mm256_loadu_si256(p);
}

static inline veci vi_shift_right(veci a, int bits) {
    return _mm256_srli_epi32(a, bits);
}

static inline veci vi_shift_left(veci a, int bits) {
    return _mm256_slli_epi32(a, bits);
}

static inline veci vi_and(veci a, uint32_t mask) {
    return _mm256_and_si256(a, _mm256_set1_epi32((int)mask));
}

static inline veci vi_or(veci a, veci b) {
    return _mm256_or_si256(a, b);
}

static inline veci vi_byte_to_top(veci a, int byte) {
    const __m128i at = _mm_setr_epi8(-1, -1, -1, (char)byte, -1, -1, -1, (char)(4 + byte), -1, -1,
        -1, (char)(8 + byte), -1, -1, -1, (char)(12 + byte));
    return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(at));
}

static inline veci vi_load_i8(const void *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(p));
}

static inline veci vi_sub_bytes(veci a, uint32_t amount) {
    return _mm256_sub_epi8(a, _mm256_set1_epi8((char)amount));
}

static inline veci vi_lookup_bytes(veci a, const int8_t table[16]) {
    return _mm256_shuffle_epi8(
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)), a);
}

static inline vec8 vi_to_f32(veci a) {
    return _mm256_cvtepi32_ps(a);
}

static bool available(void) {
    /* The built-in of older clangs does not know f16c; that avx2 is there says that the system
     * saves the wide registers. */
    unsigned eax, ebx, ecx, edx;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

#define KVL_KERNELS_TABLE kvl_cpu_kernels_avx2
#define KVL_KERNELS_NAME "avx2"
#define KVL_KERNELS_AVAILABLE available
#include "kernels_body.h"

#endif
