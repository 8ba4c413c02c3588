/* kernels_weights.h - the part of kernels_body.h that multiplies with packed weights.
 *
 * Quantized types share one code: a struct of constants says what a type's panel looks like, and
 * every function that takes it is inlined once per type, so that nothing of it is left. */

/* ---- WIDE rows of a panel, 4 consecutive k ---- */

/* A quantized type's constants (quant.h), and where things lie in a block of 32 rows (kernels.h).
 */
struct form {
    uint32_t block, group, scale_bits;
    enum kvl_quant_min min;
    uint32_t bits;
    int32_t offset;
};

enum { HALVES_BYTES = KVL_PANEL_ROWS * 2, WORDS_BYTES = KVL_PANEL_ROWS * 4 };

INLINE uint32_t low_bits(const struct form f) {
    return f.bits >= 4 ? f.bits / 4 * 4 : 2; /* 8, 4 or 2 */
}

INLINE uint32_t scales_at(const struct form f) {
    return HALVES_BYTES * (f.min == KVL_QUANT_NO_MIN ? 1 : 2);
}

INLINE uint32_t scales_bytes(const struct form f) { /* without the minima */
    return f.scale_bits == 0 ? 0 : f.block / f.group * KVL_PANEL_ROWS;
}

INLINE uint32_t codes_at(const struct form f) {
    const uint32_t arrays = f.min == KVL_QUANT_NO_MIN || f.scale_bits == 4 ? 1 : 2;
    return scales_at(f) + scales_bytes(f) * arrays;
}

INLINE uint32_t block_bytes_of(const struct form f) {
    return codes_at(f) + f.block * KVL_PANEL_ROWS * f.bits / 8;
}

/* Codes become f32 from the top byte of an i32, so they come 2^24 times too large, and those that
 * are the upper half of a byte 2^28 times. A power of two in d makes up for it, exactly. */
INLINE bool is_signed_nibble(const struct form f) {
    return f.bits == 4 && f.offset > 0;
}

/* Or codes of 4 bits are looked up as f32 at once, where there are registers for that. */
INLINE bool is_looked_up(const struct form f) {
    return f.bits == 4 && KVL_HAS_LOOKUP;
}

INLINE float code_scale(const struct form f) {
    return is_looked_up(f) ? 1 : is_signed_nibble(f) ? 0x1p-28f : 0x1p-24f;
}

/* w = code * d, or code * d + m */
struct scaling {
    vecw d, m;
};

INLINE struct scaling load_scaling(
    const struct form f, const uint8_t *block, uint32_t g, uint32_t row) {
    struct scaling s = {.m = vw_set1(0)};
    s.d = vw_mul(vw_load_f16(block + row * 2), vw_set1(code_scale(f)));
    if (f.min != KVL_QUANT_NO_MIN) {
        s.m = vw_load_f16(block + HALVES_BYTES + row * 2);
    }
    if (f.scale_bits == 0) {
        return s;
    }
    const uint8_t *scales = block + scales_at(f) + g * KVL_PANEL_ROWS + row;
    veci scale = vi_load_i8(scales), min = scale;
    if (f.scale_bits == 4) {
        min = vi_and(vi_shift_right(scale, 4), 15);
        scale = vi_and(scale, 15);
    } else if (f.min != KVL_QUANT_NO_MIN) {
        min = vi_load_i8(scales + scales_bytes(f));
    }
    s.d = vw_mul(s.d, vi_to_f32(scale));
    if (f.min == KVL_QUANT_SUBTRACT_MIN) { /* -0 - x is -x, of zeros too */
        s.m = vw_sub(vw_set1(-0.0f), vw_mul(s.m, vi_to_f32(min)));
    }
    return s;
}

/* Bytes of 4 k from the plane of `bits` bits at `plane`; quad = k / 4 within the 32 k. */
INLINE veci load_bits(const uint8_t *plane, const uint32_t bits, const uint32_t quad) {
    const uint32_t quads = 8 / bits; /* in a word */
    const veci word = vi_load(plane + quad / quads * WORDS_BYTES);
    if (bits == 8) {
        return word;
    }
    const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    return vi_and(vi_shift_right(word, (int)(bits * (quad % quads))), mask);
}

INLINE veci load_signed_nibbles(const uint8_t *plane, const uint32_t quad) {
    const veci word = vi_load(plane + quad / 2 * WORDS_BYTES);
    return vi_and(quad % 2 == 0 ? vi_shift_left(word, 4) : word, 0xF0F0F0F0u);
}

/* The codes of 4 k, a byte each. codes: those of the 32 k, at the row. */
INLINE veci load_quad(const struct form f, const uint8_t *codes, const uint32_t quad) {
    if (is_looked_up(f)) {
        return vi_load(codes + quad / 2 * WORDS_BYTES);
    }
    if (is_signed_nibble(f)) {
        return load_signed_nibbles(codes, quad);
    }
    const uint32_t low = low_bits(f), high = f.bits - low;
    veci bytes = load_bits(codes, low, quad);
    if (high != 0) {
        const veci more = load_bits(codes + low * WORDS_BYTES, high, quad);
        bytes = vi_or(bytes, vi_shift_left(more, (int)low));
    }
    if (f.offset == KVL_QUANT_CODEBOOK) {
        return vi_lookup_bytes(bytes, kvl_quant_codebook);
    }
    return f.offset == 0 ? bytes : vi_sub_bytes(bytes, (uint32_t)f.offset);
}

