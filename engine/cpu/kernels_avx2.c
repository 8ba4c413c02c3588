/* kernels_avx2.c - the kernels on AVX2, FMA and F16C: 8 lanes are one register. Compiled with
 * -mavx2 -mfma -mf16c; nothing here runs before kvl_cpu_kernels_best has asked the CPU. */
#ifdef __x86_64__

#include <cpuid.h>
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

typedef __m256 vec8;
typedef __m256i vec8i;

static inline vec8 v8_set1(float a) {
    return _mm256_set1_ps(a);
}

static inline vec8 v8_load(const float *p) {
    return _mm256_loadu_ps(p);
}

static inline void v8_store(float *p, vec8 a) {
    _mm256_storeu_ps(p, a);
}

static inline vec8 v8_load_f16(const void *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

static inline void v8_store_f16(void *p, vec8 a) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

static inline vec8 v8_load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

static inline vec8 v8_add(vec8 a, vec8 b) {
    return _mm256_add_ps(a, b);
}

static inline vec8 v8_sub(vec8 a, vec8 b) {
    return _mm256_sub_ps(a, b);
}

static inline vec8 v8_mul(vec8 a, vec8 b) {
    return _mm256_mul_ps(a, b);
}

static inline vec8 v8_div(vec8 a, vec8 b) {
    return _mm256_div_ps(a, b);
}

static inline vec8 v8_fma(vec8 a, vec8 b, vec8 c) {
    return _mm256_fmadd_ps(a, b, c);
}

/* a > b ? a : b, so b where either is NaN. */
static inline vec8 v8_max(vec8 a, vec8 b) {
    return _mm256_max_ps(a, b);
}

static inline vec8 v8_min(vec8 a, vec8 b) {
    return _mm256_min_ps(a, b);
}

static inline vec8 v8_zero_below(vec8 x, float limit, vec8 a) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_LT_OQ), a);
}

/* a * 2^n, n the low bits of n_bits */
static inline vec8 v8_add_exponent(vec8 a, vec8 n_bits) {
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(n_bits), 23)));
}

static inline vec8 v8_swap_pairs(vec8 a) {
    return _mm256_permute_ps(a, _MM_SHUFFLE(2, 3, 0, 1));
}

static inline void v8_transpose(vec8 m[8]) {
    vec8 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
        quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
        quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
        quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; i++) {
        m[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        m[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
}

static inline vec8i v8i_load(const void *p) {
    return _mm256_loadu_si256(p);
}

static inline vec8i v8i_shift_right(vec8i a, int bits) {
    return _mm256_srli_epi32(a, bits);
}

static inline vec8i v8i_shift_left(vec8i a, int bits) {
    return _mm256_slli_epi32(a, bits);
}

static inline vec8i v8i_and(vec8i a, uint32_t mask) {
    return _mm256_and_si256(a, _mm256_set1_epi32((int)mask));
}

static inline vec8i v8i_or(vec8i a, vec8i b) {
    return _mm256_or_si256(a, b);
}

static inline vec8i v8i_sign_extend_byte(vec8i a, int byte) {
    return _mm256_srai_epi32(_mm256_slli_epi32(a, 24 - 8 * byte), 24);
}

/* The 4 bits from bit `at` on, as two's complement. */
static inline vec8i v8i_sign_extend_nibble(vec8i a, int at) {
    return _mm256_srai_epi32(_mm256_slli_epi32(a, 28 - at), 28);
}

/* 8 signed bytes, one a lane. */
static inline vec8i v8i_load_i8(const void *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(p));
}

/* Every byte less `amount`; bytes below 128. */
static inline vec8i v8i_sub_bytes(vec8i a, uint32_t amount) {
    return _mm256_sub_epi8(a, _mm256_set1_epi8((char)amount));
}

/* Every byte b becomes table[b]; bytes below 16. */
static inline vec8i v8i_lookup_bytes(vec8i a, const int8_t table[16]) {
    return _mm256_shuffle_epi8(
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)), a);
}

static inline vec8 v8i_to_f32(vec8i a) {
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
