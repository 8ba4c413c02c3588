/* kernels_portable.c - the kernels in plain C: 8 lanes are an array, every operation a loop over
 * them. What the other tables have to be bit-equal to; fast only where the compiler has a fused
 * multiply-add instruction for fmaf. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "kernels_narrow.h"

typedef struct {
    float lane[8];
} vec8;
typedef struct {
    uint32_t lane[8];
} veci;

#define FOR_LANES for (int i = 0; i < 8; i++)

static inline vec8 v8_set1(float a) {
    vec8 r;
    FOR_LANES r.lane[i] = a;
    return r;
}

static inline vec8 v8_load(const float *p) {
    vec8 r;
    memcpy(&r, p, sizeof r);
    return r;
}

static inline void v8_store(float *p, vec8 a) {
    memcpy(p, &a, sizeof a);
}

static inline vec8 v8_load_f16(const void *p) {
    uint16_t half[8];
    memcpy(half, p, sizeof half);
    vec8 r;
    FOR_LANES r.lane[i] = kvl_f16_to_f32(half[i]);
    return r;
}

static inline void v8_store_f16(void *p, vec8 a) {
    uint16_t half[8];
    FOR_LANES half[i] = kvl_f32_to_f16(a.lane[i]);
    memcpy(p, half, sizeof half);
}

static inline vec8 v8_load_bf16(const void *p) {
    uint16_t half[8];
    memcpy(half, p, sizeof half);
    vec8 r;
    FOR_LANES r.lane[i] = kvl_bf16_to_f32(half[i]);
    return r;
}

static inline vec8 v8_add(vec8 a, vec8 b) {
    FOR_LANES a.lane[i] += b.lane[i];
    return a;
}

static inline vec8 v8_sub(vec8 a, vec8 b) {
    FOR_LANES a.lane[i] -= b.lane[i];
    return a;
}

static inline vec8 v8_mul(vec8 a, vec8 b) {
    FOR_LANES a.lane[i] *= b.lane[i];
    return a;
}

static inline vec8 v8_div(vec8 a, vec8 b) {
    FOR_LANES a.lane[i] /= b.lane[i];
    return a;
}

static inline vec8 v8_fma(vec8 a, vec8 b, vec8 c) {
    FOR_LANES c.lane[i] = fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return c;
}

static inline vec8 v8_max(vec8 a, vec8 b) {
    FOR_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

static inline vec8 v8_min(vec8 a, vec8 b) {
    FOR_LANES a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

static inline vec8 v8_zero_below(vec8 x, float limit, vec8 a) {
    FOR_LANES a.lane[i] = x.lane[i] < limit ? 0 : a.lane[i];
    return a;
}

static inline vec8 v8_add_exponent(vec8 a, vec8 n_bits) {
    FOR_LANES a.lane[i] =
        kvl_float_of(kvl_bits_of(a.lane[i]) + (kvl_bits_of(n_bits.lane[i]) << 23));
    return a;
}

static inline vec8 v8_swap_pairs(vec8 a) {
    vec8 r;
    FOR_LANES r.lane[i] = a.lane[i ^ 1];
    return r;
}

static inline void v8_transpose(vec8 m[8]) {
    for (int row = 0; row < 8; row++) {
        for (int i = row + 1; i < 8; i++) {
            const float upper = m[row].lane[i];
            m[row].lane[i] = m[i].lane[row];
            m[i].lane[row] = upper;
        }
    }
}

static inline veci vi_load(const void *p) {
    veci r;
    memcpy(&r, p, sizeof r);
    return r;
}

static inline veci vi_shift_right(veci a, int bits) {
    FOR_LANES a.lane[i] >>= bits;
    return a;
}

static inline veci vi_shift_left(veci a, int bits) {
    FOR_LANES a.lane[i] <<= bits;
    return a;
}

static inline veci vi_and(veci a, uint32_t mask) {
    FOR_LANES a.lane[i] &= mask;
    return a;
}

static inline veci vi_or(veci a, veci b) {
    FOR_LANES a.lane[i] |= b.lane[i];
    return a;
}

static inline veci vi_byte_to_top(veci a, int byte) {
    FOR_LANES a.lane[i] = a.lane[i] << (24 - 8 * byte) & 0xFF000000u;
    return a;
}

static inline veci vi_load_i8(const void *p) {
    int8_t byte[8];
    memcpy(byte, p, sizeof byte);
    veci r;
    FOR_LANES r.lane[i] = (uint32_t)(int32_t)byte[i];
    return r;
}

/* The top bit, set meanwhile, keeps a byte from borrowing of its neighbour. */
static inline veci vi_sub_bytes(veci a, uint32_t amount) {
    FOR_LANES a.lane[i] = ((a.lane[i] | 0x80808080u) - amount * 0x01010101u) ^ 0x80808080u;
    return a;
}

static inline veci vi_lookup_bytes(veci a, const int8_t table[16]) {
    FOR_LANES {
        uint32_t bytes = 0;
        for (int at = 0; at < 32; at += 8) {
            bytes |= (uint32_t)(uint8_t)table[a.lane[i] >> at & 15] << at;
        }
        a.lane[i] = bytes;
    }
    return a;
}

static inline vec8 vi_to_f32(veci a) {
    vec8 r;
    FOR_LANES r.lane[i] = (float)(int32_t)a.lane[i];
    return r;
}

static bool available(void) {
    return true;
}

#define KVL_KERNELS_TABLE kvl_cpu_kernels_portable
#define KVL_KERNELS_NAME "portable"
#define KVL_KERNELS_AVAILABLE available
#include "kernels_body.h"
