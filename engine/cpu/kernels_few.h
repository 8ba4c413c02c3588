/* kernels_few.h - the part of kernels_body.h that multiplies a few tokens with packed weights: as
 * for one token, weights are unpacked in registers, but each is then multiplied with every token.
 *
 * The sums of all tokens and a panel's rows are too many for the registers, so 32 k of a pair of
 * vectors take turns: their sums are loaded, go on over these k, and are stored. */

enum {
    FEW_VECTORS = 2, /* of a panel, at a time */
    FEW_PAIRS = PANEL_VECTORS / FEW_VECTORS,
    FEW_AT_ONCE = 4, /* tokens: with two vectors 8 sums */
};

/* Tokens of a pass. */
struct few {
    const float *x[FEW_AT_ONCE]; /* at the k that come next */
    vecw sum[FEW_PAIRS][FEW_AT_ONCE][FEW_VECTORS];
};

/* 16 k from `quad` on, of one pair of vectors; the codes and scalings are theirs. */
INLINE void few_quads(const struct form f, const uint8_t *codes, const uint32_t quad,
    const struct scaling *s, const struct few *few, const uint32_t rows, vecw sum[][FEW_VECTORS]) {
    for (uint32_t q = quad; q < quad + 4; q++) {
        veci bytes[FEW_VECTORS];
        for (uint32_t v = 0; v < FEW_VECTORS; v++) {
            bytes[v] = load_quad(f, codes + v * WIDE * 4, q);
        }
        for (uint32_t j = 0; j < 4; j++) {
            vecw w[FEW_VECTORS];
            for (uint32_t v = 0; v < FEW_VECTORS; v++) {
                w[v] = weight_of(f, bytes[v], q, j, s[v]);
            }
            for (uint32_t r = 0; r < rows; r++) {
                const vecw xk = vw_set1(few->x[r][4 * q + j]);
                for (uint32_t v = 0; v < FEW_VECTORS; v++) {
                    sum[r][v] = vw_fma(w[v], xk, sum[r][v]);
                }
            }
        }
    }
}

INLINE void few_scalings(const struct form f, const uint8_t *block, uint32_t g, uint32_t pair,
    struct scaling s[FEW_VECTORS]) {
    for (uint32_t v = 0; v < FEW_VECTORS; v++) {
        s[v] = load_scaling(f, block, g, (pair * FEW_VECTORS + v) * WIDE);
    }
}

/* 32 k of one pair of vectors. g: the group that the first of them is in. */
INLINE void few_pair(const struct form f, const uint8_t *block, const uint8_t *codes, uint32_t g,
    uint32_t pair, struct few *few, const uint32_t rows) {
    vecw sum[FEW_AT_ONCE][FEW_VECTORS];
    struct scaling s[FEW_VECTORS];
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < FEW_VECTORS; v++) {
            sum[r][v] = few->sum[pair][r][v];
        }
    }
    codes += pair * FEW_VECTORS * WIDE * 4;
    few_scalings(f, block, g, pair, s);
    few_quads(f, codes, 0, s, few, rows, sum);
    if (f.group == 16) {
        few_scalings(f, block, g + 1, pair, s);
    }
    few_quads(f, codes, 4, s, few, rows, sum);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < FEW_VECTORS; v++) {
            few->sum[pair][r][v] = sum[r][v];
        }
    }
}

INLINE void few_panel(const struct form f, const uint8_t *panel, uint32_t columns, struct few *few,
    const uint32_t rows) {
    const uint32_t groups = f.group == 16 ? 2 : 1; /* in 32 k */
    for (uint32_t k = 0; k < columns; k += f.block, panel += block_bytes_of(f)) {
        const uint8_t *codes = panel + codes_at(f);
        for (uint32_t g = 0; g < f.block / f.group; g += groups) {
            fetch_codes(f, codes + FETCH_AHEAD_BYTES);
            for (uint32_t pair = 0; pair < FEW_PAIRS; pair++) {
                few_pair(f, panel, codes, g, pair, few, rows);
            }
            codes += f.bits * WORDS_BYTES;
            for (uint32_t r = 0; r < rows; r++) {
                few->x[r] += 32;
            }
        }
    }
}

static float *few_sums_at(const struct kvl_few *product, uint32_t row, uint32_t vector) {
    return product->y + row * product->y_stride + vector * WIDE;
}

/* `rows` tokens from `first` on, of which those beyond the product's are its last one again. */
INLINE void few_pass(
    const struct form f, const struct kvl_few *product, uint32_t first, const uint32_t rows) {
    struct few few;
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t row = first + r < product->rows ? first + r : product->rows - 1;
        few.x[r] = product->x + row * product->x_stride;
        for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
            few.sum[v / FEW_VECTORS][r][v % FEW_VECTORS] =
                product->accumulate ? vw_load(few_sums_at(product, row, v)) : vw_set1(0);
        }
    }
    few_panel(f, product->panel, product->columns, &few, rows);
    for (uint32_t r = 0; r < rows && first + r < product->rows; r++) {
        for (uint32_t v = 0; v < PANEL_VECTORS; v++) {
            vw_store(
                few_sums_at(product, first + r, v), few.sum[v / FEW_VECTORS][r][v % FEW_VECTORS]);
        }
    }
}

INLINE void multiply_few_of(const struct form f, const struct kvl_few *product) {
    uint32_t first = 0;
    for (; product->rows - first > 2; first += FEW_AT_ONCE) {
        few_pass(f, product, first, FEW_AT_ONCE);
        if (product->rows - first <= FEW_AT_ONCE) {
            return;
        }
    }
    if (first < product->rows) {
        few_pass(f, product, first, 2);
    }
}

static void multiply_few(const struct kvl_few *product) {
    switch (product->type) {
#define FEW_CASE(name, ...)                                                                        \
    case KVL_GGML_##name: {                                                                        \
        static const struct form form = {__VA_ARGS__};                                             \
        multiply_few_of(form, product);                                                            \
        break;                                                                                     \
    }
        KVL_QUANT_TYPES(FEW_CASE)
    default:
        break; /* not of these types */
    }
}
