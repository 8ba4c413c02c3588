/* kernels_neon.c - the kernels on NEON of 64-bit ARM, which always has it: 8 lanes are two
 * registers. */
#ifdef __aarch64__

#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels_narrow.h"

typedef float32x4x2_t vec8;
typedef uint32x4x2_t veci;

/* The halves of two operands, one after the other. */
#define EACH(op, a, b)                                                                             \
    {                                                                                              \
        { op((a).val[0], (b).val[0]), op((a).val[1], (b).val[1]) }                                 \
    }

static inline vec8 v8_set1(float a) {
    return (vec8){{vdupq_n_f32(a), vdupq_n_f32(a)}};
}

static inline vec8 v8_load(const float *p) {
    return (vec8){{vld1q_f32(p), vld1q_f32(p + 4)}};
}

static inline void v8_store(float *p, vec8 a) {
    vst1q_f32(p, a.val[0]);
    vst1q_f32(p + 4, a.val[1]);
}

static inline uint16x8_t load_halves(const void *p) {
    return vreinterpretq_u16_u8(vld1q_u8(p));
}

static inline vec8 v8_load_f16(const void *p) {
    const float16x8_t half = vreinterpretq_f16_u16(load_halves(p));
    return (vec8){{vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)}};
}

static inline void v8_store_f16(void *p, vec8 a) {
    const float16x8_t half = vcvt_high_f16_f32(vcvt_f16_f32(a.val[0]), a.val[1]);
    vst1q_u8(p, vreinterpretq_u8_f16(half));
}

static inline vec8 v8_load_bf16(const void *p) {
    const uint16x8_t half = load_halves(p);
    return (vec8){{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)),
        vreinterpretq_f32_u32(vshll_high_n_u16(half, 16))}};
}

static inline vec8 v8_add(vec8 a, vec8 b) {
    return (vec8)EACH(vaddq_f32, a, b);
}

static inline vec8 v8_sub(vec8 a, vec8 b) {
    return (vec8)EACH(vsubq_f32, a, b);
}

static inline vec8 v8_mul(vec8 a, vec8 b) {
    return (vec8)EACH(vmulq_f32, a, b);
}

static inline vec8 v8_div(vec8 a, vec8 b) {
    return (vec8)EACH(vdivq_f32, a, b);
}

static inline vec8 v8_fma(vec8 a, vec8 b, vec8 c) {
    return (vec8){
        {vfmaq_f32(c.val[0], a.val[0], b.val[0]), vfmaq_f32(c.val[1], a.val[1], b.val[1])}};
}

/* Not vmaxq_f32, which gives NaN where either is one; this gives b. */
static inline float32x4_t greater_of(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

static inline float32x4_t lesser_of(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}

static inline vec8 v8_max(vec8 a, vec8 b) {
    return (vec8)EACH(greater_of, a, b);
}

static inline vec8 v8_min(vec8 a, vec8 b) {
    return (vec8)EACH(lesser_of, a, b);
}

static inline float32x4_t clear_where(uint32x4_t mask, float32x4_t a) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), mask));
}

static inline vec8 v8_zero_below(vec8 x, float limit, vec8 a) {
    const float32x4_t limits = vdupq_n_f32(limit);
    return (vec8){{clear_where(vcltq_f32(x.val[0], limits), a.val[0]),
        clear_where(vcltq_f32(x.val[1], limits), a.val[1])}};
}

static inline float32x4_t add_exponent(float32x4_t a, float32x4_t n_bits) {
    const uint32x4_t n = vshlq_n_u32(vreinterpretq_u32_f32(n_bits), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), n));
}

/* a * 2^n, n the low bits of n_bits */
static inline vec8 v8_add_exponent(vec8 a, vec8 n_bits) {
    return (vec8)EACH(add_exponent, a, n_bits);
}

static inline vec8 v8_swap_pairs(vec8 a) {
    return (vec8){{vrev64q_f32(a.val[0]), vrev64q_f32(a.val[1])}};
}

