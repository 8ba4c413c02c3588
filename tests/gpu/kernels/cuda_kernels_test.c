/* cuda_kernels_test.c - the CUDA backend's own kernels, each alone, against plain loops in double
 * precision. No cuBLASLt, whose kernels racecheck cannot follow. */
#include "guarded.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "random_weights.h"

#define COUNT_OF(array) ((uint32_t)(sizeof(array) / sizeof(array)[0]))

/* ---- embedding and angles ---- */

static void check_embed(uint32_t width, uint32_t tokens, uint32_t rows) {
    enum { VOCAB = 11 };
    static const uint32_t ids[] = {10, 0, 3, 10, 7};
    uint64_t seed = width;
    const uint16_t *table = random_halves(&seed, (uint64_t)VOCAB * width, 3.0f);
    float *expected = guarded_host((uint64_t)rows * width * sizeof *expected);
    for (uint32_t i = 0; i < tokens * width; i++) { /* one product, rounded once */
        expected[i] = kvl_f16_to_f32(table[ids[i / width] * width + i % width]) * 0.3f;
    }
    const struct kvl_cuda_embed args = {
        .embedding = guarded_input(table, (uint64_t)VOCAB * width * sizeof *table),
        .ids = guarded_input(ids, tokens * sizeof *ids),
        .x = guarded_output(NULL, (uint64_t)rows * width * sizeof(float)),
        .scale = 0.3f,
        .width = width,
        .tokens = tokens,
        .rows = rows,
    };
    char what[96];
    snprintf(what, sizeof what, "embed, %u of %u rows of %u", tokens, rows, width);
    const void *got = guarded_result(kvl_cuda_embed(&args, guarded_stream()), args.x, what);
    expect_bits(what, got, expected, (uint64_t)rows * width, sizeof(float));
}

static void embed_takes_rows_and_zeroes_the_rest(void **state) {
    static const uint32_t widths[] = {1, 8, 255, 257, 1000};
    for (uint32_t i = 0; i < COUNT_OF(widths); i++) {
        check_embed(widths[i], 1, 1);
        check_embed(widths[i], 5, 5);
        check_embed(widths[i], 3, 8);
        assert_int_equal(guarded_release(state), 0);
    }
}

static void check_angles(uint32_t pairs, uint32_t tokens, uint32_t position) {
    const uint32_t count = 2 * pairs * tokens;
    double *frequencies = guarded_host(pairs * sizeof *frequencies);
    struct expected *expected = guarded_host(count * sizeof *expected);
    for (uint32_t i = 0; i < pairs; i++) {
        frequencies[i] = pow(10000.0, -(double)i / pairs);
    }
    for (uint32_t i = 0; i < count / 2; i++) { /* a double rounded may fall to either side */
        const double angle = (position + i / pairs) * frequencies[i % pairs];
        expected[2 * i] = (struct expected){1.25 * cos(angle), 1e-7};
        expected[2 * i + 1] = (struct expected){1.25 * sin(angle), 1e-7};
    }
    const struct kvl_cuda_angles args = {
        .frequencies = guarded_input(frequencies, pairs * sizeof *frequencies),
        .position = guarded_input(&position, sizeof position),
        .angles = guarded_output(NULL, count * sizeof(float)),
        .magnitude = 1.25f,
        .pairs = pairs,
        .tokens = tokens,
    };
    char what[96];
    snprintf(what, sizeof what, "angles, %u pairs, %u tokens from %u", pairs, tokens, position);
    const void *got = guarded_result(kvl_cuda_angles(&args, guarded_stream()), args.angles, what);
    expect_elements(what, KVL_KV_F32, got, expected, count, 2 * pairs);
}

static void angles_are_right_far_out(void **state) {
    static const uint32_t pairs[] = {1, 4, 63, 64, 65, 130}, positions[] = {0, 7, 131071};
    for (uint32_t i = 0; i < COUNT_OF(pairs); i++) {
        for (uint32_t j = 0; j < COUNT_OF(positions); j++) {
            check_angles(pairs[i], 1, positions[j]);
            check_angles(pairs[i], 3, positions[j]);
            assert_int_equal(guarded_release(state), 0);
        }
    }
    const uint32_t position = 0;
    const struct kvl_cuda_angles none = {/* where nothing turns */
        .position = guarded_input(&position, sizeof position),
        .angles = guarded_output(NULL, sizeof(float)),
        .tokens = 1};
    const struct expected nothing = {NAN, 0};
    const void *got =
        guarded_result(kvl_cuda_angles(&none, guarded_stream()), none.angles, "no angles");
    expect_elements("no angles", KVL_KV_F32, got, &nothing, 1, 1);
}

