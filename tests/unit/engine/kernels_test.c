/* kernels_test.c - packed weights mean what a row of the file does, to the bit; every table that
 * this CPU runs gives the bits of plain C; the GEMM gives those of the matrix-vector kernel; e^x
 * and the 16-bit floats are as exact as stated. Also built for another CPU (tests/cross). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "quant.h"
#include "tiny_model.h"

enum { ROWS = 75, COLUMNS = 512, PANELS = 3 };

static const uint32_t types[] = {KVL_GGML_F32, KVL_GGML_F16, KVL_GGML_BF16, KVL_GGML_Q8_0,
    KVL_GGML_Q4_0, KVL_GGML_Q4_1, KVL_GGML_Q5_0, KVL_GGML_Q5_1, KVL_GGML_Q2_K, KVL_GGML_Q3_K,
    KVL_GGML_Q4_K, KVL_GGML_Q5_K, KVL_GGML_Q6_K, KVL_GGML_IQ4_NL, KVL_GGML_IQ4_XS};

#define EXPECTED_HASH 0x352323485fc0134eu

static const struct kvl_cpu_kernels *const portable = &kvl_cpu_kernels_portable;

/* For each table that this CPU runs. */
#define FOR_EACH_TABLE(kernels)                                                                    \
    for (const struct kvl_cpu_kernels *const *at = kvl_cpu_kernels_all, *kernels;                  \
         (kernels = *at) != NULL; at++)                                                            \
        if (kernels->available())

static float *random_floats(uint32_t count, uint64_t seed) {
    float *floats = malloc(count * sizeof(float));
    assert_non_null(floats);
    for (uint32_t i = 0; i < count; i++) {
        floats[i] = 4 * tiny_random(&seed);
    }
    return floats;
}

/* A random packed matrix, with what it was packed from. */
struct matrix {
    struct kvl_gguf_tensor tensor;
    struct kvl_weight weight;
    struct kvl_packed packed;
    struct kvl_packed_memory memory;
    uint8_t *data;
};

static void matrix_init(struct matrix *m, uint32_t type) {
    uint64_t seed = type + 5, bytes;
    struct kvl_pool *pool;
    m->data = tiny_weights(type, (uint64_t)ROWS * COLUMNS, 0.3, &seed, &bytes);
    m->tensor = (struct kvl_gguf_tensor){
        .type = type, .dim_count = 2, .dims = {COLUMNS, ROWS, 1, 1}, .data = m->data};
    m->weight = (struct kvl_weight){.tensor = &m->tensor, .rows = ROWS, .columns = COLUMNS};
    assert_int_equal(kvl_pool_create(2, &pool, NULL), KVL_OK);
    assert_int_equal(
        kvl_pack(&(struct kvl_pack_item){&m->weight, &m->packed}, 1, pool, &m->memory, NULL),
        KVL_OK);
    kvl_pool_destroy(pool);
    assert_int_equal(m->packed.panel_count, PANELS);
}

static void matrix_deinit(struct matrix *m) {
    kvl_packed_free(&m->memory);
    free(m->data);
}

/* ---- weights ---- */

static void check_strips(const struct kvl_cpu_kernels *kernels, const struct matrix *m) {
    float strip[COLUMNS * KVL_STRIP_ROWS], expected[COLUMNS];
    for (uint32_t row = 0; row < PANELS * KVL_PANEL_ROWS; row++) {
        kernels->unpack_strip(m->packed.type, kvl_packed_panel(&m->packed, row / KVL_PANEL_ROWS),
            row / KVL_STRIP_ROWS % 2, COLUMNS, strip);
        memset(expected, 0, sizeof expected);
        if (row < ROWS) {
            kvl_unpack_row(&m->weight, row, expected);
        }
        for (uint32_t k = 0; k < COLUMNS; k++) {
            const float weight = strip[k * KVL_STRIP_ROWS + row % KVL_STRIP_ROWS];
            if (row < ROWS ? kvl_bits_of(weight) != kvl_bits_of(expected[k]) : weight != 0) {
                fail_msg("%s: weight %u of row %u is %g, not %g",
                    kvl_ggml_layout(m->packed.type)->name, k, row, weight, expected[k]);
            }
        }
    }
}

static void packed_weights_are_the_files(void **state) {
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        struct matrix m;
        matrix_init(&m, types[t]);
        FOR_EACH_TABLE(kernels) {
            check_strips(kernels, &m);
        }
        matrix_deinit(&m);
    }
}

