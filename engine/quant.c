/* quant.c - see quant.h. Blocks of the file, little endian (ggml-common.h, block_*); [n] counts
 * bytes unless a type stands beside it:
 *
 *   Q4_0    d f16, q[16]                  q[j] holds weight j in its low nibble, weight j + 16 in
 *   Q4_1    d f16, m f16, q[16]           its high one
 *   IQ4_NL  d f16, q[16]
 *   Q5_0    d f16, h[4], q[16]            likewise; bit k of h is the fifth bit of weight k
 *   Q5_1    d f16, m f16, h[4], q[16]
 *   Q8_0    d f16, q[32] i8
 *   Q2_K    s[16], q[64], d f16, m f16    s: scale in the low nibble, min in the high one; 128
 *                                         weights at a time in 32 bytes of q, 2 bits for each 32
 *   Q3_K    h[32], q[64], s[12], d f16    q as in Q2_K; bit b of h[j] is the third bit of weight
 *                                         32 b + j; 16 scales of 6 bits, less 32
 *   Q4_K    d f16, m f16, s[12], q[128]   64 weights at a time in 32 bytes of q, low nibbles first;
 *   Q5_K    d f16, m f16, s[12], h[32], q[128]   8 scales and 8 mins of 6 bits; h as in Q3_K
 *   Q6_K    q[128], h[64], s[16] i8, d f16       128 weights at a time in 64 bytes of q (64 low
 *                                         nibbles, 64 high ones) and 32 of h, 2 bits for each 32
 *   IQ4_XS  d f16, t u16, s[4], q[128]    q as 8 blocks of IQ4_NL; 8 scales of 4 bits in s and 2
 *                                         in t, less 32 */
#include "quant.h"

#include <string.h>

#include "cpu/half.h"

const int8_t kvl_quant_codebook[16] = {KVL_QUANT_CODEBOOK_VALUES};

static uint16_t u16_at(const uint8_t *bytes) {
    return (uint16_t)(bytes[0] | bytes[1] << 8);
}

static uint32_t u32_at(const uint8_t *bytes) {
    return u16_at(bytes) | (uint32_t)u16_at(bytes + 2) << 16;
}

/* ---- codes ---- */

/* codes[j] from the low nibbles, codes[count + j] from the high ones */
static void split_nibbles(const uint8_t *bytes, uint32_t count, uint8_t *codes) {
    for (uint32_t j = 0; j < count; j++) {
        codes[j] = bytes[j] & 15;
        codes[count + j] = bytes[j] >> 4;
    }
}

/* Two bits of each weight from 32 bytes for 128 weights; `at` is where they go in the code. */
static void add_bit_pairs(const uint8_t *bytes, int at, uint8_t *codes) {
    for (uint32_t quarter = 0; quarter < 4; quarter++) {
        for (uint32_t j = 0; j < 32; j++) {
            codes[32 * quarter + j] |= (uint8_t)((bytes[j] >> (2 * quarter) & 3) << at);
        }
    }
}

/* Bit b of byte j goes to weight 32 b + j. */
static void add_bits(const uint8_t *bytes, int at, uint8_t *codes) {
    for (uint32_t b = 0; b < 8; b++) {
        for (uint32_t j = 0; j < 32; j++) {
            codes[32 * b + j] |= (uint8_t)((bytes[j] >> b & 1) << at);
        }
    }
}

static void add_fifth_bits(const uint8_t *bytes, uint8_t *codes) {
    const uint32_t bits = u32_at(bytes);
    for (uint32_t k = 0; k < 32; k++) {
        codes[k] |= (uint8_t)((bits >> k & 1) << 4);
    }
}

/* ---- blocks of 32 ---- */

static void split_Q4_0(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    split_nibbles(bytes + 2, 16, out->codes);
}

static void split_Q4_1(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    out->m = u16_at(bytes + 2);
    split_nibbles(bytes + 4, 16, out->codes);
}

static void split_Q5_0(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    split_nibbles(bytes + 6, 16, out->codes);
    add_fifth_bits(bytes + 2, out->codes);
}

static void split_Q5_1(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    out->m = u16_at(bytes + 2);
    split_nibbles(bytes + 8, 16, out->codes);
    add_fifth_bits(bytes + 4, out->codes);
}

static void split_Q8_0(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    memcpy(out->codes, bytes + 2, 32);
}

static void split_IQ4_NL(const uint8_t *bytes, struct kvl_quant_block *out) {
    split_Q4_0(bytes, out);
}

/* ---- blocks of 256 ---- */

static void split_Q2_K(const uint8_t *bytes, struct kvl_quant_block *out) {
    for (uint32_t g = 0; g < 16; g++) {
        out->scales[g] = (int8_t)(bytes[g] & 15);
        out->mins[g] = (int8_t)(bytes[g] >> 4);
    }
    memset(out->codes, 0, 256);
    add_bit_pairs(bytes + 16, 0, out->codes);
    add_bit_pairs(bytes + 48, 0, out->codes + 128);
    out->d = u16_at(bytes + 80);
    out->m = u16_at(bytes + 82);
}

/* Scale g: low 4 bits in a nibble of bytes 0 to 7, high 2 bits in a pair of bytes 8 to 11. */
static void split_Q3_K(const uint8_t *bytes, struct kvl_quant_block *out) {
    const uint8_t *scales = bytes + 96;
    for (uint32_t g = 0; g < 16; g++) {
        const int low = scales[g % 8] >> (g / 8 * 4) & 15;
        const int high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
        out->scales[g] = (int8_t)((low | high << 4) - 32);
    }
    memset(out->codes, 0, 256);
    add_bit_pairs(bytes + 32, 0, out->codes);
    add_bit_pairs(bytes + 64, 0, out->codes + 128);
    add_bits(bytes, 2, out->codes);
    out->d = u16_at(bytes + 108);
}

