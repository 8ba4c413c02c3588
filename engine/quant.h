/* quant.h - ggml's quantized weight types: one row of a table each, and one function that takes a
 * block of the file apart. Everything else (a row as f32, the CPU's panels, the kernels) is made
 * from these, so a new type is a row here and its function in quant.c.
 *
 * A block is `block` consecutive weights of a row; `group` of them share a scale. Weight k has a
 * code of `bits` bits, and with g = k / group
 *
 *   value = code - offset, or codebook[code] (KVL_QUANT_CODEBOOK)
 *   w = d * scale[g] * value                              KVL_QUANT_NO_MIN
 *   w = d * scale[g] * value + m                          KVL_QUANT_ADD_MIN
 *   w = d * scale[g] * value - m * min[g]                 KVL_QUANT_SUBTRACT_MIN
 *
 * d and m are f16; scale and min are integers of scale_bits bits, 1 where scale_bits is 0. All
 * products are exact in f32 (at most 24 significant bits), so the only rounding is that of the one
 * sum, and it makes no difference whether the product goes into it fused. */
#ifndef KVL_QUANT_H
#define KVL_QUANT_H

#include <stdbool.h>
#include <stdint.h>

#include "gguf.h"

enum {
    KVL_QUANT_BLOCK_MAX = 256,
    KVL_QUANT_GROUPS_MAX = 16,
    KVL_QUANT_CODEBOOK = -1, /* in place of an offset */
};

enum kvl_quant_min { KVL_QUANT_NO_MIN, KVL_QUANT_ADD_MIN, KVL_QUANT_SUBTRACT_MIN };

/* X(type, block, group, scale_bits, min, bits, offset) */
#define KVL_QUANT_TYPES(X)                                                                         \
    X(Q4_0, 32, 32, 0, KVL_QUANT_NO_MIN, 4, 8)                                                     \
    X(Q4_1, 32, 32, 0, KVL_QUANT_ADD_MIN, 4, 0)                                                    \
    X(Q5_0, 32, 32, 0, KVL_QUANT_NO_MIN, 5, 16)                                                    \
    X(Q5_1, 32, 32, 0, KVL_QUANT_ADD_MIN, 5, 0)                                                    \
    X(Q8_0, 32, 32, 0, KVL_QUANT_NO_MIN, 8, 0)                                                     \
    X(Q2_K, 256, 16, 4, KVL_QUANT_SUBTRACT_MIN, 2, 0)                                              \
    X(Q3_K, 256, 16, 8, KVL_QUANT_NO_MIN, 3, 4)                                                    \
    X(Q4_K, 256, 32, 8, KVL_QUANT_SUBTRACT_MIN, 4, 0)                                              \
    X(Q5_K, 256, 32, 8, KVL_QUANT_SUBTRACT_MIN, 5, 0)                                              \
    X(Q6_K, 256, 16, 8, KVL_QUANT_NO_MIN, 6, 32)                                                   \
    X(IQ4_NL, 32, 32, 0, KVL_QUANT_NO_MIN, 4, KVL_QUANT_CODEBOOK)                                  \
    X(IQ4_XS, 256, 32, 8, KVL_QUANT_NO_MIN, 4, KVL_QUANT_CODEBOOK)

/* A block taken apart. */
struct kvl_quant_block {
    uint16_t d, m; /* f16; m is 0 without a minimum */
    int8_t scales[KVL_QUANT_GROUPS_MAX];
    int8_t mins[KVL_QUANT_GROUPS_MAX];
    uint8_t codes[KVL_QUANT_BLOCK_MAX]; /* of Q8_0: two's complement */
};

struct kvl_quant {
    uint32_t block, group, scale_bits;
    enum kvl_quant_min min;
    uint32_t bits;
    int32_t offset;
    void (*split)(const uint8_t *bytes, struct kvl_quant_block *out);
};

#define KVL_QUANT_CODEBOOK_VALUES                                                                  \
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
extern const int8_t kvl_quant_codebook[16];

/* NULL for a type that is not quantized, or not known. */
const struct kvl_quant *kvl_quant_of(uint32_t type);

/* Bytes of a row in the file; columns is a whole number of blocks. */
uint64_t kvl_row_bytes(uint32_t type, uint64_t columns);
/* A row of any known type as f32: the bits of PyPI's gguf.quants, but for which NaN a NaN is. */
void kvl_dequantize_row(uint32_t type, const uint8_t *row, uint64_t columns, float *out);

#endif