/* A square of 4 x 4: rows a[0..3], each taken from half `half` of a vector. */
static inline void transpose_quarter(const vec8 *rows, int half, float32x4_t out[4]) {
    const float32x4_t a = rows[0].val[half], b = rows[1].val[half];
    const float32x4_t c = rows[2].val[half], d = rows[3].val[half];
    const float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
    const float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    const float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
    const float64x2_t cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    out[0] = vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even));
    out[1] = vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd));
    out[2] = vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even));
    out[3] = vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd));
}

static inline void v8_transpose(vec8 m[8]) {
    float32x4_t quarter[2][2][4]; /* [rows 0 to 3, 4 to 7][columns 0 to 3, 4 to 7] */
    for (int i = 0; i < 4; i++) {
        transpose_quarter(m + i / 2 * 4, i % 2, quarter[i / 2][i % 2]);
    }
    for (int i = 0; i < 8; i++) {
        m[i] = (vec8){{quarter[0][i / 4][i % 4], quarter[1][i / 4][i % 4]}};
    }
}

static inline veci vi_load(const void *p) {
    const uint8_t *bytes = p;
    return (veci){
        {vreinterpretq_u32_u8(vld1q_u8(bytes)), vreinterpretq_u32_u8(vld1q_u8(bytes + 16))}};
}

/* By a register: the count is a constant only once this is inlined. */
static inline veci vi_shift_left(veci a, int bits) {
    const int32x4_t by = vdupq_n_s32(bits);
    return (veci){{vshlq_u32(a.val[0], by), vshlq_u32(a.val[1], by)}};
}

static inline veci vi_shift_right(veci a, int bits) {
    return vi_shift_left(a, -bits);
}

static inline veci vi_and(veci a, uint32_t mask) {
    const uint32x4_t m = vdupq_n_u32(mask);
    return (veci){{vandq_u32(a.val[0], m), vandq_u32(a.val[1], m)}};
}

static inline veci vi_or(veci a, veci b) {
    return (veci)EACH(vorrq_u32, a, b);
}

static inline veci vi_byte_to_top(veci a, int byte) {
    return vi_and(vi_shift_left(a, 24 - 8 * byte), 0xFF000000u);
}

static inline veci vi_load_i8(const void *p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return (veci){{vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(wide))),
        vreinterpretq_u32_s32(vmovl_high_s16(wide))}};
}

static inline uint32x4_t sub_bytes(uint32x4_t a, uint8x16_t amount) {
    return vreinterpretq_u32_u8(vsubq_u8(vreinterpretq_u8_u32(a), amount));
}

static inline veci vi_sub_bytes(veci a, uint32_t amount) {
    const uint8x16_t all = vdupq_n_u8((uint8_t)amount);
    return (veci){{sub_bytes(a.val[0], all), sub_bytes(a.val[1], all)}};
}

static inline uint32x4_t lookup_bytes(uint32x4_t a, int8x16_t table) {
    return vreinterpretq_u32_s8(vqtbl1q_s8(table, vreinterpretq_u8_u32(a)));
}

static inline veci vi_lookup_bytes(veci a, const int8_t table[16]) {
    const int8x16_t all = vld1q_s8(table);
    return (veci){{lookup_bytes(a.val[0], all), lookup_bytes(a.val[1], all)}};
}

static inline vec8 vi_to_f32(veci a) {
    return (vec8){{vcvtq_f32_s32(vreinterpretq_s32_u32(a.val[0])),
        vcvtq_f32_s32(vreinterpretq_s32_u32(a.val[1]))}};
}

static bool available(void) {
    return true;
}

#define KVL_KERNELS_TABLE kvl_cpu_kernels_neon
#define KVL_KERNELS_NAME "neon"
#define KVL_KERNELS_AVAILABLE available
#include "kernels_body.h"

#endif
