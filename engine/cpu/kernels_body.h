/* kernels_body.h - every kernel, written once over vectors and compiled once per
 * instruction set. The including file defines first:
 *
 *   vec8, v8_*           8 lanes of f32 and the operations on them
 *   vecw, vw_*           WIDE = KVL_WIDE_LANES lanes of f32, 8 or 16; kernels_narrow.h if 8
 *   veci, vi_*           as many of u32
 *   KVL_GEMM_ROWS        rows of a product whose sums fit into the registers
 *   KVL_KERNELS_TABLE, KVL_KERNELS_NAME, KVL_KERNELS_AVAILABLE
 *                        the table's symbol, its name, the test whether this CPU can run it
 *
 *   v8_max(a, b), v8_min   a > b ? a : b, so b where either is NaN
 *   v8_add_exponent(a, n)  a * 2^n, n in the low bits
 *   vw_lookup(table, a)    table[a % 16] of 16 floats, if KVL_HAS_LOOKUP
 *   vi_load_i8             a signed byte a lane
 *   vi_byte_to_top         byte number `byte` of each lane as its top one, over zeros
 *   vi_sub_bytes           every byte, below 128, less `amount`
 *   vi_lookup_bytes        every byte, below 16, as an index into the table
 *
 * Each operation rounds once per lane, as IEEE 754 says. Order of operations is the contract of
 * kernels.h; vectors only carry independent lanes. Products and attention use wide vectors. */
#include <math.h>
#include <string.h>

#include "../quant.h"
#include "half.h"
#include "kernels.h"

/* Where a parameter is a constant at every call: one copy of the code per constant. A sanitizer's
 * checks in all these copies would take a minute to compile; there they may be one code, which
 * reads the parameter. */
#ifdef KVL_KERNELS_SHARE_CODE
#define INLINE static
#else
#define INLINE static inline __attribute__((always_inline))
#endif

enum {
    LANES = 8,
    WIDE = KVL_WIDE_LANES,
    STRIP_VECTORS = KVL_STRIP_ROWS / WIDE,
    PANEL_VECTORS = KVL_PANEL_ROWS / WIDE,
    GEMM_ROWS = KVL_GEMM_ROWS,
    CACHE_LINE = 64,
    FETCH_LEVEL_2 = 2, /* __builtin_prefetch: into the second level of caches, not the first */
};

/* ---- sums over lanes ---- */

