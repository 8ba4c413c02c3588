/* kernels_weights.h - the part of kernels_body.h that multiplies with packed weights.
 *
 * Quantized types share one code: a struct of constants says what a type's panel looks like, and
 * every function that takes it is inlined once per type, so that nothing of it is left. */

/* ---- 8 rows of a panel, 8 consecutive k ---- */

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

/* w = code * d, or code * d + m */
struct scaling {
    vec8 d, m;
};

INLINE struct scaling load_scaling(
    const struct form f, const uint8_t *block, uint32_t g, uint32_t row) {
    struct scaling s = {.d = v8_load_f16(block + row * 2), .m = v8_set1(0)};
    if (f.min != KVL_QUANT_NO_MIN) {
        s.m = v8_load_f16(block + HALVES_BYTES + row * 2);
    }
    if (f.scale_bits == 0) {
        return s;
    }
    const uint8_t *scales = block + scales_at(f) + g * KVL_PANEL_ROWS + row;
    vec8i scale = v8i_load_i8(scales), min = scale;
    if (f.scale_bits == 4) {
        min = v8i_and(v8i_shift_right(scale, 4), 15);
        scale = v8i_and(scale, 15);
    } else if (f.min != KVL_QUANT_NO_MIN) {
        min = v8i_load_i8(scales + scales_bytes(f));
    }
    s.d = v8_mul(s.d, v8i_to_f32(scale));
    if (f.min == KVL_QUANT_SUBTRACT_MIN) { /* -0 - x is -x, of zeros too */
        s.m = v8_sub(v8_set1(-0.0f), v8_mul(s.m, v8i_to_f32(min)));
    }
    return s;
}

/* Codes of 8 k: of 4 bits as one word, others (and indices of a codebook) as bytes, 4 k a word. */
struct octet {
    vec8i word[2];
};

INLINE bool is_word(const struct form f) {
    return f.bits == 4 && f.offset != KVL_QUANT_CODEBOOK;
}

/* 4 k as bytes from the plane of `bits` bits at `plane`; quad = k / 4 within the 32 k. */
INLINE vec8i load_quad(const uint8_t *plane, const uint32_t bits, const uint32_t quad) {
    const uint32_t quads = 8 / bits; /* in a word */
    const vec8i word = v8i_load(plane + quad / quads * WORDS_BYTES);
    if (bits == 8) {
        return word;
    }
    const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    return v8i_and(v8i_shift_right(word, (int)(bits * (quad % quads))), mask);
}

/* codes: those of the 32 k, at the row; g: which 8 of them. */
INLINE struct octet load_octet(const struct form f, const uint8_t *codes, const uint32_t g) {
    struct octet octet;
    if (is_word(f)) {
        octet.word[0] = octet.word[1] = v8i_load(codes + g * WORDS_BYTES);
        return octet;
    }
    const uint32_t low = low_bits(f), high = f.bits - low;
    for (uint32_t i = 0; i < 2; i++) {
        vec8i quad = load_quad(codes, low, 2 * g + i);
        if (high != 0) {
            const vec8i more = load_quad(codes + low * WORDS_BYTES, high, 2 * g + i);
            quad = v8i_or(quad, v8i_shift_left(more, (int)low));
        }
        if (f.offset == KVL_QUANT_CODEBOOK) {
            quad = v8i_lookup_bytes(quad, kvl_quant_codebook);
        } else if (f.offset != 0) {
            quad = v8i_sub_bytes(quad, (uint32_t)f.offset);
        }
        octet.word[i] = quad;
    }
    return octet;
}

INLINE vec8 weight_of(
    const struct form f, const struct octet octet, const uint32_t j, const struct scaling s) {
    const int at = (int)(j % 4 * 8 + j / 4 * 4);
    const vec8i word = octet.word[j / 4];
    const vec8i code = !is_word(f)     ? v8i_sign_extend_byte(word, (int)(j % 4))
                       : f.offset == 0 ? v8i_and(v8i_shift_right(word, at), 15)
                                       : v8i_sign_extend_nibble(word, at);
    return f.min == KVL_QUANT_NO_MIN ? v8_mul(v8i_to_f32(code), s.d)
                                     : v8_fma(v8i_to_f32(code), s.d, s.m);
}

/* ---- strips of weights for the GEMM ---- */

INLINE void unpack_octet(const struct form f, const uint8_t *codes, const uint32_t g,
    const struct scaling s, float *out) {
    const struct octet octet = load_octet(f, codes, g);
    for (uint32_t j = 0; j < 8; j++) {
        v8_store(out + j * KVL_STRIP_ROWS, weight_of(f, octet, j, s));
    }
}

