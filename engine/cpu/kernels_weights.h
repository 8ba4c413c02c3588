/* kernels_weights.h - the part of kernels_body.h that multiplies with packed weights. */

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