/* A whole matrix: panels 4 % more at most, and the last one filled up. */
static void packed_weights_take_at_most_a_tenth_more(void **state) {
    (void)state;
    enum { MATRIX_ROWS = 570 };
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        uint64_t seed = 1, bytes;
        struct kvl_pool *pool;
        uint8_t *data = tiny_weights(types[t], (uint64_t)MATRIX_ROWS * COLUMNS, 0.3, &seed, &bytes);
        const struct kvl_gguf_tensor tensor = {
            .type = types[t], .dim_count = 2, .dims = {COLUMNS, MATRIX_ROWS, 1, 1}, .data = data};
        const struct kvl_weight weight = {
            .tensor = &tensor, .rows = MATRIX_ROWS, .columns = COLUMNS};
        struct kvl_packed packed;
        struct kvl_packed_memory memory;
        assert_int_equal(kvl_pool_create(1, &pool, NULL), KVL_OK);
        assert_int_equal(
            kvl_pack(&(struct kvl_pack_item){&weight, &packed}, 1, pool, &memory, NULL), KVL_OK);
        const double growth = (double)memory.bytes / (double)bytes;
        print_message("%s: %.3f times the file\n", kvl_ggml_layout(types[t])->name, growth);
        assert_true(growth <= 1.1);
        assert_true(packed.panel_bytes * MATRIX_ROWS <= bytes * KVL_PANEL_ROWS / 25 * 26);
        kvl_packed_free(&memory);
        kvl_pool_destroy(pool);
        free(data);
    }
}

/* ---- products ---- */

static void expect_product(
    const float *strip, const float *x, const float *start, float y[KVL_STRIP_ROWS]) {
    for (uint32_t r = 0; r < KVL_STRIP_ROWS; r++) {
        y[r] = start[r];
        for (uint32_t k = 0; k < COLUMNS; k++) {
            y[r] = fmaf(strip[k * KVL_STRIP_ROWS + r], x[k], y[r]);
        }
    }
}

/* All numbers of rows, both kernels, against one loop of fmaf. */
static void check_products(const struct kvl_cpu_kernels *kernels, const struct matrix *m) {
    enum { TOKENS = 14, STRIDE = 40 }; /* every remainder of a GEMM */
    float strip[COLUMNS * KVL_STRIP_ROWS], expected[KVL_STRIP_ROWS], y[TOKENS * STRIDE];
    float *x = random_floats(TOKENS * COLUMNS, 3), *start = random_floats(KVL_PANEL_ROWS, 4);
    const uint8_t *panel = kvl_packed_panel(&m->packed, 1);
    for (uint32_t unit = 0; unit < 2 * TOKENS; unit++) {
        const uint32_t half = unit % 2, tokens = unit / 2 + 1;
        kernels->unpack_strip(m->packed.type, panel, half, COLUMNS, strip);
        for (uint32_t t = 0; t < tokens; t++) {
            memcpy(y + t * STRIDE, start + half * KVL_STRIP_ROWS, sizeof expected);
        }
        kernels->gemm(&(struct kvl_gemm){.x = x,
            .x_stride = COLUMNS,
            .strip = strip,
            .y = y,
            .y_stride = STRIDE,
            .rows = tokens,
            .k = COLUMNS,
            .accumulate = true});
        for (uint32_t t = 0; t < tokens; t++) {
            float all[KVL_PANEL_ROWS];
            expect_product(strip, x + t * COLUMNS, start + half * KVL_STRIP_ROWS, expected);
            assert_memory_equal(y + t * STRIDE, expected, sizeof expected);
            memcpy(all, start, sizeof all);
            kernels->matvec(m->packed.type, panel, COLUMNS, x + t * COLUMNS, all, true);
            assert_memory_equal(all + half * KVL_STRIP_ROWS, expected, sizeof expected);
        }
    }
    free(x);
    free(start);
}

