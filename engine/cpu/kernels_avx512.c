/* kernels_avx512.c - the kernels on AVX-512 (F, BW, DQ, VL): products and attention over registers
 * of 16 lanes, a whole strip each, the rest as on AVX2. Compiled with -mavx512f and its kin;
 * nothing here runs before kvl_cpu_kernels_best has asked the CPU. What it gains, and on which
 * machine: docs/decisions/0020. */
#ifdef __x86_64__

#include <stdbool.h>

#include "vector_avx2.h"

#define KVL_WIDE_LANES 16
#define KVL_HAS_LOOKUP 1
#define KVL_GEMM_ROWS 8 /* keep two pipes busy, each sum waiting 4 cycles */

typedef __m512 vecw;
typedef __m512i veci;

static inline vecw vw_set1(float a) {
    return _mm512_set1_ps(a);
}

static inline vecw vw_load(const float *p) {
    return _mm512_loadu_ps(p);
}

static inline void vw_store(float *p, vecw a) {
    _mm512_storeu_ps(p, a);
}

static inline vecw vw_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

static inline vecw vw_load_bf16(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

static inline vecw vw_sub(vecw a, vecw b) {
    return _mm512_sub_ps(a, b);
}

static inline vecw vw_mul(vecw a, vecw b) {
    return _mm512_mul_ps(a, b);
}

static inline vecw vw_fma(vecw a, vecw b, vecw c) {
    return _mm512_fmadd_ps(a, b, c);
}

static inline veci vi_load(const void *p) {
    return _mm512_loadu_si512(p);
}

static inline veci vi_shift_right(veci a, int bits) {
    return _mm512_srli_epi32(a, (unsigned)bits);
}

static inline veci vi_shift_left(veci a, int bits) {
    return _mm512_slli_epi32(a, (unsigned)bits);
}

static inline veci vi_and(veci a, uint32_t mask) {
    return _mm512_and_si512(a, _mm512_set1_epi32((int)mask));
}

static inline veci vi_or(veci a, veci b) {
    return _mm512_or_si512(a, b);
}

static inline veci vi_byte_to_top(veci a, int byte) {
    const __m128i at = _mm_setr_epi8(-1, -1, -1, (char)byte, -1, -1, -1, (char)(4 + byte), -1, -1,
        -1, (char)(8 + byte), -1, -1, -1, (char)(12 + byte));
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(at));
}

static inline veci vi_load_i8(const void *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(p));
}

static inline veci vi_sub_bytes(veci a, uint32_t amount) {
    return _mm512_sub_epi8(a, _mm512_set1_epi8((char)amount));
}

static inline veci vi_lookup_bytes(veci a, const int8_t table[16]) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), a);
}

static inline vecw vi_to_f32(veci a) {
    return _mm512_cvtepi32_ps(a);
}

static inline vecw vw_lookup(const float table[16], veci a) {
    return _mm512_permutexvar_ps(a, _mm512_loadu_ps(table));
}

/* Every CPU with these has AVX2, FMA and F16C too. */
static bool available(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#define KVL_KERNELS_TABLE kvl_cpu_kernels_avx512
#define KVL_KERNELS_NAME "avx512"
#define KVL_KERNELS_AVAILABLE available
#include "kernels_body.h"

#endif
