/* weights_test.c - every weight type means what PyPI's gguf says, to the bit: as a row, and as
 * every table of kernels unpacks it from a panel. Reference: make_weight_reference.py. A NaN has to
 * be a NaN; which one depends on the order of a product's factors. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/half.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "quant.h"

enum { COLUMNS = 256 };

static const uint32_t types[] = {KVL_GGML_F32, KVL_GGML_F16, KVL_GGML_BF16, KVL_GGML_Q8_0,
    KVL_GGML_Q4_0, KVL_GGML_Q4_1, KVL_GGML_Q5_0, KVL_GGML_Q5_1, KVL_GGML_Q2_K, KVL_GGML_Q3_K,
    KVL_GGML_Q4_K, KVL_GGML_Q5_K, KVL_GGML_Q6_K, KVL_GGML_IQ4_NL, KVL_GGML_IQ4_XS};

static void compare(const char *what, uint32_t row, const float *ours, size_t stride,
    const struct kvl_gguf_tensor *theirs) {
    const float *expected = (const float *)theirs->data + (size_t)row * COLUMNS;
    for (uint32_t k = 0; k < COLUMNS; k++) {
        const float value = ours[k * stride];
        if (isnan(expected[k]) ? !isnan(value) : kvl_bits_of(value) != kvl_bits_of(expected[k])) {
            fail_msg("%s, row %u, weight %u: %a, not %a", what, row, k, value, expected[k]);
        }
    }
}

static void check_panel(const char *name, const struct kvl_packed *packed,
    const struct kvl_gguf_tensor *expected, const struct kvl_cpu_kernels *kernels) {
    float strip[COLUMNS * KVL_STRIP_ROWS];
    char what[64];
    snprintf(what, sizeof what, "%s by %s", name, kernels->name);
    kernels->unpack_strip(packed->type, kvl_packed_panel(packed, 0), 0, COLUMNS, strip);
    for (uint32_t row = 0; row < packed->rows; row++) {
        compare(what, row, strip + row, KVL_STRIP_ROWS, expected);
    }
}

static void check_type(const struct kvl_gguf *gguf, uint32_t type, struct kvl_pool *pool) {
    const char *name = kvl_ggml_layout(type)->name;
    char key[32];
    snprintf(key, sizeof key, "%s.f32", name);
    const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor(gguf, name);
    const struct kvl_gguf_tensor *expected = kvl_gguf_tensor(gguf, key);
    assert_true(tensor != NULL && tensor->type == type && tensor->dims[0] == COLUMNS);
    assert_true(expected != NULL && expected->dims[1] == tensor->dims[1]);
    const struct kvl_weight weight = {
        .tensor = tensor, .rows = (uint32_t)tensor->dims[1], .columns = COLUMNS};
    for (uint32_t row = 0; row < weight.rows; row++) {
        float values[COLUMNS];
        kvl_unpack_row(&weight, row, values);
        compare(name, row, values, 1, expected);
    }
    struct kvl_packed packed;
    struct kvl_packed_memory memory;
    assert_int_equal(
        kvl_pack(&(struct kvl_pack_item){&weight, &packed}, 1, pool, &memory, NULL), KVL_OK);
    for (const struct kvl_cpu_kernels *const *table = kvl_cpu_kernels_all; *table != NULL;
         table++) {
        if ((*table)->available()) {
            check_panel(name, &packed, expected, *table);
        }
    }
    kvl_packed_free(&memory);
}

static void every_type_has_the_bits_of_gguf(void **state) {
    (void)state;
    struct kvl_gguf *gguf;
    struct kvl_errmsg msg;
    struct kvl_pool *pool;
    assert_int_equal(kvl_gguf_open(KVL_GOLDEN_DATA "/weights.gguf", &gguf, &msg), KVL_OK);
    assert_int_equal(kvl_pool_create(1, &pool, &msg), KVL_OK);
    assert_int_equal(kvl_gguf_tensor_count(gguf), 2 * sizeof types / sizeof types[0]);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        check_type(gguf, types[i], pool);
    }
    kvl_pool_destroy(pool);
    kvl_gguf_close(gguf);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_has_the_bits_of_gguf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