/* A few rows at once: the bits of each alone, and nothing written beside them. */
static void check_few(const struct kvl_cpu_kernels *kernels, const struct matrix *m) {
    enum { FEW_MAX = 11, STRIDE = 40 };
    float y[(FEW_MAX + 1) * STRIDE], expected[(FEW_MAX + 1) * STRIDE];
    float *x = random_floats(FEW_MAX * COLUMNS, 5),
          *start = random_floats((FEW_MAX + 1) * STRIDE, 6);
    const uint8_t *panel = kvl_packed_panel(&m->packed, 1);
    for (uint32_t rows = 2; rows <= FEW_MAX && kvl_quant_of(m->packed.type) != NULL; rows++) {
        const bool accumulate = rows % 3 != 0;
        memcpy(y, start, sizeof y);
        memcpy(expected, start, sizeof expected);
        kernels->multiply_few(&(struct kvl_few){.type = m->packed.type,
            .columns = COLUMNS,
            .panel = panel,
            .x = x,
            .x_stride = COLUMNS,
            .y = y,
            .y_stride = STRIDE,
            .rows = rows,
            .accumulate = accumulate});
        for (uint32_t r = 0; r < rows; r++) {
            kernels->matvec(
                m->packed.type, panel, COLUMNS, x + r * COLUMNS, expected + r * STRIDE, accumulate);
        }
        assert_memory_equal(y, expected, sizeof y);
    }
    free(x);
    free(start);
}

static void products_sum_in_one_order(void **state) {
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        struct matrix m;
        matrix_init(&m, types[t]);
        FOR_EACH_TABLE(kernels) {
            check_products(kernels, &m);
            check_few(kernels, &m);
        }
        matrix_deinit(&m);
    }
}

/* ---- the rest against plain C ---- */

static void check_rows(const struct kvl_cpu_kernels *fast) {
    enum { MOST = 70 };
    for (uint32_t n = 1; n <= MOST; n++) {
        float *x = random_floats(MOST, n), *w = random_floats(MOST, n + 100);
        float a[MOST], b[MOST];
        portable->rms_norm(x, w, n, 1e-5f, a);
        fast->rms_norm(x, w, n, 1e-5f, b);
        assert_memory_equal(a, b, n * sizeof(float));
        portable->swiglu(x, w, n, a);
        fast->swiglu(x, w, n, b);
        assert_memory_equal(a, b, n * sizeof(float));
        portable->geglu(x, w, n, a);
        fast->geglu(x, w, n, b);
        assert_memory_equal(a, b, n * sizeof(float));
        portable->softcap(a, n, 1.5f);
        fast->softcap(b, n, 1.5f);
        assert_memory_equal(a, b, n * sizeof(float));
        portable->scale(x, n, 0.3f, a);
        fast->scale(x, n, 0.3f, b);
        assert_memory_equal(a, b, n * sizeof(float));
        memcpy(a, x, sizeof a);
        memcpy(b, x, sizeof b);
        portable->rope(a, n / 2 * 2, w, x);
        fast->rope(b, n / 2 * 2, w, x);
        assert_memory_equal(a, b, n * sizeof(float));
        portable->rope_halves(a, n / 2 * 2, w, x);
        fast->rope_halves(b, n / 2 * 2, w, x);
        assert_memory_equal(a, b, n * sizeof(float));
        portable->add(a, w, n);
        fast->add(b, w, n);
        assert_memory_equal(a, b, n * sizeof(float));
        free(x);
        free(w);
    }
}

static void rows_have_the_same_bits(void **state) {
    (void)state;
    FOR_EACH_TABLE(kernels) {
        check_rows(kernels);
    }
}

