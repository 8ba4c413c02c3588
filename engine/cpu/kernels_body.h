/* kernels_body.h - every kernel, written once over 8-lane vectors and compiled once per
 * instruction set. The including file defines first:
 *
 *   vec8, vec8i          8 lanes of f32, of u32
 *   v8_*, v8i_*          the operations on them; each rounds once per lane, as IEEE 754 says
 *   KVL_KERNELS(name)    the table's and functions' names
 *
 * Order of operations is the contract of kernels.h; vectors only carry independent lanes. */
#include <math.h>
#include <string.h>

#include "half.h"
#include "kernels.h"

enum {
    LANES = 8,
    GEMM_ROWS = 6,
    QUANT_BLOCK = 32,
    PANEL_VECTORS = KVL_PANEL_ROWS / LANES,
    CACHE_LINE = 64,
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

/* ---- weights: 8 rows of a panel, one k ----
 * q * d is exact in f32 (4 or 8 bits times 11), so the fused q * d + m of Q4_1 rounds exactly where
 * the format's definition, product and sum apart, does. */

static inline vec8 q4_1_weight(vec8i packed, int nibble, vec8 d, vec8 m) {
    return v8_fma(v8i_to_f32(v8i_and(v8i_shift_right(packed, 4 * nibble), 15)), d, m);
}

static inline vec8 q8_0_weight(vec8i packed, int byte, vec8 d) {
    return v8_mul(v8i_to_f32(v8i_sign_extend_byte(packed, byte)), d);
}

enum {
    Q4_1_GROUP_BYTES = KVL_PANEL_ROWS * 4, /* 8 k of 32 rows */
    Q4_1_BLOCK_BYTES = KVL_PANEL_ROWS * 20,
    Q8_0_GROUP_BYTES = KVL_PANEL_ROWS * 4, /* 4 k of 32 rows */
    Q8_0_BLOCK_BYTES = KVL_PANEL_ROWS * 34,
    SCALE_BYTES = KVL_PANEL_ROWS * 2,
};

/* ---- strips of weights for the GEMM ---- */

static void unpack_q4_1(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    for (uint32_t k = 0; k < columns; k += QUANT_BLOCK, panel += Q4_1_BLOCK_BYTES) {
        for (uint32_t v = 0; v < 2; v++) {
            const uint32_t row = half * KVL_STRIP_ROWS + v * LANES;
            const vec8 d = v8_load_f16(panel + row * 2);
            const vec8 m = v8_load_f16(panel + SCALE_BYTES + row * 2);
            const uint8_t *quants = panel + 2 * SCALE_BYTES + row * 4;
            float *out = strip + (size_t)k * KVL_STRIP_ROWS + v * LANES;
            for (uint32_t g = 0; g < QUANT_BLOCK / 8; g++) {
                const vec8i packed = v8i_load(quants + g * Q4_1_GROUP_BYTES);
                for (int j = 0; j < 8; j++, out += KVL_STRIP_ROWS) {
                    v8_store(out, q4_1_weight(packed, j, d, m));
                }
            }
        }
    }
}

static void unpack_q8_0(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    for (uint32_t k = 0; k < columns; k += QUANT_BLOCK, panel += Q8_0_BLOCK_BYTES) {
        for (uint32_t v = 0; v < 2; v++) {
            const uint32_t row = half * KVL_STRIP_ROWS + v * LANES;
            const vec8 d = v8_load_f16(panel + row * 2);
            const uint8_t *quants = panel + SCALE_BYTES + row * 4;
            float *out = strip + (size_t)k * KVL_STRIP_ROWS + v * LANES;
            for (uint32_t g = 0; g < QUANT_BLOCK / 4; g++) {
                const vec8i packed = v8i_load(quants + g * Q8_0_GROUP_BYTES);
                for (int j = 0; j < 4; j++, out += KVL_STRIP_ROWS) {
                    v8_store(out, q8_0_weight(packed, j, d));
                }
            }
        }
    }
}

static void unpack_f16(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    panel += half * KVL_STRIP_ROWS * 2;
    for (uint32_t k = 0; k < columns; k++, panel += KVL_PANEL_ROWS * 2) {
        v8_store(strip + (size_t)k * KVL_STRIP_ROWS, v8_load_f16(panel));
        v8_store(strip + (size_t)k * KVL_STRIP_ROWS + LANES, v8_load_f16(panel + LANES * 2));
    }
}

static void unpack_f32(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    panel += half * KVL_STRIP_ROWS * 4;
    for (uint32_t k = 0; k < columns; k++, panel += KVL_PANEL_ROWS * 4) {
        memcpy(strip + (size_t)k * KVL_STRIP_ROWS, panel, KVL_STRIP_ROWS * 4);
    }
}

static void unpack_strip(
    uint32_t type, const void *panel, uint32_t half, uint32_t columns, float *strip) {
    switch (type) {
    case KVL_GGML_Q4_1:
        unpack_q4_1(panel, half, columns, strip);
        break;
    case KVL_GGML_Q8_0:
        unpack_q8_0(panel, half, columns, strip);
        break;
    case KVL_GGML_F16:
        unpack_f16(panel, half, columns, strip);
        break;
    default:
        unpack_f32(panel, half, columns, strip);
    }
}

/* ---- GEMM: up to 6 rows by 16 outputs stay in 12 registers over all of k ---- */

static inline __attribute__((always_inline)) void gemm_rows(
    const struct kvl_gemm *g, uint32_t row, const uint32_t rows) {
    const float *x = g->x + row * g->x_stride;
    const float *strip = g->strip;
    float *y = g->y + row * g->y_stride;
    vec8 sum[GEMM_ROWS][2];
    for (uint32_t r = 0; r < rows; r++) {
        sum[r][0] = g->accumulate ? v8_load(y + r * g->y_stride) : v8_set1(0);
        sum[r][1] = g->accumulate ? v8_load(y + r * g->y_stride + LANES) : v8_set1(0);
    }
    for (uint32_t k = 0; k < g->k; k++, strip += KVL_STRIP_ROWS) {
        const vec8 w0 = v8_load(strip);
        const vec8 w1 = v8_load(strip + LANES);
        for (uint32_t r = 0; r < rows; r++) {
            const vec8 xk = v8_set1(x[r * g->x_stride + k]);
            sum[r][0] = v8_fma(w0, xk, sum[r][0]);
            sum[r][1] = v8_fma(w1, xk, sum[r][1]);
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        v8_store(y + r * g->y_stride, sum[r][0]);
        v8_store(y + r * g->y_stride + LANES, sum[r][1]);
    }
}

static void gemm(const struct kvl_gemm *g) {
    uint32_t row = 0;
    for (; row + GEMM_ROWS <= g->rows; row += GEMM_ROWS) {
        gemm_rows(g, row, GEMM_ROWS);
    }
    switch (g->rows - row) {
    case 1:
        gemm_rows(g, row, 1);
        break;
    case 2:
        gemm_rows(g, row, 2);
        break;
    case 3:
        gemm_rows(g, row, 3);
        break;
    case 4:
        gemm_rows(g, row, 4);
        break;
    case 5:
        gemm_rows(g, row, 5);
        break;
    default:
        break;
    }
}

/* ---- one token: weights are unpacked in registers ---- */

/* One k of all rows at a time: four chains of sums, and few enough values for 16 registers. */
static inline void matvec_q4_1(const uint8_t *panel, uint32_t columns, const float *x, vec8 *sum) {
    for (uint32_t k = 0; k < columns; k += QUANT_BLOCK, panel += Q4_1_BLOCK_BYTES) {
        const uint8_t *quants = panel + 2 * SCALE_BYTES;
        vec8 d[PANEL_VECTORS], m[PANEL_VECTORS];
        for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
            d[v] = v8_load_f16(panel + v * LANES * 2);
            m[v] = v8_load_f16(panel + SCALE_BYTES + v * LANES * 2);
        }
        for (uint32_t g = 0; g < QUANT_BLOCK / 8; g++, quants += Q4_1_GROUP_BYTES) {
            vec8i packed[PANEL_VECTORS];
            for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
                packed[v] = v8i_load(quants + v * LANES * 4);
            }
            for (int j = 0; j < 8; j++) {
                const vec8 xk = v8_set1(x[k + g * 8 + (uint32_t)j]);
                for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
                    sum[v] = v8_fma(q4_1_weight(packed[v], j, d[v], m[v]), xk, sum[v]);
                }
            }
        }
    }
}