/* ---- norm and gate ---- */

/* Later rows are ever smaller, so that epsilon decides about them; the first weight takes values
 * out of f16's range. */
static void check_norm(uint32_t width, uint32_t rows) {
    const float epsilon = 0.01f;
    const uint64_t count = (uint64_t)width * rows;
    uint64_t seed = width + rows;
    float *x = random_floats(&seed, count, 1.0f);
    float *weights = random_floats(&seed, width, 2.0f);
    weights[0] = 1e6f;
    struct expected *expected = guarded_host(count * sizeof *expected);
    for (uint32_t row = 0; row < rows; row++) {
        double squares = 0;
        for (uint32_t c = 0; c < width; c++) {
            x[row * width + c] *= 1.0f / (float)(1 + row);
            squares += (double)x[row * width + c] * x[row * width + c];
        }
        for (uint32_t c = 0; c < width; c++) {
            const double value = x[row * width + c] / sqrt(squares / width + epsilon) * weights[c];
            expected[row * width + c] = (struct expected){value, 4e-6 * fabs(value)};
        }
    }
    const struct kvl_cuda_norm args = {
        .x = guarded_input(x, count * sizeof *x),
        .weights = guarded_input(weights, width * sizeof *weights),
        .out = guarded_output(NULL, count * sizeof(uint16_t)),
        .epsilon = epsilon,
        .width = width,
        .rows = rows,
    };
    char what[96];
    snprintf(what, sizeof what, "norm, %u rows of %u", rows, width);
    const void *got = guarded_result(kvl_cuda_norm(&args, guarded_stream()), args.out, what);
    expect_elements(what, KVL_KV_F16, got, expected, count, width);
}

static void norm_divides_by_the_root_of_the_mean(void **state) {
    static const uint32_t widths[] = {8, 2056, 24, 576, 2048, 4104};
    for (uint32_t i = 0; i < (guarded_is_small() ? 2 : COUNT_OF(widths)); i++) {
        check_norm(widths[i], 1);
        check_norm(widths[i], 7);
        assert_int_equal(guarded_release(state), 0);
    }
}

/* Later rows are ever smaller, so that epsilon decides about them. */
static void check_join(uint32_t width, uint32_t rows) {
    const float epsilon = 0.01f;
    const uint64_t count = (uint64_t)width * rows;
    uint64_t seed = width + rows;
    const float *x = random_floats(&seed, count, 3.0f);
    float *given = random_floats(&seed, count, 1.0f);
    const float *weights = random_floats(&seed, width, 2.0f);
    struct expected *expected = guarded_host(count * sizeof *expected);
    for (uint32_t row = 0; row < rows; row++) {
        double squares = 0;
        for (uint32_t c = 0; c < width; c++) {
            given[row * width + c] *= 1.0f / (float)(1 + row);
            squares += (double)given[row * width + c] * given[row * width + c];
        }
        for (uint32_t c = 0; c < width; c++) {
            const double added =
                given[row * width + c] / sqrt(squares / width + epsilon) * weights[c];
            expected[row * width + c] =
                (struct expected){x[row * width + c] + added, 4e-6 * fabs(added)};
        }
    }
    const struct kvl_cuda_join args = {
        .x = guarded_output(x, count * sizeof *x),
        .given = guarded_input(given, count * sizeof *given),
        .weights = guarded_input(weights, width * sizeof *weights),
        .epsilon = epsilon,
        .width = width,
        .rows = rows,
    };
    char what[96];
    snprintf(what, sizeof what, "join, %u rows of %u", rows, width);
    const void *got = guarded_result(kvl_cuda_join(&args, guarded_stream()), args.x, what);
    expect_elements(what, KVL_KV_F32, got, expected, count, width);
}

static void join_adds_what_is_normalized(void **state) {
    static const uint32_t widths[] = {8, 2056, 24, 576, 1024, 4104};
    for (uint32_t i = 0; i < (guarded_is_small() ? 2 : COUNT_OF(widths)); i++) {
        check_join(widths[i], 1);
        check_join(widths[i], 7);
        assert_int_equal(guarded_release(state), 0);
    }
}