static void check_softmax(const struct kvl_cpu_kernels *fast) {
    enum { DIM = 48 };
    for (uint32_t count = 1; count <= KVL_TILE_TOKENS; count++) {
        struct kvl_softmax s[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
        float out[2][DIM] = {{0}};
        for (uint32_t tile = 0; tile < 3; tile++) {
            float scores[2][KVL_TILE_TOKENS];
            float *x = random_floats(KVL_TILE_TOKENS, count * 3 + tile);
            for (int k = 0; k < 2; k++) {
                memcpy(scores[k], x, sizeof scores[k]);
                out[k][tile] += 1;
            }
            portable->softmax_tile(scores[0], count, &s[0], out[0], DIM);
            fast->softmax_tile(scores[1], count, &s[1], out[1], DIM);
            assert_memory_equal(scores[0], scores[1], count * sizeof(float));
            free(x);
        }
        const struct kvl_softmax next = {.max = 1.5f, .sum = 3};
        portable->softmax_merge(&s[0], out[0], &next, out[1], DIM);
        fast->softmax_merge(&s[1], out[1], &next, out[1], DIM);
        assert_memory_equal(&s[0], &s[1], sizeof s[0]);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
    }
}

static void softmax_has_the_same_bits(void **state) {
    (void)state;
    FOR_EACH_TABLE(kernels) {
        check_softmax(kernels);
    }
}

/* Few rows straight from the tile: the bits of the strips and the GEMM. */
static void check_direct(const struct kvl_cpu_kernels *kernels, const struct kvl_kv_tile *tile,
    const float *keys, const float *values, uint32_t rows) {
    enum { STRIDE = 64 };
    float *x = random_floats(KVL_DIRECT_ROWS * KVL_TILE_TOKENS, rows);
    float scores[KVL_DIRECT_ROWS * KVL_TILE_TOKENS], sums[KVL_DIRECT_ROWS * STRIDE] = {0};
    for (uint32_t strip = 0; strip < KVL_TILE_TOKENS / KVL_STRIP_ROWS; strip++) {
        const bool of_keys = strip * KVL_STRIP_ROWS < tile->count;
        const bool of_values = strip * KVL_STRIP_ROWS < tile->dim;
        struct kvl_gemm score = {.x = x, .x_stride = tile->dim, .y_stride = KVL_TILE_TOKENS};
        score.strip = keys + (size_t)strip * KVL_STRIP_ROWS * tile->dim;
        score.y = scores + strip * KVL_STRIP_ROWS;
        score.rows = of_keys ? rows : 0;
        score.k = tile->dim;
        portable->gemm(&score);
        struct kvl_gemm gather = {.x = x, .x_stride = KVL_TILE_TOKENS, .y_stride = STRIDE};
        gather.strip = values + (size_t)strip * KVL_STRIP_ROWS * KVL_TILE_TOKENS;
        gather.y = sums + strip * KVL_STRIP_ROWS;
        gather.rows = of_values ? rows : 0;
        gather.k = tile->count;
        portable->gemm(&gather);
    }
    float direct[KVL_DIRECT_ROWS * KVL_TILE_TOKENS], out[KVL_DIRECT_ROWS * STRIDE] = {0};
    kernels->score_direct(tile, x, rows, direct);
    kernels->gather_direct(tile, x, rows, out, STRIDE);
    for (uint32_t r = 0; r < rows; r++) {
        assert_memory_equal(direct + r * KVL_TILE_TOKENS, scores + r * KVL_TILE_TOKENS,
            tile->count * sizeof(float));
        assert_memory_equal(out + r * STRIDE, sums + r * STRIDE, tile->dim * sizeof(float));
    }
    free(x);
}

static void check_kv(
    const struct kvl_cpu_kernels *fast, enum kvl_kv_dtype dtype, uint32_t dim, uint32_t count) {
    enum { MOST = 64 };
    const uint32_t strips = (dim + KVL_STRIP_ROWS - 1) / KVL_STRIP_ROWS;
    uint8_t stored[2][KVL_TILE_TOKENS][MOST * 4];
    const uint8_t *places[KVL_TILE_TOKENS];
    float *x = random_floats(KVL_TILE_TOKENS * MOST, dim);
    for (uint32_t p = 0; p < count; p++) {
        portable->store_kv(dtype, x + p * MOST, dim, stored[0][p]);
        fast->store_kv(dtype, x + p * MOST, dim, stored[1][p]);
        assert_memory_equal(stored[0][p], stored[1][p], dim * kvl_kv_dtype_bytes(dtype));
        places[p] = stored[0][p];
    }
    const struct kvl_kv_tile tile = {
        .positions = places, .count = count, .dim = dim, .dtype = dtype};
    float keys[2][KVL_TILE_TOKENS * MOST], values[2][KVL_TILE_TOKENS * MOST];
    memset(keys, 0xFF, sizeof keys); /* the kernels must clear what no position fills */
    memset(values, 0xFF, sizeof values);
    portable->load_keys(&tile, keys[0]);
    fast->load_keys(&tile, keys[1]);
    assert_memory_equal(keys[0], keys[1], sizeof keys[0]);
    portable->load_values(&tile, values[0]);
    fast->load_values(&tile, values[1]);
    assert_memory_equal(values[0], values[1], sizeof values[0]);
    check_direct(fast, &tile, keys[0], values[0], 1 + count % KVL_DIRECT_ROWS);
    for (uint32_t p = 0; p < (count + 15) / 16 * 16; p++) {
        for (uint32_t c = 0; c < strips * 16; c++) {
            const float value = p < count && c < dim ? x[p * MOST + c] : 0;
            const float rounded = dtype == KVL_KV_F16    ? kvl_f16_to_f32(kvl_f32_to_f16(value))
                                  : dtype == KVL_KV_BF16 ? kvl_bf16_to_f32(kvl_f32_to_bf16(value))
                                                         : value;
            assert_true(c >= dim || keys[1][(p / 16 * dim + c) * 16 + p % 16] == rounded);
            assert_true(
                p >= count || values[1][(c / 16 * KVL_TILE_TOKENS + p) * 16 + c % 16] == rounded);
        }
    }
    free(x);
}

static void check_tiles(const struct kvl_cpu_kernels *kernels) {
    static const uint32_t dims[] = {1, 8, 10, 16, 21, 32, 40, 64};
    for (int dtype = KVL_KV_F16; dtype <= KVL_KV_F32; dtype++) {
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
            for (uint32_t count = 1; count <= KVL_TILE_TOKENS; count++) {
                check_kv(kernels, (enum kvl_kv_dtype)dtype, dims[d], count);
            }
        }
    }
}