static inline void matvec_q8_0(const uint8_t *panel, uint32_t columns, const float *x, vec8 *sum) {
    for (uint32_t k = 0; k < columns; k += QUANT_BLOCK, panel += Q8_0_BLOCK_BYTES) {
        const uint8_t *quants = panel + SCALE_BYTES;
        vec8 d[PANEL_VECTORS];
        for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
            d[v] = v8_load_f16(panel + v * LANES * 2);
        }
        for (uint32_t g = 0; g < QUANT_BLOCK / 4; g++, quants += Q8_0_GROUP_BYTES) {
            vec8i packed[PANEL_VECTORS];
            for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
                packed[v] = v8i_load(quants + v * LANES * 4);
            }
            for (int j = 0; j < 4; j++) {
                const vec8 xk = v8_set1(x[k + g * 4 + (uint32_t)j]);
                for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
                    sum[v] = v8_fma(q8_0_weight(packed[v], j, d[v]), xk, sum[v]);
                }
            }
        }
    }
}

static inline void matvec_f16(const uint8_t *panel, uint32_t columns, const float *x, vec8 *sum) {
    for (uint32_t k = 0; k < columns; k++) {
        const vec8 xk = v8_set1(x[k]);
        for (uint32_t v = 0; v < PANEL_VECTORS; v++, panel += LANES * 2) {
            sum[v] = v8_fma(v8_load_f16(panel), xk, sum[v]);
        }
    }
}