static void check_gate(uint32_t width, uint32_t rows, bool gelu) {
    const uint64_t count = (uint64_t)width * rows;
    uint64_t seed = width + rows;
    uint16_t *gate_up = random_halves(&seed, 2 * count, 8.0f);
    gate_up[0] = gate_up[width] = kvl_f32_to_f16(60000.0f); /* a product that f16 does not hold */
    gate_up[1] = kvl_f32_to_f16(-60000.0f);                 /* whose exponential f32 does not */
    struct expected *expected = guarded_host(count * sizeof *expected);
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t at = i / width * 2 * width + i % width;
        const double gate = kvl_f16_to_f32(gate_up[at]), up = kvl_f16_to_f32(gate_up[at + width]);
        const double value = reference_activation(gate, gelu) * up;
        /* gelu: 1 + tanh cancels where the gate is below zero, which it is not far below */
        const double cancels = gelu && gate > -100 ? 3e-7 * fabs(gate * up) : 0;
        expected[i] = (struct expected){value, 4e-6 * fabs(value) + cancels};
    }
    const struct kvl_cuda_gate args = {
        .gate_up = guarded_input(gate_up, 2 * count * sizeof *gate_up),
        .out = guarded_output(NULL, count * sizeof(uint16_t)),
        .width = width,
        .rows = rows,
        .gelu = gelu,
    };
    char what[96];
    snprintf(what, sizeof what, "gate, %u rows of %u%s", rows, width, gelu ? ", gelu" : "");
    const void *got = guarded_result(kvl_cuda_gate(&args, guarded_stream()), args.out, what);
    expect_elements(what, KVL_KV_F16, got, expected, count, width);
}

static void gate_multiplies_each_with_its_partner(void **state) {
    static const uint32_t widths[] = {8, 16, 2040, 2048, 2056};
    for (uint32_t i = 0; i < COUNT_OF(widths); i++) {
        for (uint32_t gelu = 0; gelu < 2; gelu++) {
            check_gate(widths[i], 1, gelu != 0);
            check_gate(widths[i], 3, gelu != 0);
            assert_int_equal(guarded_release(state), 0);
        }
    }
}

/* ---- logits ---- */

static void softcap_stays_below_its_cap(void **state) {
    static const uint32_t counts[] = {1, 255, 256, 257, 1000};
    for (uint32_t i = 0; i < COUNT_OF(counts); i++) {
        uint64_t seed = counts[i];
        float *logits = random_floats(&seed, counts[i], 100.0f);
        struct expected *expected = guarded_host(counts[i] * sizeof *expected);
        logits[0] = i % 2 == 0 ? INFINITY : -INFINITY;
        for (uint32_t j = 0; j < counts[i]; j++) {
            const double value = 30.0 * tanh(logits[j] / 30.0);
            expected[j] = (struct expected){value, 1e-6 * fabs(value)};
        }
        float *out = guarded_output(logits, counts[i] * sizeof *logits);
        char what[64];
        snprintf(what, sizeof what, "softcap of %u", counts[i]);
        const void *got =
            guarded_result(kvl_cuda_softcap(out, counts[i], 30.0f, guarded_stream()), out, what);
        expect_elements(what, KVL_KV_F32, got, expected, counts[i], counts[i]);
        assert_int_equal(guarded_release(state), 0);
    }
}