/* What 4 bits mean, as f32. */
static const float values_unsigned[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const float values_signed[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
static const float values_codebook[16] = {KVL_QUANT_CODEBOOK_VALUES};

INLINE const float *values_of(const struct form f) {
    return f.offset == 0                    ? values_unsigned
           : f.offset == KVL_QUANT_CODEBOOK ? values_codebook
                                            : values_signed;
}

INLINE vecw weight_of(const struct form f, const veci bytes, const uint32_t quad, const uint32_t j,
    const struct scaling s) {
    vecw code;
    if (is_looked_up(f)) {
        code = vw_lookup(values_of(f), vi_shift_right(bytes, (int)(8 * j + 4 * (quad % 2))));
    } else {
        code = vi_to_f32(vi_byte_to_top(bytes, (int)j));
    }
    return f.min == KVL_QUANT_NO_MIN ? vw_mul(code, s.d) : vw_fma(code, s.d, s.m);
}

/* ---- strips of weights for the GEMM ---- */

INLINE void unpack_quad(const struct form f, const uint8_t *codes, const uint32_t quad,
    const struct scaling s, float *out) {
    const veci bytes = load_quad(f, codes, quad);
    for (uint32_t j = 0; j < 4; j++) {
        vw_store(out + (4 * quad + j) * KVL_STRIP_ROWS, weight_of(f, bytes, quad, j, s));
    }
}

/* 16 k from `quad` on. */
INLINE void unpack_quads(const struct form f, const uint8_t *codes, const uint32_t quad,
    const struct scaling s, float *out) {
    unpack_quad(f, codes, quad, s, out);
    unpack_quad(f, codes, quad + 1, s, out);
    unpack_quad(f, codes, quad + 2, s, out);
    unpack_quad(f, codes, quad + 3, s, out);
}

/* A block of the rows from `row` on, 32 k at a time. */
INLINE void unpack_block(const struct form f, const uint8_t *block, uint32_t row, float *out) {
    const uint8_t *codes = block + codes_at(f) + row * 4;
    for (uint32_t g = 0; g < f.block / f.group; g++) {
        struct scaling s = load_scaling(f, block, g, row);
        unpack_quads(f, codes, 0, s, out);
        if (f.group == 16) {
            s = load_scaling(f, block, ++g, row);
        }
        unpack_quads(f, codes, 4, s, out);
        codes += f.bits * WORDS_BYTES;
        out += 32 * KVL_STRIP_ROWS;
    }
}

INLINE void unpack_quantized(
    const struct form f, const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    for (uint32_t k = 0; k < columns; k += f.block, panel += block_bytes_of(f)) {
        for (uint32_t at = 0; at < KVL_STRIP_ROWS; at += WIDE) {
            unpack_block(
                f, panel, half * KVL_STRIP_ROWS + at, strip + (size_t)k * KVL_STRIP_ROWS + at);
        }
    }
}

static void unpack_f16(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    panel += half * KVL_STRIP_ROWS * 2;
    for (uint32_t k = 0; k < columns; k++, panel += KVL_PANEL_ROWS * 2) {
        for (uint32_t at = 0; at < KVL_STRIP_ROWS; at += WIDE) {
            vw_store(strip + (size_t)k * KVL_STRIP_ROWS + at, vw_load_f16(panel + at * 2));
        }
    }
}

static void unpack_bf16(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    panel += half * KVL_STRIP_ROWS * 2;
    for (uint32_t k = 0; k < columns; k++, panel += KVL_PANEL_ROWS * 2) {
        for (uint32_t at = 0; at < KVL_STRIP_ROWS; at += WIDE) {
            vw_store(strip + (size_t)k * KVL_STRIP_ROWS + at, vw_load_bf16(panel + at * 2));
        }
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
#define UNPACK_CASE(name, ...)                                                                     \
    case KVL_GGML_##name: {                                                                        \
        static const struct form form = {__VA_ARGS__};                                             \
        unpack_quantized(form, panel, half, columns, strip);                                       \
        break;                                                                                     \
    }
        KVL_QUANT_TYPES(UNPACK_CASE)
    case KVL_GGML_F16:
        unpack_f16(panel, half, columns, strip);
        break;
    case KVL_GGML_BF16:
        unpack_bf16(panel, half, columns, strip);
        break;
    default:
        unpack_f32(panel, half, columns, strip);
    }
}

/* ---- one token: weights are unpacked in registers ---- */

/* One k of all rows at a time: a chain of sums for each vector, and few enough values for 16
 * registers. */
INLINE void multiply_quad(const struct form f, const uint8_t *codes, const uint32_t quad,
    const struct scaling *s, const float *x, vecw *sum) {
    veci bytes[PANEL_VECTORS];
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        bytes[v] = load_quad(f, codes + v * WIDE * 4, quad);
    }
    for (uint32_t j = 0; j < 4; j++) {
        const vecw xk = vw_set1(x[4 * quad + j]);
        for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
            sum[v] = vw_fma(weight_of(f, bytes[v], quad, j, s[v]), xk, sum[v]);
        }
    }
}

