/* kernels.h - the arithmetic of the CPU backend, one table of functions per instruction set.
 *
 * The bits are a contract. Every sum runs in one fixed order that depends on nothing but the
 * shapes of the model: a product sums over k sequentially, one fused multiply-add per k, SIMD lanes
 * being different outputs; a reduction over a row keeps 8 lane sums, element i going to lane i % 8,
 * and adds the lanes as ((0+4)+(2+6))+((1+5)+(3+7)). All tables are compiled from the same
 * kernels_body.h, so they give the same bits and share one arithmetic id.
 *
 * Packed panel of 32 weight rows (pack.h makes it), `columns` = k, all little endian:
 *
 *   F32, F16, BF16   [k][32] elements
 *
 * Quantized types, per block of quant.h (256 or 32 k); a group is 16 or 32 k:
 *
 *   d[32] f16
 *   m[32] f16                   with a minimum
 *   scales [groups][32] i8      with scales; of 4 bits: the scale in the low nibble, the minimum in
 *   mins   [groups][32] i8      the high one; else minima follow
 *   per 32 k: low plane, high plane
 *
 * The planes hold the codes' low 8, 4 or 2 bits and what is left of them, 0, 1 or 2 bits, as words
 * [32 / w k][32 rows] u32, a word being w = 32 / bits consecutive k of one row: its k number
 * 4 q + i lies at bit 8 i + bits * q, so one shift and one mask give 4 k as 4 bytes. Codes of 4
 * bits less an offset are kept as two's complement.
 *
 * It takes as many bytes as the rows take in the file, but for the 6-bit scales of K-quants, which
 * become bytes: Q3_K + 3.6 %, Q4_K + 2.8 %, Q5_K + 2.3 %, IQ4_XS + 1.5 %. */
#ifndef KVL_CPU_KERNELS_H
#define KVL_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../backend.h"

enum {
    KVL_PANEL_ROWS = 32,  /* weight rows of a packed panel */
    KVL_STRIP_ROWS = 16,  /* outputs of a strip: what the GEMM kernel makes at a time */
    KVL_TILE_TOKENS = 64, /* positions of an attention tile, counted from position 0 */
    KVL_DIRECT_ROWS = 6,  /* most query rows for score_direct and gather_direct */
    KVL_FEW_ROWS = 8,     /* most rows for which multiply_few is faster than strips */
};

/* y[rows][16] = x[rows][k] * strip[k][16], or y += with `accumulate` (the sum then starts from y).
 * Strides in floats. */
struct kvl_gemm {
    const float *x;
    size_t x_stride;
    const float *strip;
    float *y;
    size_t y_stride;
    uint32_t rows;
    uint32_t k;
    bool accumulate;
};

/* y[rows][32] = panel * x[rows][columns], or y += with `accumulate`, for a few rows of x. Strides
 * in floats. */
struct kvl_few {
    uint32_t type; /* a quantized one (kvl_quant_of) */
    uint32_t columns;
    const void *panel;
    const float *x;
    size_t x_stride;
    float *y;
    size_t y_stride;
    uint32_t rows; /* at least 2 */
    bool accumulate;
};

/* Keys or values of one tile: the address of each position's head vector. */
struct kvl_kv_tile {
    const uint8_t *const *positions; /* [count], count <= KVL_TILE_TOKENS */
    uint32_t count;
    uint32_t dim;
    enum kvl_kv_dtype dtype;
    /* What will be read next, to be fetched meanwhile; next_count 0: nothing. */
    const uint8_t *const *next;
    uint32_t next_count;
};

/* A row's softmax over a part of the context, not yet normalised: value = out / sum. */
struct kvl_softmax {
    float max;
    float sum;
};

struct kvl_cpu_kernels {
    const char *name;
    bool (*available)(void);

