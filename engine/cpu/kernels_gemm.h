/* kernels_gemm.h - the part of kernels_body.h that multiplies rows with a strip of 16 outputs. */

INLINE void multiply_strip_row(const float *strip, const float *x, size_t stride,
    const uint32_t rows, vecw sum[][STRIP_VECTORS]) {
    vecw w[STRIP_VECTORS];
    for (uint32_t v = 0; v < STRIP_VECTORS; v++) {
        w[v] = vw_load(strip + v * WIDE);
    }
    for (uint32_t r = 0; r < rows; r++) {
        const vecw xk = vw_set1(x[r * stride]);
        for (uint32_t v = 0; v < STRIP_VECTORS; v++) {
            sum[r][v] = vw_fma(w[v], xk, sum[r][v]);
        }
    }
}

INLINE void store_sums(vecw sum[][STRIP_VECTORS], const uint32_t rows, float *y, size_t y_stride) {
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < STRIP_VECTORS; v++) {
            vw_store(y + r * y_stride + v * WIDE, sum[r][v]);
        }
    }
}

INLINE void gemm_rows(const struct kvl_gemm *g, uint32_t row, const uint32_t rows) {
    const float *x = g->x + row * g->x_stride;
    const float *strip = g->strip;
    float *y = g->y + row * g->y_stride;
    vecw sum[GEMM_ROWS][STRIP_VECTORS];
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < STRIP_VECTORS; v++) {
            sum[r][v] = g->accumulate ? vw_load(y + r * g->y_stride + v * WIDE) : vw_set1(0);
        }
    }
    for (uint32_t k = 0; k < g->k; k++, strip += KVL_STRIP_ROWS) {
        multiply_strip_row(strip, x + k, g->x_stride, rows, sum);
    }
    store_sums(sum, rows, y, g->y_stride);
}

static void gemm(const struct kvl_gemm *g) {
    uint32_t row = 0;
    for (; GEMM_ROWS > 6 && row + GEMM_ROWS <= g->rows; row += GEMM_ROWS) {
        gemm_rows(g, row, GEMM_ROWS);
    }
    for (; row + 6 <= g->rows; row += 6) {
        gemm_rows(g, row, 6);
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