static inline void matvec_f32(const float *panel, uint32_t columns, const float *x, vec8 *sum) {
    for (uint32_t k = 0; k < columns; k++) {
        const vec8 xk = v8_set1(x[k]);
        for (uint32_t v = 0; v < PANEL_VECTORS; v++, panel += LANES) {
            sum[v] = v8_fma(v8_load(panel), xk, sum[v]);
        }
    }
}

static void matvec(
    uint32_t type, const void *panel, uint32_t columns, const float *x, float *y, bool accumulate) {
    vec8 sum[PANEL_VECTORS];
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        sum[v] = accumulate ? v8_load(y + v * LANES) : v8_set1(0);
    }
    switch (type) {
    case KVL_GGML_Q4_1:
        matvec_q4_1(panel, columns, x, sum);
        break;
    case KVL_GGML_Q8_0:
        matvec_q8_0(panel, columns, x, sum);
        break;
    case KVL_GGML_F16:
        matvec_f16(panel, columns, x, sum);
        break;
    default:
        matvec_f32(panel, columns, x, sum);
    }
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        v8_store(y + v * LANES, sum[v]);
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

static void swiglu(const float *gate, const float *up, uint32_t count, float *out) {
    const vec8 one = v8_set1(1);
    for (uint32_t i = 0; i < count; i += LANES) {
        const uint32_t left = count - i;
        const vec8 g = load_upto(gate + i, left);
        const vec8 silu = v8_div(g, v8_add(one, exp8(v8_sub(v8_set1(0), g))));
        store_upto(out + i, v8_mul(silu, load_upto(up + i, left)), left);
    }
}