    /* Strip `half` (0 or 1) of a panel as f32 [columns][16]. */
    void (*unpack_strip)(
        uint32_t type, const void *panel, uint32_t half, uint32_t columns, float *strip);
    void (*gemm)(const struct kvl_gemm *product);
    /* y[32] = panel * x[columns]; the bits of unpack_strip and gemm with one row. */
    void (*matvec)(uint32_t type, const void *panel, uint32_t columns, const float *x, float *y,
        bool accumulate);
    void (*multiply_few)(const struct kvl_few *product); /* the bits of matvec for each row */

    /* y = x / sqrt(mean(x^2) + epsilon) * weight */
    void (*rms_norm)(const float *x, const float *weight, uint32_t width, float epsilon, float *y);
    /* Turns the pairs (2i, 2i+1) of x[dims]. cosines: c0 c0 c1 c1 ..., sines: -s0 s0 -s1 s1 ... */
    void (*rope)(float *x, uint32_t dims, const float *cosines, const float *sines);
    /* Likewise the pairs (i, i + dims/2). cosines: c0 c1 ... c0 c1 ..., sines: -s0 -s1 ... s0 ...
     */
    void (*rope_halves)(float *x, uint32_t dims, const float *cosines, const float *sines);
    void (*add)(float *x, const float *y, uint32_t count); /* x += y */
    /* out = gate / (1 + exp(-gate)) * up; out may be gate. */
    void (*swiglu)(const float *gate, const float *up, uint32_t count, float *out);
    /* out = gelu(gate) * up, gelu by its tanh form (backend.h); out may be gate. */
    void (*geglu)(const float *gate, const float *up, uint32_t count, float *out);
    void (*softcap)(float *x, uint32_t count, float cap); /* x = cap * tanh(x / cap) */
    void (*scale)(const float *x, uint32_t count, float factor, float *y);

    void (*store_kv)(enum kvl_kv_dtype dtype, const float *x, uint32_t count, void *out);
    /* f32 [ceil(count/16)][dim][16 positions]; positions from count on are 0. */
    void (*load_keys)(const struct kvl_kv_tile *tile, float *strips);
    /* f32 [ceil(dim/16)][64 positions][16 channels]; channels from dim on are 0. */
    void (*load_values)(const struct kvl_kv_tile *tile, float *strips);
    /* For few rows, straight from the tile; the bits of load_keys and gemm, load_values and gemm.
     * scores[rows][64] = x[rows][dim] . keys; scores from count on are unspecified. */
    void (*score_direct)(
        const struct kvl_kv_tile *tile, const float *x, uint32_t rows, float *scores);
    /* out[rows][out_stride] += weights[rows][64] values */
    void (*gather_direct)(const struct kvl_kv_tile *tile, const float *weights, uint32_t rows,
        float *out, size_t out_stride);
    /* scores[count] -> exp(scores - max) in place, where max takes this tile in. out[dim] and the
     * sum so far are rescaled to the new max. */
    void (*softmax_tile)(
        float *scores, uint32_t count, struct kvl_softmax *softmax, float *out, uint32_t dim);
    /* Joins the next part of the context to what came before it. */
    void (*softmax_merge)(struct kvl_softmax *softmax, float *out, const struct kvl_softmax *next,
        const float *next_out, uint32_t dim);

    /* Elementwise e^x; within 2 ulp for -87.3 <= x <= 88.3, 0 below, clamped above. */
    void (*exp)(const float *x, uint32_t count, float *y);
};

extern const struct kvl_cpu_kernels kvl_cpu_kernels_portable;
#ifdef __x86_64__
extern const struct kvl_cpu_kernels kvl_cpu_kernels_avx2;
extern const struct kvl_cpu_kernels kvl_cpu_kernels_avx512;
#endif
#ifdef __aarch64__
extern const struct kvl_cpu_kernels kvl_cpu_kernels_neon;
#endif

/* All tables of this build, the fastest first, then NULL; the last one runs everywhere. */
extern const struct kvl_cpu_kernels *const kvl_cpu_kernels_all[];

/* The fastest table that this CPU can run. */
const struct kvl_cpu_kernels *kvl_cpu_kernels_best(void);
/* NULL: there is none of that name, or this CPU cannot run it. */
const struct kvl_cpu_kernels *kvl_cpu_kernels_named(const char *name);

#endif