INLINE void unpack_quantized(
    const struct form f, const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    const uint32_t octets = f.group / 8; /* of a group */
    for (uint32_t k = 0; k < columns; k += f.block, panel += block_bytes_of(f)) {
        for (uint32_t v = 0; v < 2; v++) {
            const uint32_t row = half * KVL_STRIP_ROWS + v * LANES;
            float *out = strip + (size_t)k * KVL_STRIP_ROWS + v * LANES;
            const uint8_t *codes = panel + codes_at(f) + row * 4;
            for (uint32_t g = 0; g < f.block / f.group;) {
                struct scaling s = load_scaling(f, panel, g, row);
                unpack_octet(f, codes, 0, s, out);
                unpack_octet(f, codes, 1, s, out + 8 * KVL_STRIP_ROWS);
                if (octets == 2) {
                    s = load_scaling(f, panel, ++g, row);
                }
                unpack_octet(f, codes, 2, s, out + 16 * KVL_STRIP_ROWS);
                unpack_octet(f, codes, 3, s, out + 24 * KVL_STRIP_ROWS);
                g++;
                codes += f.bits * WORDS_BYTES;
                out += 32 * KVL_STRIP_ROWS;
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

static void unpack_bf16(const uint8_t *panel, uint32_t half, uint32_t columns, float *strip) {
    panel += half * KVL_STRIP_ROWS * 2;
    for (uint32_t k = 0; k < columns; k++, panel += KVL_PANEL_ROWS * 2) {
        v8_store(strip + (size_t)k * KVL_STRIP_ROWS, v8_load_bf16(panel));
        v8_store(strip + (size_t)k * KVL_STRIP_ROWS + LANES, v8_load_bf16(panel + LANES * 2));
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

/* ---- GEMM: up to 6 rows by 16 outputs stay in 12 registers over all of k ---- */

INLINE void gemm_rows(const struct kvl_gemm *g, uint32_t row, const uint32_t rows) {
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
INLINE void multiply_octet(const struct form f, const uint8_t *codes, const uint32_t g,
    const struct scaling *s, const float *x, vec8 *sum) {
    struct octet octet[PANEL_VECTORS];
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        octet[v] = load_octet(f, codes + v * LANES * 4, g);
    }
    for (uint32_t j = 0; j < 8; j++) {
        const vec8 xk = v8_set1(x[8 * g + j]);
        for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
            sum[v] = v8_fma(weight_of(f, octet[v], j, s[v]), xk, sum[v]);
        }
    }
}

INLINE void load_scalings(
    const struct form f, const uint8_t *block, uint32_t g, struct scaling s[PANEL_VECTORS]) {
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        s[v] = load_scaling(f, block, g, v * LANES);
    }
}

/* The processor does not see by itself where a code in two planes goes on: without this Q6_K ran at
 * 5 GB/s from memory, with it at 8.4. */
enum { FETCH_AHEAD_BYTES = 1024 };

INLINE void fetch_codes(const struct form f, const uint8_t *codes) {
    for (uint32_t i = 0; i < f.bits * WORDS_BYTES && low_bits(f) != f.bits; i += CACHE_LINE) {
        __builtin_prefetch(codes + i);
    }
}

INLINE void multiply_quantized(
    const struct form f, const uint8_t *panel, uint32_t columns, const float *x, vec8 *sum) {
    struct scaling s[PANEL_VECTORS];
    for (uint32_t k = 0; k < columns; k += f.block, panel += block_bytes_of(f)) {
        const uint8_t *codes = panel + codes_at(f);
        for (uint32_t g = 0; g < f.block / f.group; g++, x += 32, codes += f.bits * WORDS_BYTES) {
            fetch_codes(f, codes + FETCH_AHEAD_BYTES);
            load_scalings(f, panel, g, s);
            multiply_octet(f, codes, 0, s, x, sum);
            multiply_octet(f, codes, 1, s, x, sum);
            if (f.group == 16) {
                load_scalings(f, panel, ++g, s);
            }
            multiply_octet(f, codes, 2, s, x, sum);
            multiply_octet(f, codes, 3, s, x, sum);
        }
    }
}

static inline void multiply_f16(const uint8_t *panel, uint32_t columns, const float *x, vec8 *sum) {
    for (uint32_t k = 0; k < columns; k++) {
        const vec8 xk = v8_set1(x[k]);
        for (uint32_t v = 0; v < PANEL_VECTORS; v++, panel += LANES * 2) {
            sum[v] = v8_fma(v8_load_f16(panel), xk, sum[v]);
        }
    }
}

static inline void multiply_bf16(
    const uint8_t *panel, uint32_t columns, const float *x, vec8 *sum) {
    for (uint32_t k = 0; k < columns; k++) {
        const vec8 xk = v8_set1(x[k]);
        for (uint32_t v = 0; v < PANEL_VECTORS; v++, panel += LANES * 2) {
            sum[v] = v8_fma(v8_load_bf16(panel), xk, sum[v]);
        }
    }
}

static inline void multiply_f32(const float *panel, uint32_t columns, const float *x, vec8 *sum) {
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
#define MULTIPLY_CASE(name, ...)                                                                   \
    case KVL_GGML_##name: {                                                                        \
        static const struct form form = {__VA_ARGS__};                                             \
        multiply_quantized(form, panel, columns, x, sum);                                          \
        break;                                                                                     \
    }
        KVL_QUANT_TYPES(MULTIPLY_CASE)
    case KVL_GGML_F16:
        multiply_f16(panel, columns, x, sum);
        break;
    case KVL_GGML_BF16:
        multiply_bf16(panel, columns, x, sum);
        break;
    default:
        multiply_f32(panel, columns, x, sum);
    }
    for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
        v8_store(y + v * LANES, sum[v]);
    }
}