static void scale(const float *x, uint32_t count, float factor, float *y) {
    const vec8 f = v8_set1(factor);
    for (uint32_t i = 0; i < count; i += LANES) {
        store_upto(y + i, v8_mul(load_upto(x + i, count - i), f), count - i);
    }
}

/* ---- KV elements ---- */

static void store_kv(enum kvl_kv_dtype dtype, const float *x, uint32_t count, void *out) {
    uint16_t *halves = out;
    uint32_t i = 0;
    switch (dtype) {
    case KVL_KV_F16:
        for (; i + LANES <= count; i += LANES) {
            v8_store_f16(halves + i, v8_load(x + i));
        }
        for (; i < count; i++) {
            halves[i] = kvl_f32_to_f16(x[i]);
        }
        break;
    case KVL_KV_BF16:
        for (; i < count; i++) {
            halves[i] = kvl_f32_to_bf16(x[i]);
        }
        break;
    case KVL_KV_F32:
        memcpy(out, x, count * sizeof(float));
        break;
    }
}

static inline vec8 load_kv8(enum kvl_kv_dtype dtype, const uint8_t *vector, uint32_t channel) {
    switch (dtype) {
    case KVL_KV_F16:
        return v8_load_f16(vector + channel * 2);
    case KVL_KV_BF16:
        return v8_load_bf16(vector + channel * 2);
    default:
        return v8_load((const float *)(const void *)(vector + channel * 4));
    }
}

static float load_kv1(enum kvl_kv_dtype dtype, const uint8_t *vector, uint32_t channel) {
    uint16_t half;
    float value;
    switch (dtype) {
    case KVL_KV_F16:
        memcpy(&half, vector + channel * 2, sizeof half);
        return kvl_f16_to_f32(half);
    case KVL_KV_BF16:
        memcpy(&half, vector + channel * 2, sizeof half);
        return kvl_bf16_to_f32(half);
    default:
        memcpy(&value, vector + channel * 4, sizeof value);
        return value;
    }
}

static inline __attribute__((always_inline)) void load_keys_as(
    const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, float *strips) {
    const uint32_t dim = tile->dim;
    for (uint32_t p = 0; p < tile->count; p += LANES) {
        float *out =
            strips + (size_t)(p / KVL_STRIP_ROWS) * dim * KVL_STRIP_ROWS + p % KVL_STRIP_ROWS;
        const uint32_t full = tile->count - p < LANES ? tile->count - p : LANES;
        uint32_t c = 0;
        for (; c + LANES <= dim; c += LANES) {
            vec8 square[LANES];
            for (uint32_t i = 0; i < LANES; i++) {
                square[i] = i < full ? load_kv8(dtype, tile->positions[p + i], c) : v8_set1(0);
            }
            v8_transpose(square);
            for (uint32_t i = 0; i < LANES; i++) {
                v8_store(out + (size_t)(c + i) * KVL_STRIP_ROWS, square[i]);
            }
        }
        for (; c < dim; c++) {
            for (uint32_t i = 0; i < LANES; i++) {
                out[(size_t)c * KVL_STRIP_ROWS + i] =
                    i < full ? load_kv1(dtype, tile->positions[p + i], c) : 0;
            }
        }
    }
}

/* The GEMM reads whole strips of 16 positions; those behind the last key count as 0. */
static void clear_odd_keys(const struct kvl_kv_tile *tile, float *strips) {
    const uint32_t in_strip = (tile->count + LANES - 1) / LANES * LANES % KVL_STRIP_ROWS;
    if (in_strip == 0) {
        return;
    }
    float *strip =
        strips + (size_t)(tile->count / KVL_STRIP_ROWS) * tile->dim * KVL_STRIP_ROWS + in_strip;
    for (uint32_t c = 0; c < tile->dim; c++) {
        v8_store(strip + (size_t)c * KVL_STRIP_ROWS, v8_set1(0));
    }
}