/* The float whose order-keeping bits these are. */
static float float_of_key(uint32_t key) {
    const uint32_t bits = key >> 31 ? key ^ 0x80000000u : ~key;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void expect_argmax(
    const char *what, const float *logits, uint32_t count, uint32_t expected) {
    const unsigned long long zero = 0;
    const float *in = guarded_input(logits, count * sizeof *logits);
    unsigned long long *out = guarded_output(&zero, sizeof zero), best;
    const cudaError_t launched = kvl_cuda_argmax(in, count, out, guarded_stream());
    memcpy(&best, guarded_result(launched, out, what), sizeof best);
    const uint32_t key = (uint32_t)(best >> 32), index = kvl_cuda_argmax_index(best);
    if (index != expected) {
        fail_msg("%s of %u: %u is the largest (%.9g), expected %u (%.9g)", what, count, index,
            index < count ? (double)logits[index] : NAN, expected, (double)logits[expected]);
    }
    if (isnan(logits[expected])) {
        assert_int_equal(key, 0);
    } else if (!(float_of_key(key) == logits[expected])) {
        fail_msg("%s of %u: the largest is said to be %.9g, is %.9g", what, count,
            (double)float_of_key(key), (double)logits[expected]);
    }
}

static void fill_logits(float *logits, uint32_t count, float value) {
    for (uint32_t i = 0; i < count; i++) {
        logits[i] = value;
    }
}

static void check_places(uint32_t count) {
    const uint32_t places[] = {0, count / 2, count - 1};
    uint64_t seed = count;
    float *logits = random_floats(&seed, count, 50.0f);
    for (uint32_t i = 0; i < COUNT_OF(places); i++) {
        const float was = logits[places[i]];
        logits[places[i]] = 51.0f;
        expect_argmax("argmax, one place", logits, count, places[i]);
        logits[places[i]] = was;
    }
    for (uint32_t i = 0; i < count; i++) {
        logits[i] -= 100.0f;
    }
    logits[count / 3] = -49.0f;
    expect_argmax("argmax, all below zero", logits, count, count / 3);
    logits[count / 3] = INFINITY;
    expect_argmax("argmax, infinity", logits, count, count / 3);
}

static void check_ties(uint32_t count) {
    uint64_t seed = count;
    float *logits = random_floats(&seed, count, 50.0f);
    logits[count - 1] = logits[count / 2] = logits[count / 3] = 51.0f;
    expect_argmax("argmax, ties", logits, count, count / 3);
    fill_logits(logits, count, -3.0f);
    expect_argmax("argmax, all equal", logits, count, 0);
    logits[0] = -4.0f;
    expect_argmax("argmax, all but the first equal", logits, count, count > 1 ? 1 : 0);
    fill_logits(logits, count, 0.0f);
    logits[0] = -0.0f; /* equals 0 */
    expect_argmax("argmax, zeros", logits, count, 0);
}

static void check_nan(uint32_t count) {
    uint64_t seed = count;
    float *logits = random_floats(&seed, count, 50.0f);
    fill_logits(logits, count, NAN);
    expect_argmax("argmax, NaN only", logits, count, 0);
    logits[count - 1] = -INFINITY;
    expect_argmax("argmax, NaN loses to -infinity", logits, count, count - 1);
    fill_logits(logits, count, -1.0f);
    logits[0] = copysignf(NAN, -1.0f);
    logits[count - 1] = NAN;
    logits[count / 2] = -FLT_MIN;
    expect_argmax("argmax, NaN of either sign", logits, count, count / 2);
}

static void argmax_takes_the_first_of_the_largest(void **state) {
    /* 128 CTAs of 256 take all up to 32,768 */
    static const uint32_t counts[] = {1, 33, 257, 32769, 2, 31, 32, 256, 5000, 32768, 70001};
    for (uint32_t i = 0; i < (guarded_is_small() ? 4 : COUNT_OF(counts)); i++) {
        check_places(counts[i]);
        check_ties(counts[i]);
        if (counts[i] > 2) {
            check_nan(counts[i]);
        }
        assert_int_equal(guarded_release(state), 0);
    }
}

/* ---- at create ---- */

static void check_random(uint64_t count, uint32_t number, uint32_t columns) {
    const struct kvl_random_tensor tensor = kvl_random_tensor_of(42, number, columns);
    uint16_t *expected = guarded_host(count * sizeof *expected);
    for (uint64_t i = 0; i < count; i++) {
        expected[i] = kvl_f32_to_f16(kvl_random_value(tensor, i));
    }
    void *out = guarded_output(NULL, count * sizeof *expected);
    char what[64];
    snprintf(what, sizeof what, "%llu weights of tensor %u", (unsigned long long)count, number);
    const void *got = guarded_result(
        kvl_cuda_random_fill(out, count, tensor.key, tensor.offset, tensor.step, guarded_stream()),
        out, what);
    expect_bits(what, got, expected, count, sizeof *expected);
}

static void random_weights_are_those_of_every_backend(void **state) {
    static const uint32_t numbers[] = {KVL_RANDOM_EMBEDDING, KVL_RANDOM_OUTPUT_NORM,
        KVL_RANDOM_LAYERS + KVL_RANDOM_FFN_NORM, KVL_RANDOM_LAYERS + 1};
    static const uint64_t counts[] = {1, 255, 257, 5000};
    for (uint32_t i = 0; i < COUNT_OF(numbers); i++) {
        for (uint32_t j = 0; j < COUNT_OF(counts); j++) {
            check_random(counts[j], numbers[i], 1000);
            assert_int_equal(guarded_release(state), 0);
        }
    }
    if (!guarded_is_small()) {
        check_random((1u << 24) + 3, KVL_RANDOM_LAYERS + 1, 4096); /* threads take a second one */
    }
}

static void check_pattern(uint32_t rows, uint32_t columns, uint32_t period) {
    void *out = guarded_output(NULL, (uint64_t)rows * columns * sizeof(uint16_t));
    char what[64];
    snprintf(what, sizeof what, "pattern, %u rows of %u, period %u", rows, columns, period);
    const uint16_t *got = guarded_result(
        kvl_cuda_pattern_fill(out, rows, columns, period, guarded_stream()), out, what);
    for (uint32_t i = 0; i < rows * columns; i++) {
        if (!(fabsf(kvl_f16_to_f32(got[i])) <= 1.0f)) {
            fail_msg("%s: element %u is %.9g", what, i, (double)kvl_f16_to_f32(got[i]));
        }
    }
    for (uint32_t row = 1; row < rows; row++) {
        const uint16_t *this_row = got + (uint64_t)row * columns;
        if (row >= period) {
            expect_bits(
                what, this_row, got + (uint64_t)(row % period) * columns, columns, sizeof *got);
        } else if (memcmp(this_row, this_row - columns, columns * sizeof *got) == 0) {
            fail_msg("%s: row %u is as the one before", what, row);
        }
    }
}

static void patterns_repeat_after_their_period(void **state) {
    static const uint32_t columns[] = {8, 255, 257, 1000};
    for (uint32_t i = 0; i < COUNT_OF(columns); i++) {
        check_pattern(1, columns[i], 1);
        check_pattern(5, columns[i], 1);
        check_pattern(9, columns[i], 4);
        check_pattern(130, columns[i], 128);
        assert_int_equal(guarded_release(state), 0);
    }
}

/* Rows as expected but for every `step`-th word and the very last one. */
static void check_count(uint32_t rows, uint32_t words, uint32_t period, uint32_t step) {
    const uint32_t before = 7;
    uint64_t seed = words;
    uint32_t wrong = 0;
    const void *expected = random_floats(&seed, (uint64_t)period * words, 1.0f);
    uint32_t *got = guarded_host((uint64_t)rows * words * sizeof *got);
    for (uint32_t i = 0; i < rows * words; i++) {
        const uint32_t from = i / words % period * words + i % words;
        memcpy(&got[i], (const uint32_t *)expected + from, sizeof *got);
        if (step > 0 && (i % step == 0 || i == rows * words - 1)) {
            got[i] ^= 1u << i % 32; /* one bit is enough */
            wrong++;
        }
    }
    uint32_t *count = guarded_output(&before, sizeof before), counted;
    const cudaError_t launched =
        kvl_cuda_count_differences(guarded_input(got, (uint64_t)rows * words * sizeof *got), rows,
            words, guarded_input(expected, (uint64_t)period * words * sizeof *got), period, count,
            guarded_stream());
    char what[96];
    snprintf(what, sizeof what, "differences, %u rows of %u, period %u", rows, words, period);
    memcpy(&counted, guarded_result(launched, count, what), sizeof counted);
    if (counted != before + wrong) {
        fail_msg("%s: counted %u, expected %u", what, counted - before, wrong);
    }
}

static void differences_are_counted_word_by_word(void **state) {
    static const uint32_t words[] = {1, 255, 257, 1000}, steps[] = {0, 1, 3, 1u << 30};
    for (uint32_t i = 0; i < COUNT_OF(words); i++) {
        for (uint32_t j = 0; j < COUNT_OF(steps); j++) {
            check_count(1, words[i], 1, steps[j]);
            check_count(7, words[i], 3, steps[j]);
            assert_int_equal(guarded_release(state), 0);
        }
    }
}

/* NULL, or why there is nothing to run on. */
static const char *reason_to_skip(void) {
    int count = 0, major = 0;
    const cudaError_t err = cudaGetDeviceCount(&count);
    if (err != cudaSuccess || count == 0) {
        return err != cudaSuccess ? cudaGetErrorString(err) : "no GPU";
    }
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
        major < 8) {
        return "the kernels need compute capability 8.0";
    }
    return NULL;
}

int main(int argc, char **argv) {
    const char *reason = reason_to_skip();
    if (reason != NULL) {
        printf("skipped: %s\n", reason);
        return 77;
    }
    if (!guarded_open()) {
        return 1;
    }
#define TEST(function) cmocka_unit_test_teardown(function, guarded_release)
    const struct CMUnitTest tests[] = {
        TEST(embed_takes_rows_and_zeroes_the_rest),
        TEST(angles_are_right_far_out),
        TEST(norm_divides_by_the_root_of_the_mean),
        TEST(join_adds_what_is_normalized),
        TEST(place_puts_heads_into_their_blocks),
        TEST(gate_multiplies_each_with_its_partner),
        TEST(softcap_stays_below_its_cap),
        TEST(argmax_takes_the_first_of_the_largest),
        TEST(gemv_gives_sums_of_its_rows),
        TEST(gemv_gates_what_it_multiplies),
        TEST(gemv_may_start_before_the_kernel_ahead_ends),
        TEST(gemv_says_what_code_it_runs),
        TEST(random_weights_are_those_of_every_backend),
        TEST(patterns_repeat_after_their_period),
        TEST(differences_are_counted_word_by_word),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guarded_close();
    return failed;
}