/* Q4_K and Q5_K. Groups 0 to 3: 6 bits of a byte. Groups 4 to 7: 4 bits of bytes 8 to 11, and the
 * two high bits of the byte of group - 4. */
static void split_scales_k(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    out->m = u16_at(bytes + 2);
    const uint8_t *scales = bytes + 4, *mins = bytes + 8, *rest = bytes + 12;
    for (uint32_t g = 0; g < 4; g++) {
        out->scales[g] = (int8_t)(scales[g] & 63);
        out->mins[g] = (int8_t)(mins[g] & 63);
        out->scales[g + 4] = (int8_t)((rest[g] & 15) | (scales[g] >> 6) << 4);
        out->mins[g + 4] = (int8_t)(rest[g] >> 4 | (mins[g] >> 6) << 4);
    }
}

static void split_Q4_K(const uint8_t *bytes, struct kvl_quant_block *out) {
    split_scales_k(bytes, out);
    for (uint32_t i = 0; i < 4; i++) {
        split_nibbles(bytes + 16 + 32 * i, 32, out->codes + 64 * i);
    }
}

static void split_Q5_K(const uint8_t *bytes, struct kvl_quant_block *out) {
    split_scales_k(bytes, out);
    for (uint32_t i = 0; i < 4; i++) {
        split_nibbles(bytes + 48 + 32 * i, 32, out->codes + 64 * i);
    }
    add_bits(bytes + 16, 4, out->codes);
}

static void split_Q6_K(const uint8_t *bytes, struct kvl_quant_block *out) {
    for (uint32_t i = 0; i < 2; i++) {
        split_nibbles(bytes + 64 * i, 64, out->codes + 128 * i);
        add_bit_pairs(bytes + 128 + 32 * i, 4, out->codes + 128 * i);
    }
    memcpy(out->scales, bytes + 192, 16);
    out->d = u16_at(bytes + 208);
}

static void split_IQ4_XS(const uint8_t *bytes, struct kvl_quant_block *out) {
    out->d = u16_at(bytes);
    const uint32_t high = u16_at(bytes + 2);
    for (uint32_t g = 0; g < 8; g++) {
        const uint32_t low = bytes[4 + g / 2] >> (g % 2 * 4) & 15;
        out->scales[g] = (int8_t)((int)(low | (high >> (2 * g) & 3) << 4) - 32);
        split_nibbles(bytes + 8 + 16 * g, 16, out->codes + 32 * g);
    }
}

const struct kvl_quant *kvl_quant_of(uint32_t type) {
    switch (type) {
#define QUANT_CASE(name, block_, group_, scale_bits_, min_, bits_, offset_)                        \
    case KVL_GGML_##name: {                                                                        \
        static const struct kvl_quant quant = {                                                    \
            block_, group_, scale_bits_, min_, bits_, offset_, split_##name};                      \
        return &quant;                                                                             \
    }
        KVL_QUANT_TYPES(QUANT_CASE)
    default:
        return NULL;
    }
}

/* ---- rows as f32 ---- */

uint64_t kvl_row_bytes(uint32_t type, uint64_t columns) {
    const struct kvl_ggml_layout *layout = kvl_ggml_layout(type);
    return columns / layout->block_elements * layout->block_bytes;
}

static float value_of(const struct kvl_quant *quant, uint8_t code) {
    return quant->offset == KVL_QUANT_CODEBOOK ? (float)kvl_quant_codebook[code]
                                               : (float)((int8_t)code - quant->offset);
}

static void dequantize_group(
    const struct kvl_quant *quant, const struct kvl_quant_block *block, uint32_t g, float *out) {
    float d = kvl_f16_to_f32(block->d), m = kvl_f16_to_f32(block->m);
    if (quant->scale_bits != 0) {
        d *= (float)block->scales[g];
        m *= (float)block->mins[g];
    }
    for (uint32_t k = g * quant->group; k < (g + 1) * quant->group; k++) {
        const float product = d * value_of(quant, block->codes[k]);
        out[k] = quant->min == KVL_QUANT_NO_MIN    ? product
                 : quant->min == KVL_QUANT_ADD_MIN ? product + m
                                                   : product - m;
    }
}

static void dequantize(const struct kvl_quant *quant, const uint8_t *row, uint64_t columns,
    uint32_t bytes, float *out) {
    struct kvl_quant_block block = {0};
    for (uint64_t k = 0; k < columns; k += quant->block, row += bytes) {
        quant->split(row, &block);
        for (uint32_t g = 0; g < quant->block / quant->group; g++) {
            dequantize_group(quant, &block, g, out + k);
        }
    }
}

void kvl_dequantize_row(uint32_t type, const uint8_t *row, uint64_t columns, float *out) {
    const struct kvl_quant *quant = kvl_quant_of(type);
    if (quant != NULL) {
        dequantize(quant, row, columns, kvl_ggml_layout(type)->block_bytes, out);
        return;
    }
    for (uint64_t k = 0; k < columns; k++) {
        switch (type) {
        case KVL_GGML_F16:
            out[k] = kvl_f16_to_f32(u16_at(row + 2 * k));
            break;
        case KVL_GGML_BF16:
            out[k] = kvl_bf16_to_f32(u16_at(row + 2 * k));
            break;
        default:
            out[k] = kvl_float_of(u32_at(row + 4 * k));
        }
    }
}