static void load_keys(const struct kvl_kv_tile *tile, float *strips) {
    switch (tile->dtype) {
    case KVL_KV_F16:
        load_keys_as(KVL_KV_F16, tile, strips);
        break;
    case KVL_KV_BF16:
        load_keys_as(KVL_KV_BF16, tile, strips);
        break;
    case KVL_KV_F32:
        load_keys_as(KVL_KV_F32, tile, strips);
        break;
    }
    clear_odd_keys(tile, strips);
}

static inline __attribute__((always_inline)) void load_values_as(
    const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, float *strips) {
    const uint32_t dim = tile->dim;
    const uint32_t padded = (dim + KVL_STRIP_ROWS - 1) / KVL_STRIP_ROWS * KVL_STRIP_ROWS;
    const size_t strip_floats = (size_t)KVL_TILE_TOKENS * KVL_STRIP_ROWS;
    for (uint32_t p = 0; p < tile->count; p++) {
        const uint8_t *vector = tile->positions[p];
        uint32_t c = 0;
        for (; c + LANES <= dim; c += LANES) {
            v8_store(strips + c / KVL_STRIP_ROWS * strip_floats + p * KVL_STRIP_ROWS +
                         c % KVL_STRIP_ROWS,
                load_kv8(dtype, vector, c));
        }
        for (; c < padded; c++) {
            strips[c / KVL_STRIP_ROWS * strip_floats + p * KVL_STRIP_ROWS + c % KVL_STRIP_ROWS] =
                c < dim ? load_kv1(dtype, vector, c) : 0;
        }
    }
}

static void load_values(const struct kvl_kv_tile *tile, float *strips) {
    switch (tile->dtype) {
    case KVL_KV_F16:
        load_values_as(KVL_KV_F16, tile, strips);
        break;
    case KVL_KV_BF16:
        load_values_as(KVL_KV_BF16, tile, strips);
        break;
    case KVL_KV_F32:
        load_values_as(KVL_KV_F32, tile, strips);
        break;
    }
}

/* ---- attention of a few rows: keys and values are widened in registers, used once, not kept ----
 * `rows` is a constant where these are inlined. */

#define INLINE static inline __attribute__((always_inline))

/* Channels c to c + 7 of 8 positions, transposed: square[i] is channel c + i. */
INLINE void load_square(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, uint32_t p,
    uint32_t c, vec8 square[LANES]) {
    for (uint32_t i = 0; i < LANES; i++) {
        square[i] = p + i < tile->count ? load_kv8(dtype, tile->positions[p + i], c) : v8_set1(0);
    }
    v8_transpose(square);
}

/* Waiting for memory is most of a decode step at long context: positions p to p + count - 1 of the
 * next tile come in while these of this one are computed. */
INLINE void fetch_ahead(
    const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, uint32_t p, uint32_t count) {
    const uint32_t bytes = tile->dim * (dtype == KVL_KV_F32 ? 4 : 2);
    for (; count > 0 && p < tile->next_count; count--, p++) {
        for (uint32_t i = 0; i < bytes; i += CACHE_LINE) {
            __builtin_prefetch(tile->next[p] + i);
        }
    }
}