static void kv_comes_back_rounded_once(void **state) {
    (void)state;
    FOR_EACH_TABLE(kernels) {
        check_tiles(kernels);
    }
}

/* ---- e^x ---- */

static void exp_is_within_two_ulp(void **state) {
    (void)state;
    double worst = 0;
    float x[8], y[2][8];
    for (int step = 0; step < 129110; step++) { /* -87.3 to 88.3 */
        for (int i = 0; i < 8; i++) {
            x[i] = -87.3f + (float)(step * 8 + i) * 1.7e-4f;
        }
        portable->exp(x, 8, y[0]);
        FOR_EACH_TABLE(kernels) {
            kernels->exp(x, 8, y[1]);
            assert_memory_equal(y[0], y[1], sizeof y[0]);
        }
        for (int i = 0; i < 8; i++) {
            const double exact = exp((double)fminf(x[i], 88.3f));
            const double ulp = ldexp(1, ilogb(exact) - 23);
            worst = fmax(worst, fabs(y[0][i] - exact) / ulp);
        }
    }
    print_message("e^x: at most %.3f ulp off\n", worst);
    assert_true(worst < 2);
}

static void exp_has_the_right_ends(void **state) {
    (void)state;
    const float x[] = {-INFINITY, -1000, -88, 0, 1000, INFINITY, NAN};
    FOR_EACH_TABLE(kernels) {
        float y[7];
        kernels->exp(x, 7, y);
        assert_true(y[0] == 0 && y[1] == 0 && y[2] == 0 && y[3] == 1);
        assert_true(y[4] > 2e38f && isfinite(y[4]) && y[5] == y[4] && isnan(y[6]));
    }
}

/* ---- 16-bit floats: the portable conversions against the format's definition ---- */

static double half_by_definition(uint32_t half) {
    const int exponent = (int)(half >> 10 & 31);
    const double fraction = half & 1023;
    const double magnitude =
        exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return half >> 15 != 0 ? -magnitude : magnitude;
}

static void every_f16_goes_there_and_back(void **state) {
    (void)state;
    for (uint32_t half = 0; half < 65536; half++) {
        const float value = kvl_f16_to_f32((uint16_t)half);
        if ((half & 0x7FFF) > 0x7C00) {
            assert_true(isnan(value));
            assert_true((kvl_f32_to_f16(value) & 0x7FFF) > 0x7C00);
            continue;
        }
        assert_int_equal(kvl_f32_to_f16(value), half);
        assert_true((half & 0x7FFF) == 0x7C00 ? isinf(value) : value == half_by_definition(half));
    }
}

/* Halfway between neighbours goes to the even one, a hair beside it to the nearer one. */
static void f16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t half = 0; half < 0x7BFF; half++) {
        const double middle = (half_by_definition(half) + half_by_definition(half + 1)) / 2;
        const float exact = (float)middle;
        assert_int_equal(kvl_f32_to_f16(exact), half + half % 2);
        assert_int_equal(kvl_f32_to_f16(nextafterf(exact, 0)), half);
        assert_int_equal(kvl_f32_to_f16(-nextafterf(exact, 1e9f)), 0x8000 + half + 1);
    }
    assert_int_equal(kvl_f32_to_f16(65519.996f), 0x7BFF);
    assert_int_equal(kvl_f32_to_f16(65520), 0x7C00);
    assert_int_equal(kvl_f32_to_bf16(kvl_float_of(0x3F808000)), 0x3F80);
    assert_int_equal(kvl_f32_to_bf16(kvl_float_of(0x3F818000)), 0x3F82);
    assert_int_equal(kvl_f32_to_bf16(kvl_float_of(0x7FFFFFFF)) & 0x7FC0, 0x7FC0);
}

