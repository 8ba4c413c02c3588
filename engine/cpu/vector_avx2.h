/* vector_avx2.h - 8 lanes of f32 in one AVX register, for the tables of AVX2 and AVX-512 (vec8 of
 * kernels_body.h). */
#ifndef KVL_CPU_VECTOR_AVX2_H
#define KVL_CPU_VECTOR_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef __m256 vec8;

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

#endif