/* 16 k from `quad` on. */
INLINE void multiply_quads(const struct form f, const uint8_t *codes, const uint32_t quad,
    const struct scaling *s, const float *x, vecw *sum) {
    multiply_quad(f, codes, quad, s, x, sum);
    multiply_quad(f, codes, quad + 1, s, x, sum);
    multiply_quad(f, codes, quad + 2, s, x, sum);
    multiply_quad(f, codes, quad + 3, s, x, sum);
}

INLINE void load_scalings(
    const struct form f, const uint8_t *block, uint32_t g, struct scaling s[PANEL_VECTORS]) {
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        s[v] = load_scaling(f, block, g, v * WIDE);
    }
}

/* The processor does not see by itself where a code in two planes goes on: without this Q6_K ran at
 * 5 GB/s from memory, with it at 8.4. Types of one plane gain some per cent. */
enum { FETCH_AHEAD_BYTES = 1024 };

INLINE void fetch_codes(const struct form f, const uint8_t *codes) {
    for (uint32_t i = 0; i < f.bits * WORDS_BYTES; i += CACHE_LINE) {
        __builtin_prefetch(codes + i, 0, FETCH_LEVEL_2);
    }
}

INLINE void multiply_quantized(
    const struct form f, const uint8_t *panel, uint32_t columns, const float *x, vecw *sum) {
    struct scaling s[PANEL_VECTORS];
    for (uint32_t k = 0; k < columns; k += f.block, panel += block_bytes_of(f)) {
        const uint8_t *codes = panel + codes_at(f);
        for (uint32_t g = 0; g < f.block / f.group; g++, x += 32, codes += f.bits * WORDS_BYTES) {
            fetch_codes(f, codes + FETCH_AHEAD_BYTES);
            load_scalings(f, panel, g, s);
            multiply_quads(f, codes, 0, s, x, sum);
            if (f.group == 16) {
                load_scalings(f, panel, ++g, s);
            }
            multiply_quads(f, codes, 4, s, x, sum);
        }
    }
}

/* Conversions and additions only: four chains of sums, of 8 lanes each, keep more of the processor
 * busy than two of 16. */
enum { PANEL_EIGHTS = KVL_PANEL_ROWS / LANES };

INLINE vec8 load_elements(const uint32_t type, const uint8_t *panel, size_t index) {
    switch (type) {
    case KVL_GGML_F16:
        return v8_load_f16(panel + index * 2);
    case KVL_GGML_BF16:
        return v8_load_bf16(panel + index * 2);
    default:
        return v8_load((const float *)(const void *)panel + index);
    }
}

INLINE void multiply_elements(const uint32_t type, const uint8_t *panel, uint32_t columns,
    const float *x, float *y, bool accumulate) {
    vec8 sum[PANEL_EIGHTS];
    for (uint32_t v = 0; v < PANEL_EIGHTS; v++) {
        sum[v] = accumulate ? v8_load(y + v * LANES) : v8_set1(0);
    }
    for (uint32_t k = 0; k < columns; k++) {
        const vec8 xk = v8_set1(x[k]);
        for (uint32_t v = 0; v < PANEL_EIGHTS; v++) {
            const size_t index = (size_t)k * KVL_PANEL_ROWS + v * LANES;
            sum[v] = v8_fma(load_elements(type, panel, index), xk, sum[v]);
        }
    }
    for (uint32_t v = 0; v < PANEL_EIGHTS; v++) {
        v8_store(y + v * LANES, sum[v]);
    }
}

INLINE void multiply_panel(const struct form f, const uint8_t *panel, uint32_t columns,
    const float *x, float *y, bool accumulate) {
    vecw sum[PANEL_VECTORS];
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        sum[v] = accumulate ? vw_load(y + v * WIDE) : vw_set1(0);
    }
    multiply_quantized(f, panel, columns, x, sum);
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        vw_store(y + v * WIDE, sum[v]);
    }
}

static void matvec(
    uint32_t type, const void *panel, uint32_t columns, const float *x, float *y, bool accumulate) {
    switch (type) {
#define MULTIPLY_CASE(name, ...)                                                                   \
    case KVL_GGML_##name: {                                                                        \
        static const struct form form = {__VA_ARGS__};                                             \
        multiply_panel(form, panel, columns, x, y, accumulate);                                    \
        break;                                                                                     \
    }
        KVL_QUANT_TYPES(MULTIPLY_CASE)
    case KVL_GGML_F16:
        multiply_elements(KVL_GGML_F16, panel, columns, x, y, accumulate);
        break;
    case KVL_GGML_BF16:
        multiply_elements(KVL_GGML_BF16, panel, columns, x, y, accumulate);
        break;
    default:
        multiply_elements(KVL_GGML_F32, panel, columns, x, y, accumulate);
    }
}