static void f16_tables_agree(void **state) {
    (void)state;
    uint64_t seed = 9;
    for (uint32_t i = 0; i < 200000; i += 8) {
        float x[8];
        uint16_t a[8], b[8];
        for (int j = 0; j < 8; j++) {
            x[j] = ldexpf(tiny_random(&seed), (int)(i / 8 % 50) - 30);
        }
        portable->store_kv(KVL_KV_F16, x, 8, a);
        FOR_EACH_TABLE(kernels) {
            kernels->store_kv(KVL_KV_F16, x, 8, b);
            assert_memory_equal(a, b, sizeof a);
        }
    }
}

/* ---- which table runs, and what all of them compute ---- */

static void the_best_table_runs_here(void **state) {
    (void)state;
    assert_true(kvl_cpu_kernels_best()->available());
    assert_null(kvl_cpu_kernels_named("sse9"));
    FOR_EACH_TABLE(kernels) {
        print_message("this CPU runs %s\n", kernels->name);
        assert_ptr_equal(kvl_cpu_kernels_named(kernels->name), kernels);
    }
    assert_ptr_equal(kvl_cpu_kernels_named("portable"), portable);
}

/* FNV-1a */
static uint64_t hash_of(uint64_t hash, const float *floats, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = kvl_bits_of(floats[i]);
        for (int at = 0; at < 32; at += 8) {
            hash = (hash ^ (bits >> at & 255)) * 1099511628211u;
        }
    }
    return hash;
}

static uint64_t hash_products(const struct kvl_cpu_kernels *kernels, uint64_t hash) {
    float *x = random_floats(COLUMNS, 5);
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        struct matrix m;
        float y[KVL_PANEL_ROWS];
        matrix_init(&m, types[t]);
        kernels->matvec(types[t], kvl_packed_panel(&m.packed, 1), COLUMNS, x, y, false);
        hash = hash_of(hash, y, KVL_PANEL_ROWS);
        matrix_deinit(&m);
    }
    free(x);
    return hash;
}

static uint64_t hash_rows(const struct kvl_cpu_kernels *kernels, uint64_t hash) {
    enum { COUNT = 61 };
    float y[COUNT];
    float *x = random_floats(KVL_TILE_TOKENS, 7), *w = random_floats(KVL_TILE_TOKENS, 8);
    kernels->rms_norm(x, w, COUNT, 1e-5f, y);
    hash = hash_of(hash, y, COUNT);
    kernels->swiglu(x, w, COUNT, y);
    hash = hash_of(hash, y, COUNT);
    kernels->geglu(x, w, COUNT, y);
    kernels->softcap(y, COUNT, 30);
    kernels->rope(y, COUNT - 1, w, x);
    kernels->rope_halves(y, COUNT - 1, x, w);
    kernels->add(y, w, COUNT);
    hash = hash_of(hash, y, COUNT);
    struct kvl_softmax softmax = {.max = -INFINITY};
    kernels->softmax_tile(w, COUNT, &softmax, y, COUNT);
    kernels->softmax_tile(x, COUNT, &softmax, y, COUNT);
    kernels->softmax_merge(&softmax, y, &(struct kvl_softmax){.max = 1, .sum = 2}, x, COUNT);
    hash = hash_of(hash_of(hash, x, COUNT), y, COUNT);
    free(x);
    free(w);
    return hash_of(hash, &softmax.max, 1);
}

/* The same on every CPU. Where it changes, blocks of before are other blocks: the arithmetic id of
 * cpu.c has to change with it. */
static void arithmetic_is_that_of_its_id(void **state) {
    (void)state;
    FOR_EACH_TABLE(kernels) {
        const uint64_t hash = hash_rows(kernels, hash_products(kernels, 14695981039346656037u));
        if (hash != EXPECTED_HASH) {
            fail_msg("%s: 0x%016llx", kernels->name, (unsigned long long)hash);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_weights_are_the_files),
        cmocka_unit_test(packed_weights_take_at_most_a_tenth_more),
        cmocka_unit_test(products_sum_in_one_order),
        cmocka_unit_test(rows_have_the_same_bits),
        cmocka_unit_test(softmax_has_the_same_bits),
        cmocka_unit_test(kv_comes_back_rounded_once),
        cmocka_unit_test(exp_is_within_two_ulp),
        cmocka_unit_test(exp_has_the_right_ends),
        cmocka_unit_test(every_f16_goes_there_and_back),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(f16_tables_agree),
        cmocka_unit_test(the_best_table_runs_here),
        cmocka_unit_test(arithmetic_is_that_of_its_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
