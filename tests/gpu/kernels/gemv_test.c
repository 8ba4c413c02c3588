/* gemv_test.c - matrix times vector against sums in double precision, for rows that do not fill a
 * CTA (of 4, or of 4 gates) and columns that are not a multiple of what a CTA reads at once
 * (1,024). */
#include "guarded.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cpu/half.h"

static const float epsilon = 0.01f;

struct gemv_case {
    enum kvl_cuda_gemv_kind kind;
    uint32_t rows, columns;
    bool gelu;
};

struct gemv_world {
    struct gemv_case shape;
    uint16_t *w, *x16;
    float *x, *norm, *y;
};

static bool has_norm(enum kvl_cuda_gemv_kind kind) {
    return kind == KVL_CUDA_GEMV_NORM_F16 || kind == KVL_CUDA_GEMV_NORM_F32 ||
           kind == KVL_CUDA_GEMV_NORM_GATE;
}
static bool takes_f16(enum kvl_cuda_gemv_kind kind) {
    return kind == KVL_CUDA_GEMV_ADD_F16 || kind == KVL_CUDA_GEMV_SET_F16;
}
static bool adds(enum kvl_cuda_gemv_kind kind) {
    return kind == KVL_CUDA_GEMV_ADD_F16 || kind == KVL_CUDA_GEMV_ADD_F32;
}

static struct gemv_world make_world(struct gemv_case shape) {
    uint64_t seed = 1000 * shape.rows + shape.columns;
    struct gemv_world w = {.shape = shape};
    w.w = random_halves(&seed, (uint64_t)shape.rows * shape.columns, 1.0f);
    w.x16 = random_halves(&seed, shape.columns, 0.25f);
    w.x = random_floats(&seed, shape.columns, 0.25f);
    w.norm = random_floats(&seed, shape.columns, 2.0f);
    w.y = random_floats(&seed, shape.rows, 4.0f);
    if (shape.kind == KVL_CUDA_GEMV_NORM_F16 && shape.rows > 1) { /* more than f16 holds */
        for (uint32_t k = 0; k < shape.columns; k++) {
            w.w[k] = kvl_f32_to_f16(copysignf(60000.0f, -w.x[k] * w.norm[k]));
        }
    }
    return w;
}

/* What w x is multiplied by. */
static double factor_of(const struct gemv_world *w) {
    double squares = 0;
    for (uint32_t k = 0; k < w->shape.columns; k++) {
        squares += (double)w->x[k] * w->x[k];
    }
    return has_norm(w->shape.kind) ? 1 / sqrt(squares / w->shape.columns + epsilon) : 1;
}

/* The slack: a thread adds 8 products of every 1,024, and nine sums join the threads'; as much
 * again for the squares, the norm's weights and the root. */
static struct expected product_of(const struct gemv_world *w, uint32_t row) {
    const uint32_t columns = w->shape.columns;
    double sum = 0, sizes = 0;
    for (uint32_t k = 0; k < columns; k++) {
        const double x = takes_f16(w->shape.kind)  ? kvl_f16_to_f32(w->x16[k])
                         : has_norm(w->shape.kind) ? (double)w->x[k] * w->norm[k]
                                                   : w->x[k];
        const double term = x * kvl_f16_to_f32(w->w[(uint64_t)row * columns + k]);
        sum += term;
        sizes += fabs(term);
    }
    const double roundings = 2.0 * (8.0 * ((columns + 1023) / 1024) + 9);
    const double factor = factor_of(w);
    return (struct expected){sum * factor, roundings * 0x1p-24 * sizes * factor};
}

static struct expected expected_of(const struct gemv_world *w, uint32_t row) {
    struct expected sum = product_of(w, row);
    if (adds(w->shape.kind)) {
        sum.value += w->y[row];
    }
    if (w->shape.kind != KVL_CUDA_GEMV_NORM_GATE) {
        return sum;
    }
    const struct expected up = product_of(w, row + w->shape.rows / 2);
    const double active = reference_activation(sum.value, w->shape.gelu);
    const double slack = 1.2 * sum.slack * fabs(up.value) + fabs(active) * up.slack +
                         1e-6 * fabs(sum.value * up.value); /* 1 + tanh may cancel */
    return (struct expected){active * up.value, slack};
}

static struct kvl_cuda_gemv put_world(const struct gemv_world *w) {
    const uint64_t columns = w->shape.columns;
    const bool norm = has_norm(w->shape.kind), x16 = takes_f16(w->shape.kind);
    return (struct kvl_cuda_gemv){
        .kind = w->shape.kind,
        .w = guarded_input(w->w, w->shape.rows * columns * sizeof *w->w),
        .rows = w->shape.rows,
        .columns = w->shape.columns,
        .x = x16 ? NULL : guarded_input(w->x, columns * sizeof *w->x),
        .x16 = x16 ? guarded_input(w->x16, columns * sizeof *w->x16) : NULL,
        .norm = norm ? guarded_input(w->norm, columns * sizeof *w->norm) : NULL,
        .epsilon = epsilon,
        .gelu = w->shape.gelu,
    };
}

