/* model_random_test.c - random models: what shapes are taken, which weights they have, and that
 * equal seeds give equal models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/pack.h"
#include "model.h"
#include "random_weights.h"

#define SHAPE                                                                                      \
    "\"layers\": 2, \"width\": 64, \"ffn_width\": 96, \"heads\": 4, \"vocab\": 100, "              \
    "\"context_max\": 128"

static struct kvl_errmsg msg;

static kvl_err load(const char *json, uint64_t seed, struct kvl_model **model) {
    char path[] = "/tmp/kvloft-shape-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, json, strlen(json)), strlen(json));
    close(fd);
    kvl_err err = kvl_model_random(path, seed, model, &msg);
    unlink(path);
    return err;
}

static void test_defaults(void **state) {
    (void)state;
    struct kvl_model *model = NULL;
    assert_int_equal(load("{" SHAPE "}", 1, &model), KVL_OK);
    const struct kvl_hparams *h = &model->hparams;
    assert_int_equal(h->kv_heads, 4);
    assert_int_equal(h->k_dim, 16);
    assert_int_equal(h->v_dim, 16);
    assert_int_equal(h->rope_dims, 16);
    assert_true(h->attention_scale == 0.25f && h->embedding_scale == 1 && h->rope_magnitude == 1);
    assert_true(h->rope_frequencies[0] == 1 && h->rope_frequencies[7] < 1);
    assert_true(model->is_random);
    assert_null(model->gguf);
    assert_int_equal(model->layers[1].ffn_down.columns, 96);
    assert_int_equal(model->layers[1].ffn_down.random_number, 3 + 9 + 8);
    assert_int_equal(model->output.random_number, KVL_RANDOM_OUTPUT);
    kvl_model_free(model);
    assert_int_equal(load("{" SHAPE ", \"tied\": true}", 1, &model), KVL_OK);
    assert_int_equal(model->output.random_number, KVL_RANDOM_EMBEDDING);
    kvl_model_free(model);
}

static void test_known_shapes(void **state) {
    (void)state;
    static const char *const names[] = {"llama-8b", "llama-1b", "qwen2-7b"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
        struct kvl_model *model = NULL;
        assert_int_equal(kvl_model_random(names[i], 0, &model, &msg), KVL_OK);
        assert_int_equal(model->hparams.heads % model->hparams.kv_heads, 0);
        kvl_model_free(model);
    }
}

static void test_fingerprints(void **state) {
    (void)state;
    static const struct {
        const char *json;
        uint64_t seed;
    } models[] = {{"{" SHAPE "}", 1}, {"{" SHAPE "}", 2}, {"{" SHAPE ", \"tied\": true}", 1},
        {"{" SHAPE ", \"kv_heads\": 2}", 1}, {"{" SHAPE ", \"rope_base\": 5000}", 1},
        {"{" SHAPE ", \"window\": 64}", 1},
        {"{" SHAPE ", \"window\": 64, \"window_pattern\": 3}", 1}};
    enum { MODELS = sizeof models / sizeof models[0] };
    uint8_t seen[MODELS][32];
    for (size_t i = 0; i < MODELS; ++i) {
        struct kvl_model *model = NULL, *again = NULL;
        assert_int_equal(load(models[i].json, models[i].seed, &model), KVL_OK);
        assert_int_equal(load(models[i].json, models[i].seed, &again), KVL_OK);
        assert_memory_equal(model->fingerprint, again->fingerprint, 32);
        memcpy(seen[i], model->fingerprint, 32);
        for (size_t j = 0; j < i; ++j)
            assert_memory_not_equal(seen[i], seen[j], 32);
        kvl_model_free(model);
        kvl_model_free(again);
    }
}

static void test_weights_are_of_the_formula_and_f16(void **state) {
    (void)state;
    struct kvl_model *model = NULL;
    float row[96];
    double sum = 0, squares = 0;
    assert_int_equal(load("{" SHAPE "}", 7, &model), KVL_OK);
    const struct kvl_weight *down = &model->layers[0].ffn_down;
    struct kvl_random_tensor tensor = kvl_random_tensor_of(7, down->random_number, down->columns);
    for (uint32_t r = 0; r < down->rows; ++r) {
        kvl_unpack_row(down, r, row);
        for (uint32_t c = 0; c < down->columns; ++c) {
            assert_true(row[c] == kvl_random_value(tensor, (uint64_t)r * down->columns + c));
            assert_true(fmodf(row[c] * 8192, 1) == 0 && fabsf(row[c]) < 0.125f); /* 10 bits */
            sum += row[c];
            squares += (double)row[c] * row[c];
        }
    }
    double count = (double)down->rows * down->columns;
    assert_true(fabs(sum / count) < 0.005);
    assert_true(fabs(squares / count * down->columns - 0.5) < 0.05); /* 96 / 64 / 3 */
    kvl_unpack_row(&model->layers[0].ffn_norm, 0, row);
    for (uint32_t c = 0; c < 64; ++c)
        assert_true(row[c] >= 0.5f && row[c] < 1.5f);
    kvl_model_free(model);
}

static void assert_refused(const char *json, const char *why) {
    struct kvl_model *model = NULL;
    assert_int_equal(load(json, 0, &model), KVL_ERR_INVALID);
    assert_null(model);
    assert_non_null(strstr(msg.text, why));
}

static void test_bad_shapes_are_refused(void **state) {
    (void)state;
    struct kvl_model *model = NULL;
    assert_refused("", ":1:");
    assert_refused("[]", "object");
    assert_refused("{\"layers\": 2}", "width");
    assert_refused("{" SHAPE ", \"wdth\": 2}", "wdth");
    assert_refused("{" SHAPE ", \"kv_heads\": 3}", "evenly");
    assert_refused("{" SHAPE ", \"k_dim\": 0}", "k_dim");
    assert_refused("{" SHAPE ", \"k_dim\": 2000}", "k_dim");
    assert_refused("{" SHAPE ", \"k_dim\": 16.5}", "k_dim");
    assert_refused("{" SHAPE ", \"rope_dims\": 15}", "rope_dims");
    assert_refused("{" SHAPE ", \"rope_dims\": 18}", "rope_dims");
    assert_refused("{" SHAPE ", \"rope_base\": -1}", "rope_base");
    assert_refused("{" SHAPE ", \"tied\": 1}", "tied");
    assert_refused("{" SHAPE ", \"window\": 0}", "window");
    assert_refused("{" SHAPE ", \"window_pattern\": 2}", "window_pattern");
    assert_int_equal(kvl_model_random("/nowhere/shape", 0, &model, &msg), KVL_ERR_NOTFOUND);
    assert_non_null(strstr(msg.text, "llama-8b"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_known_shapes),
        cmocka_unit_test(test_fingerprints),
        cmocka_unit_test(test_weights_are_of_the_formula_and_f16),
        cmocka_unit_test(test_bad_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
