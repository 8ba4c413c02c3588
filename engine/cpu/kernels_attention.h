/* kernels_attention.h - the part of kernels_body.h that stores, reads and attends KV. */

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

INLINE vecw load_kv_wide(enum kvl_kv_dtype dtype, const uint8_t *vector, uint32_t channel) {
    switch (dtype) {
    case KVL_KV_F16:
        return vw_load_f16(vector + channel * 2);
    case KVL_KV_BF16:
        return vw_load_bf16(vector + channel * 2);
    default:
        return vw_load((const float *)(const void *)(vector + channel * 4));
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

/* Channels c to c + 7 of 8 positions, transposed: square[i] is channel c + i. */
INLINE void load_square(const enum kvl_kv_dtype dtype, const uint8_t *const *positions, uint32_t c,
    vec8 square[LANES]) {
    for (uint32_t i = 0; i < LANES; i++) {
        square[i] = load_kv8(dtype, positions[i], c);
    }
    v8_transpose(square);
}

/* The addresses of 8 positions from p on; from the tile's end on, the last one again. */
INLINE const uint8_t *const *eight_positions(
    const struct kvl_kv_tile *tile, uint32_t p, const uint8_t *spare[LANES]) {
    if (p + LANES <= tile->count) {
        return tile->positions + p;
    }
    for (uint32_t i = 0; i < LANES; i++) {
        spare[i] = tile->positions[p + i < tile->count ? p + i : tile->count - 1];
    }
    return spare;
}

/* Channels from c on that fill no vector. */
INLINE void load_odd_channels(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile,
    uint32_t p, uint32_t c, float *out) {
    for (; c < tile->dim; c++) {
        for (uint32_t i = 0; i < LANES; i++) {
            out[(size_t)c * KVL_STRIP_ROWS + i] =
                p + i < tile->count ? load_kv1(dtype, tile->positions[p + i], c) : 0;
        }
    }
}

INLINE void load_keys_as(
    const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, float *strips) {
    const uint32_t dim = tile->dim;
    for (uint32_t p = 0; p < tile->count; p += LANES) {
        const uint8_t *spare[LANES];
        const uint8_t *const *positions = eight_positions(tile, p, spare);
        float *out =
            strips + (size_t)(p / KVL_STRIP_ROWS) * dim * KVL_STRIP_ROWS + p % KVL_STRIP_ROWS;
        uint32_t c = 0;
        for (; c + LANES <= dim; c += LANES) {
            vec8 square[LANES];
            load_square(dtype, positions, c, square);
            for (uint32_t i = 0; i < LANES; i++) {
                v8_store(out + (size_t)(c + i) * KVL_STRIP_ROWS, square[i]);
            }
        }
        load_odd_channels(dtype, tile, p, c, out);
    }
}

/* The GEMM reads whole strips of 16 positions; those behind the last key count as 0. */
static void clear_odd_keys(const struct kvl_kv_tile *tile, float *strips) {
    const uint32_t in_strip = tile->count % KVL_STRIP_ROWS;
    if (in_strip == 0) {
        return;
    }
    float *strip = strips + (size_t)(tile->count - in_strip) * tile->dim + in_strip;
    for (uint32_t c = 0; c < tile->dim; c++) {
        memset(strip + (size_t)c * KVL_STRIP_ROWS, 0, (KVL_STRIP_ROWS - in_strip) * sizeof *strip);
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

INLINE void load_values_as(
    const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, float *strips) {
    const uint32_t dim = tile->dim;
    const uint32_t padded = (dim + KVL_STRIP_ROWS - 1) / KVL_STRIP_ROWS * KVL_STRIP_ROWS;
    const size_t strip_floats = (size_t)KVL_TILE_TOKENS * KVL_STRIP_ROWS;
    for (uint32_t p = 0; p < tile->count; p++) {
        const uint8_t *vector = tile->positions[p];
        uint32_t c = 0;
        for (; c + WIDE <= dim; c += WIDE) {
            vw_store(strips + c / KVL_STRIP_ROWS * strip_floats + p * KVL_STRIP_ROWS +
                         c % KVL_STRIP_ROWS,
                load_kv_wide(dtype, vector, c));
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

/* Waiting for memory is most of a decode step at long context: positions p to p + count - 1 of the
 * next tile come in while these of this one are computed. They come into the second level of
 * caches: the first can wait for few lines at a time, and the loads behind them would wait too (2.2
 * us a tile of 64 positions, 64 channels and 3 rows; so 1.1). */
INLINE void fetch_ahead(
    const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, uint32_t p, uint32_t count) {
    const uint32_t bytes = tile->dim * (dtype == KVL_KV_F32 ? 4 : 2);
    for (; count > 0 && p < tile->next_count; count--, p++) {
        for (uint32_t i = 0; i < bytes; i += CACHE_LINE) {
            __builtin_prefetch(tile->next[p] + i, 0, FETCH_LEVEL_2);
        }
    }
}

/* Scores of 16 positions: two chains of sums per row. */
INLINE void score_strip(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile, uint32_t p,
    const float *x, const uint32_t rows, float *scores) {
    const uint8_t *spare[2][LANES];
    const uint8_t *const *low = eight_positions(tile, p, spare[0]);
    const uint8_t *const *high = eight_positions(tile, p + LANES, spare[1]);
    vec8 sum[KVL_DIRECT_ROWS][2];
    for (uint32_t r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = v8_set1(0);
    }
    uint32_t c = 0;
    for (; c + LANES <= tile->dim; c += LANES) {
        vec8 keys[2][LANES];
        load_square(dtype, low, c, keys[0]);
        load_square(dtype, high, c, keys[1]);
        for (uint32_t i = 0; i < LANES; i++) {
            for (uint32_t r = 0; r < rows; r++) {
                const vec8 xc = v8_set1(x[r * tile->dim + c + i]);
                sum[r][0] = v8_fma(keys[0][i], xc, sum[r][0]);
                sum[r][1] = v8_fma(keys[1][i], xc, sum[r][1]);
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

/* `vectors` times WIDE channels from c on; rows * vectors sums stay in registers over all
 * positions.
 */
INLINE void gather_channels(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile,
    uint32_t c, const float *weights, const uint32_t rows, const uint32_t vectors, float *out,
    size_t out_stride) {
    vecw sum[KVL_DIRECT_ROWS][4];
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < vectors; v++) {
            sum[r][v] = vw_load(out + r * out_stride + c + v * WIDE);
        }
    }
    for (uint32_t p = 0; p < tile->count; p++) {
        vecw weight[KVL_DIRECT_ROWS];
        fetch_ahead(dtype, tile, p, c == 0);
        for (uint32_t r = 0; r < rows; r++) {
            weight[r] = vw_set1(weights[r * KVL_TILE_TOKENS + p]);
        }
        for (uint32_t v = 0; v < vectors; v++) {
            const vecw value = load_kv_wide(dtype, tile->positions[p], c + v * WIDE);
            for (uint32_t r = 0; r < rows; r++) {
                sum[r][v] = vw_fma(value, weight[r], sum[r][v]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < vectors; v++) {
            vw_store(out + r * out_stride + c + v * WIDE, sum[r][v]);
        }
    }
}

INLINE void gather_rows(const enum kvl_kv_dtype dtype, const struct kvl_kv_tile *tile,
    const float *weights, const uint32_t rows, float *out, size_t out_stride) {
    const uint32_t vectors = WIDE == LANES && rows > 2 ? 2 : 4; /* as registers allow */
    uint32_t c = 0;
    for (; c + vectors * WIDE <= tile->dim; c += vectors * WIDE) {
        gather_channels(dtype, tile, c, weights, rows, vectors, out, out_stride);
    }
    for (; c + WIDE <= tile->dim; c += WIDE) {
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