/* Scores of 16 positions: two chains of sums per row. */
INLINE void score_strip(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, uint32_t p,
    const float *x, const uint32_t rows, float *scores) {
    vec8 sum[KVL_DIRECT_ROWS][2];
    for (uint32_t r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = v8_set1(0);
    }
    uint32_t c = 0;
    for (; c + LANES <= tile->dim; c += LANES) {
        vec8 low[LANES], high[LANES];
        load_square(dtype, tile, p, c, low);
        load_square(dtype, tile, p + LANES, c, high);
        for (uint32_t i = 0; i < LANES; i++) {
            for (uint32_t r = 0; r < rows; r++) {
                const vec8 xc = v8_set1(x[r * tile->dim + c + i]);
                sum[r][0] = v8_fma(low[i], xc, sum[r][0]);
                sum[r][1] = v8_fma(high[i], xc, sum[r][1]);
            }
        }
    }
    for (; c < tile->dim; c++) {
        float keys[KVL_STRIP_ROWS] = {0};
        for (uint32_t i = 0; i < KVL_STRIP_ROWS && p + i < tile->count; i++) {
            keys[i] = load_kv1(dtype, tile->positions[p + i], c);
        }
        for (uint32_t r = 0; r < rows; r++) {
            const vec8 xc = v8_set1(x[r * tile->dim + c]);
            sum[r][0] = v8_fma(v8_load(keys), xc, sum[r][0]);
            sum[r][1] = v8_fma(v8_load(keys + LANES), xc, sum[r][1]);
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        v8_store(scores + r * KVL_TILE_TOKENS + p, sum[r][0]);
        v8_store(scores + r * KVL_TILE_TOKENS + p + LANES, sum[r][1]);
    }
}

INLINE void score_rows(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile,
    const float *x, const uint32_t rows, float *scores) {
    for (uint32_t p = 0; p < tile->count; p += KVL_STRIP_ROWS) {
        fetch_ahead(dtype, tile, p, KVL_STRIP_ROWS);
        score_strip(dtype, tile, p, x, rows, scores);
    }
}

/* `vectors` times 8 channels from c on; rows * vectors sums stay in registers over all positions.
 */
INLINE void gather_channels(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile,
    uint32_t c, const float *weights, const uint32_t rows, const uint32_t vectors, float *out,
    size_t out_stride) {
    vec8 sum[KVL_DIRECT_ROWS][4];
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < vectors; v++) {
            sum[r][v] = v8_load(out + r * out_stride + c + v * LANES);
        }
    }
    for (uint32_t p = 0; p < tile->count; p++) {
        vec8 value[4];
        fetch_ahead(dtype, tile, p, c == 0);
        for (uint32_t v = 0; v < vectors; v++) {
            value[v] = load_kv8(dtype, tile->positions[p], c + v * LANES);
        }
        for (uint32_t r = 0; r < rows; r++) {
            const vec8 weight = v8_set1(weights[r * KVL_TILE_TOKENS + p]);
            for (uint32_t v = 0; v < vectors; v++) {
                sum[r][v] = v8_fma(value[v], weight, sum[r][v]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < vectors; v++) {
            v8_store(out + r * out_stride + c + v * LANES, sum[r][v]);
        }
    }
}

INLINE void gather_rows(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile,
    const float *weights, const uint32_t rows, float *out, size_t out_stride) {
    const uint32_t vectors = rows <= 3 ? 4 : 2;
    uint32_t c = 0;
    for (; c + vectors * LANES <= tile->dim; c += vectors * LANES) {
        gather_channels(dtype, tile, c, weights, rows, vectors, out, out_stride);
    }
    for (; c + LANES <= tile->dim; c += LANES) {
        gather_channels(dtype, tile, c, weights, rows, 1, out, out_stride);
    }
    for (; c < tile->dim; c++) {
        for (uint32_t r = 0; r < rows; r++) {
            float *sum = out + r * out_stride + c;
            for (uint32_t p = 0; p < tile->count; p++) {
                *sum = fmaf(
                    load_kv1(dtype, tile->positions[p], c), weights[r * KVL_TILE_TOKENS + p], *sum);
            }
        }
    }
}

/* One copy of the inlined code per dtype and number of rows. */
#define FOR_ROWS(call, dtype)                                                                      \
    switch (rows) {                                                                                \
    case 1:                                                                                        \
        call(dtype, 1);                                                                            \
        break;                                                                                     \
    case 2:                                                                                        \
        call(dtype, 2);                                                                            \
        break;                                                                                     \
    case 3:                                                                                        \
        call(dtype, 3);                                                                            \
        break;                                                                                     \
    case 4:                                                                                        \
        call(dtype, 4);                                                                            \
        break;                                                                                     \
    case 5:                                                                                        \
        call(dtype, 5);                                                                            \
        break;                                                                                     \
    default:                                                                                       \
        call(dtype, KVL_DIRECT_ROWS);                                                              \
    }
#define FOR_DTYPE_AND_ROWS(call)                                                                   \
    switch (tile->dtype) {                                                                         \
    case KVL_KV_F16:                                                                               \
        FOR_ROWS(call, KVL_KV_F16)                                                                 \
        break;                                                                                     \
    case KVL_KV_BF16:                                                                              \
        FOR_ROWS(call, KVL_KV_BF16)                                                                \
        break;                                                                                     \
    case KVL_KV_F32:                                                                               \
        FOR_ROWS(call, KVL_KV_F32)                                                                 \
        break;                                                                                     \
    }

static void score_direct(
    const struct kvl_kv_tile *tile, const float *x, uint32_t rows, float *scores) {
#define SCORE(dtype, constant_rows) score_rows(dtype, tile, x, constant_rows, scores)
    FOR_DTYPE_AND_ROWS(SCORE)
}

static void gather_direct(const struct kvl_kv_tile *tile, const float *weights, uint32_t rows,
    float *out, size_t out_stride) {
#define GATHER(dtype, constant_rows)                                                               \
    gather_rows(dtype, tile, weights, constant_rows, out, out_stride)
    FOR_DTYPE_AND_ROWS(GATHER)
}

/* ---- online softmax ---- */

static void softmax_tile(
    float *scores, uint32_t count, struct kvl_softmax *softmax, float *out, uint32_t dim) {
    const uint32_t padded = (count + LANES - 1) / LANES * LANES;
    for (uint32_t i = count; i < padded; i++) {
        scores[i] = -INFINITY; /* e^-inf = 0: changes neither max nor sum */
    }
    vec8 max = v8_load(scores);
    for (uint32_t i = LANES; i < padded; i += LANES) {
        max = v8_max(max, v8_load(scores + i));
    }
    const float new_max = max_of(softmax->max, max_lanes(max));
    vec8 sum = v8_set1(0);
    for (uint32_t i = 0; i < padded; i += LANES) {
        const vec8 p = exp8(v8_sub(v8_load(scores + i), v8_set1(new_max)));
        v8_store(scores + i, p);
        sum = v8_add(sum, p);
    }
    if (softmax->max == new_max) { /* e^0 = 1: nothing to rescale */
        softmax->sum += sum_lanes(sum);
        return;
    }
    const float keep = exp1(softmax->max - new_max);
    scale(out, dim, keep, out);
    softmax->sum = softmax->sum * keep + sum_lanes(sum);
    softmax->max = new_max;
}

static void softmax_merge(struct kvl_softmax *softmax, float *out, const struct kvl_softmax *next,
    const float *next_out, uint32_t dim) {
    const float max = max_of(softmax->max, next->max);
    const float keep = exp1(softmax->max - max);
    const float take = exp1(next->max - max);
    for (uint32_t i = 0; i < dim; i += LANES) {
        const uint32_t left = dim - i;
        const vec8 kept = v8_mul(load_upto(out + i, left), v8_set1(keep));
        store_upto(out + i, v8_fma(load_upto(next_out + i, left), v8_set1(take), kept), left);
    }
    softmax->sum = softmax->sum * keep + next->sum * take;
    softmax->max = max;
}

const struct kvl_cpu_kernels KVL_KERNELS_TABLE = {
    .name = KVL_KERNELS_NAME,
    .available = KVL_KERNELS_AVAILABLE,
    .unpack_strip = unpack_strip,
    .gemm = gemm,
    .matvec = matvec,
    .rms_norm = rms_norm,
    .rope = rope,
    .swiglu = swiglu,
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