static float sum_lanes(vec8 v) {
    float lane[LANES];
    v8_store(lane, v);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static float max_of(float a, float b) {
    return a > b ? a : b;
}

static float max_lanes(vec8 v) {
    float lane[LANES];
    v8_store(lane, v);
    return max_of(max_of(max_of(lane[0], lane[4]), max_of(lane[2], lane[6])),
        max_of(max_of(lane[1], lane[5]), max_of(lane[3], lane[7])));
}

/* ---- e^x ----
 * x = n ln2 + r, |r| <= ln2/2; e^r by its Taylor polynomial of degree 7 (error below 1e-8
 * relative), then n goes into the exponent. Adding 1.5 * 2^23 rounds x / ln2 to an integer and
 * leaves it in the low bits. A NaN comes through: v8_min and v8_max give their second argument. */

static inline vec8 exp8(vec8 x) {
    const vec8 magic = v8_set1(12582912.0f);
    const vec8 clamped = v8_min(v8_set1(88.3f), v8_max(v8_set1(-87.3f), x));
    const vec8 shifted = v8_fma(clamped, v8_set1(1.44269504f), magic);
    const vec8 n = v8_sub(shifted, magic);
    vec8 r = v8_fma(n, v8_set1(-0.693145752f), clamped);
    r = v8_fma(n, v8_set1(-1.42860677e-6f), r);
    vec8 p = v8_fma(v8_set1(1.0f / 5040), r, v8_set1(1.0f / 720));
    p = v8_fma(p, r, v8_set1(1.0f / 120));
    p = v8_fma(p, r, v8_set1(1.0f / 24));
    p = v8_fma(p, r, v8_set1(1.0f / 6));
    p = v8_fma(p, r, v8_set1(0.5f));
    p = v8_fma(p, r, v8_set1(1.0f));
    p = v8_fma(p, r, v8_set1(1.0f));
    return v8_zero_below(x, -87.3f, v8_add_exponent(p, shifted));
}

static float exp1(float x) {
    float lane[LANES];
    v8_store(lane, exp8(v8_set1(x)));
    return lane[0];
}

/* The last, partial vector of a row goes through a padded copy: same arithmetic, no tail code. */
static inline vec8 load_some(const float *x, uint32_t count) {
    float lane[LANES] = {0};
    memcpy(lane, x, count * sizeof(float));
    return v8_load(lane);
}

static inline void store_some(float *y, vec8 v, uint32_t count) {
    float lane[LANES];
    v8_store(lane, v);
    memcpy(y, lane, count * sizeof(float));
}

static inline vec8 load_upto(const float *x, uint32_t left) {
    return left >= LANES ? v8_load(x) : load_some(x, left);
}

static inline void store_upto(float *y, vec8 v, uint32_t left) {
    if (left >= LANES) {
        v8_store(y, v);
    } else {
        store_some(y, v, left);
    }
}

static void exp_all(const float *x, uint32_t count, float *y) {
    for (uint32_t i = 0; i < count; i += LANES) {
        store_upto(y + i, exp8(load_upto(x + i, count - i)), count - i);
    }
}

/* ---- elementwise, and over one row ---- */

static void rms_norm(const float *x, const float *weight, uint32_t width, float epsilon, float *y) {
    vec8 squares = v8_set1(0);
    for (uint32_t i = 0; i < width; i += LANES) {
        const vec8 xi = load_upto(x + i, width - i);
        squares = v8_fma(xi, xi, squares);
    }
    const vec8 inverse = v8_set1(1.0f / sqrtf(sum_lanes(squares) / (float)width + epsilon));
    for (uint32_t i = 0; i < width; i += LANES) {
        const uint32_t left = width - i;
        const vec8 unit = v8_mul(load_upto(x + i, left), inverse);
        store_upto(y + i, v8_mul(unit, load_upto(weight + i, left)), left);
    }
}

static void rope(float *x, uint32_t dims, const float *cosines, const float *sines) {
    for (uint32_t i = 0; i < dims; i += LANES) {
        const uint32_t left = dims - i;
        const vec8 xi = load_upto(x + i, left);
        const vec8 turned = v8_mul(v8_swap_pairs(xi), load_upto(sines + i, left));
        store_upto(x + i, v8_fma(xi, load_upto(cosines + i, left), turned), left);
    }
}

static void rope_halves(float *x, uint32_t dims, const float *cosines, const float *sines) {
    const uint32_t half = dims / 2;
    for (uint32_t i = 0; i < half; i += LANES) {
        const uint32_t left = half - i;
        const vec8 low = load_upto(x + i, left), high = load_upto(x + half + i, left);
        const vec8 low_turned = v8_mul(high, load_upto(sines + i, left));
        const vec8 high_turned = v8_mul(low, load_upto(sines + half + i, left));
        store_upto(x + i, v8_fma(low, load_upto(cosines + i, left), low_turned), left);
        store_upto(
            x + half + i, v8_fma(high, load_upto(cosines + half + i, left), high_turned), left);
    }
}

static void add(float *x, const float *y, uint32_t count) {
    for (uint32_t i = 0; i < count; i += LANES) {
        const uint32_t left = count - i;
        store_upto(x + i, v8_add(load_upto(x + i, left), load_upto(y + i, left)), left);
    }
}

static void swiglu(const float *gate, const float *up, uint32_t count, float *out) {
    const vec8 one = v8_set1(1);
    for (uint32_t i = 0; i < count; i += LANES) {
        const uint32_t left = count - i;
        const vec8 g = load_upto(gate + i, left);
        const vec8 silu = v8_div(g, v8_add(one, exp8(v8_sub(v8_set1(0), g))));
        store_upto(out + i, v8_mul(silu, load_upto(up + i, left)), left);
    }
}

/* 0.5 x (1 + tanh(u)) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3) */
static void geglu(const float *gate, const float *up, uint32_t count, float *out) {
    const vec8 one = v8_set1(1), cubic = v8_set1(0.044715f), factor = v8_set1(-1.59576912f);
    for (uint32_t i = 0; i < count; i += LANES) {
        const uint32_t left = count - i;
        const vec8 g = load_upto(gate + i, left);
        const vec8 inner = v8_fma(v8_mul(v8_mul(g, g), g), cubic, g);
        const vec8 gelu = v8_div(g, v8_add(one, exp8(v8_mul(inner, factor))));
        store_upto(out + i, v8_mul(gelu, load_upto(up + i, left)), left);
    }
}

/* tanh(y) = 1 - 2 / (1 + e^2y) */
static void softcap(float *x, uint32_t count, float cap) {
    const vec8 one = v8_set1(1), two = v8_set1(2), inverse = v8_set1(2 / cap);
    for (uint32_t i = 0; i < count; i += LANES) {
        const uint32_t left = count - i;
        const vec8 e = exp8(v8_mul(load_upto(x + i, left), inverse));
        const vec8 tanh = v8_sub(one, v8_div(two, v8_add(one, e)));
        store_upto(x + i, v8_mul(tanh, v8_set1(cap)), left);
    }
}

static void scale(const float *x, uint32_t count, float factor, float *y) {
    const vec8 f = v8_set1(factor);
    for (uint32_t i = 0; i < count; i += LANES) {
        store_upto(y + i, v8_mul(load_upto(x + i, count - i), f), count - i);
    }
}

#include "kernels_gemm.h"

#include "kernels_attention.h"
#include "kernels_weights.h"

#include "kernels_few.h"

const struct kvl_cpu_kernels KVL_KERNELS_TABLE = {
    .name = KVL_KERNELS_NAME,
    .available = KVL_KERNELS_AVAILABLE,
    .unpack_strip = unpack_strip,
    .gemm = gemm,
    .matvec = matvec,
    .multiply_few = multiply_few,
    .rms_norm = rms_norm,
    .rope = rope,
    .rope_halves = rope_halves,
    .add = add,
    .swiglu = swiglu,
    .geglu = geglu,
    .softcap = softcap,
    .scale = scale,
    .store_kv = store_kv,
    .load_keys = load_keys,
    .load_values = load_values,
    .score_direct = score_direct,
    .gather_direct = gather_direct,
    .softmax_tile = softmax_tile,
    .softmax_merge = softmax_merge,
    .exp = exp_all,
};