static void check_gemv(struct gemv_case shape) {
    const struct gemv_world w = make_world(shape);
    const bool gate = shape.kind == KVL_CUDA_GEMV_NORM_GATE;
    const bool y16 = shape.kind == KVL_CUDA_GEMV_NORM_F16;
    const uint32_t outputs = gate ? shape.rows / 2 : shape.rows;
    struct kvl_cuda_gemv args = put_world(&w);
    void *out = guarded_output(
        adds(shape.kind) ? w.y : NULL, outputs * (y16 ? sizeof(uint16_t) : sizeof(float)));
    args.y = y16 ? NULL : out;
    args.y16 = y16 ? out : NULL;
    struct expected *expected = guarded_host(outputs * sizeof *expected);
    for (uint32_t row = 0; row < outputs; row++) {
        expected[row] = expected_of(&w, row);
    }
    char what[96];
    snprintf(what, sizeof what, "gemv of kind %d, %u rows of %u columns%s", (int)shape.kind,
        shape.rows, shape.columns, shape.gelu ? ", gelu" : "");
    const void *got = guarded_result(kvl_cuda_gemv(&args, guarded_stream()), out, what);
    expect_elements(what, y16 ? KVL_KV_F16 : KVL_KV_F32, got, expected, outputs, 1);
}

static const uint32_t all_columns[] = {8, 1032, 1024, 16, 1016, 2048, 2056, 4104};

static uint32_t columns_count(void) {
    return guarded_is_small() ? 2 : sizeof all_columns / sizeof all_columns[0];
}

void gemv_gives_sums_of_its_rows(void **state) {
    static const enum kvl_cuda_gemv_kind kinds[] = {KVL_CUDA_GEMV_NORM_F16, KVL_CUDA_GEMV_NORM_F32,
        KVL_CUDA_GEMV_ADD_F16, KVL_CUDA_GEMV_ADD_F32, KVL_CUDA_GEMV_SET_F16, KVL_CUDA_GEMV_SET_F32};
    static const uint32_t rows[] = {1, 5, 3, 4, 7, 130};
    for (uint32_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (uint32_t j = 0; j < columns_count(); j++) {
            for (uint32_t k = 0; k < (guarded_is_small() ? 2 : sizeof rows / sizeof rows[0]); k++) {
                check_gemv((struct gemv_case){kinds[i], rows[k], all_columns[j], false});
                assert_int_equal(guarded_release(state), 0);
            }
        }
    }
}

void gemv_gates_what_it_multiplies(void **state) {
    static const uint32_t rows[] = {2, 10, 6, 8, 14, 130};
    for (uint32_t j = 0; j < columns_count(); j++) {
        for (uint32_t k = 0; k < (guarded_is_small() ? 2 : sizeof rows / sizeof rows[0]); k++) {
            for (uint32_t gelu = 0; gelu < 2; gelu++) {
                check_gemv((struct gemv_case){
                    KVL_CUDA_GEMV_NORM_GATE, rows[k], all_columns[j], gelu != 0});
                assert_int_equal(guarded_release(state), 0);
            }
        }
    }
}

enum { HIDDEN = 2056, ROWS = 1032, CHAINED = 4 };

/* Gates, then a product of them; its x is all NaN until the kernel ahead has written it. */
static void run_chain(const struct gemv_world *gate, const struct gemv_world *down,
    bool programmatic, float result[ROWS]) {
    struct kvl_cuda_gemv first = put_world(gate), second = put_world(down);
    first.y = guarded_output(NULL, HIDDEN * sizeof(float));
    second.x = first.y;
    second.y = guarded_output(down->y, ROWS * sizeof(float));
    first.programmatic = second.programmatic = programmatic;
    cudaError_t launched = kvl_cuda_gemv(&first, guarded_stream());
    if (launched == cudaSuccess) {
        launched = kvl_cuda_gemv(&second, guarded_stream());
    }
    (void)guarded_result(launched, first.y, "gates of a chain");
    memcpy(result, guarded_result(cudaSuccess, second.y, "sums of a chain"), ROWS * sizeof(float));
}

void gemv_may_start_before_the_kernel_ahead_ends(void **state) {
    struct kvl_cuda_code code;
    assert_int_equal(kvl_cuda_gemv_code(&code), cudaSuccess);
    if (code.virtual_machine < 90) {
        print_message("the kernels were compiled for %u: no wait in them\n", code.virtual_machine);
        skip();
    }
    float expected[ROWS], got[ROWS];
    const uint32_t width = guarded_is_small() ? 1032 : 4104; /* the first kernel takes a while */
    for (uint32_t i = 0; i < (guarded_is_small() ? 2 : CHAINED); i++) {
        const struct gemv_world gate =
            make_world((struct gemv_case){KVL_CUDA_GEMV_NORM_GATE, 2 * HIDDEN, width, false});
        const struct gemv_world down =
            make_world((struct gemv_case){KVL_CUDA_GEMV_ADD_F32, ROWS, HIDDEN, false});
        run_chain(&gate, &down, i > 0, i == 0 ? expected : got);
        if (i > 0) {
            expect_bits("a chain of launches that overlap", got, expected, ROWS, sizeof(float));
        }
        assert_int_equal(guarded_release(state), 0);
    }
    for (uint32_t i = 0; i < ROWS; i++) {
        assert_true(isfinite(expected[i]));
    }
}

void gemv_says_what_code_it_runs(void **state) {
    (void)state;
    struct kvl_cuda_code code;
    int major = 0, minor = 0;
    assert_int_equal(kvl_cuda_gemv_code(&code), cudaSuccess);
    assert_int_equal(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
    assert_int_equal(
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), cudaSuccess);
    const uint32_t device = (uint32_t)(10 * major + minor);
    assert_in_range(code.virtual_machine, 80, device);
    assert_in_range(code.machine, code.virtual_machine, device);
    assert_int_equal(code.machine / 10, major); /* machine code runs on its own major only */
    assert_ptr_equal(strstr(kvl_cuda_compiler, "nvcc-"), kvl_cuda_compiler);
}
