/* model_test.c - hyperparameters come out as the file says, with llama's defaults; what would give
 * wrong text or an overflow is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "tiny_model.h"

static struct kvl_model *load(struct gguf_writer *writer) {
    char *path = tiny_save(writer);
    struct kvl_errmsg msg = {{0}};
    struct kvl_model *model = NULL;
    if (kvl_model_load(path, &model, &msg) != KVL_OK) {
        fail_msg("%s", msg.text);
    }
    free(path);
    return model;
}

static void refuse(struct gguf_writer *writer, kvl_err err, const char *named) {
    char *path = tiny_save(writer);
    struct kvl_errmsg msg = {{0}};
    struct kvl_model *model = NULL;
    assert_int_equal(kvl_model_load(path, &model, &msg), err);
    assert_null(model);
    if (strstr(msg.text, named) == NULL) {
        fail_msg("'%s' does not name %s", msg.text, named);
    }
    free(path);
}

static void write_default(struct gguf_writer *writer) {
    const struct tiny_shape shape = tiny_shape_default();
    tiny_model_write(writer, &shape);
}

static void reads_hyperparameters(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct tiny_shape shape = tiny_shape_default();
    shape.tied = false;
    shape.rope_dims = 8;
    tiny_model_write(&writer, &shape);
    struct kvl_model *model = load(&writer);
    const struct kvl_hparams *h = &model->hparams;
    assert_string_equal(h->architecture, "llama");
    assert_int_equal(h->layers, 2);
    assert_int_equal(h->width, 96);
    assert_int_equal(h->ffn_width, 160);
    assert_int_equal(h->heads, 6);
    assert_int_equal(h->kv_heads, 2);
    assert_int_equal(h->k_dim, 16);
    assert_int_equal(h->v_dim, 16);
    assert_int_equal(h->rope_dims, 8);
    assert_int_equal(h->vocab, 70);
    assert_int_equal(h->context_max, 4096);
    assert_true(h->rope_base == 10000.0f && h->rms_epsilon == 1e-5f);
    assert_ptr_not_equal(model->output.tensor, model->embedding.tensor);
    assert_int_equal(model->layers[1].ffn_down.columns, 160);
    kvl_model_free(model);
    kvl_model_free(NULL);
}

/* Only what llama.cpp's files always have; heads and RoPE take llama's defaults. */
static void fills_in_defaults(void **state) {
    (void)state;
    struct tiny_shape shape = tiny_shape_default();
    shape.kv_heads = shape.heads;
    struct gguf_writer full, bare;
    tiny_model_write(&full, &shape);
    gguf_writer_init(&bare);
    gguf_add_string(&bare, "general.architecture", "llama");
    gguf_add_u32(&bare, "llama.block_count", shape.layers);
    gguf_add_u32(&bare, "llama.context_length", 77);
    gguf_add_u32(&bare, "llama.embedding_length", shape.width);
    gguf_add_u32(&bare, "llama.feed_forward_length", shape.ffn_width);
    gguf_add_u32(&bare, "llama.attention.head_count", shape.heads);
    gguf_add_f32(&bare, "llama.attention.layer_norm_rms_epsilon", 1e-6f);
    bare.tensors = full.tensors; /* the same tensors under less metadata */
    bare.data = full.data;
    bare.tensor_count = full.tensor_count;
    full.tensors = full.data = (struct gguf_buffer){0};
    gguf_writer_deinit(&full);
    struct kvl_model *model = load(&bare);
    assert_int_equal(model->hparams.kv_heads, 6);
    assert_int_equal(model->hparams.k_dim, 16);
    assert_int_equal(model->hparams.v_dim, 16);
    assert_int_equal(model->hparams.rope_dims, 16);
    assert_true(model->hparams.rope_base == 10000.0f);
    assert_ptr_equal(model->output.tensor, model->embedding.tensor);
    kvl_model_free(model);
}

static void refuses_other_architectures(void **state) {
    (void)state;
    struct gguf_writer writer;
    gguf_writer_init(&writer);
    gguf_add_string(&writer, "general.architecture", "mamba");
    refuse(&writer, KVL_ERR_UNSUPPORTED,
        "'mamba' is not supported; use a model of one of these: llama");
    gguf_writer_init(&writer);
    gguf_add_u32(&writer, "llama.block_count", 2);
    refuse(&writer, KVL_ERR_CORRUPT, "general.architecture");
}

static void refuses_features_by_name(void **state) {
    (void)state;
    struct gguf_writer writer;
    write_default(&writer);
    gguf_add_string(&writer, "llama.rope.scaling.type", "longrope");
    refuse(&writer, KVL_ERR_UNSUPPORTED, "longrope");
    write_default(&writer);
    gguf_add_u32(&writer, "llama.expert_count", 8);
    refuse(&writer, KVL_ERR_UNSUPPORTED, "expert_count");
}

static struct kvl_model *load_with_float(const char *key, float value) {
    struct gguf_writer writer;
    write_default(&writer);
    gguf_add_f32(&writer, key, value);
    return load(&writer);
}

static void scales_rope_linearly(void **state) {
    (void)state;
    static const char *const keys[] = {"llama.rope.scale_linear", "llama.rope.scaling.factor"};
    struct kvl_model *plain = load_with_float(keys[0], 1);
    assert_false(plain->hparams.rope_scaled);
    for (size_t i = 0; i < 2; i++) {
        struct kvl_model *model = load_with_float(keys[i], 4);
        assert_true(model->hparams.rope_scaled && model->hparams.rope_magnitude == 1);
        for (uint32_t pair = 0; pair < 8; pair++) {
            assert_true(
                model->hparams.rope_frequencies[pair] == plain->hparams.rope_frequencies[pair] / 4);
        }
        kvl_model_free(model);
    }
    kvl_model_free(plain);
    struct gguf_writer writer;
    write_default(&writer);
    gguf_add_f32(&writer, keys[1], 4);
    gguf_add_string(&writer, "llama.rope.scaling.type", "none");
    struct kvl_model *none = load(&writer);
    assert_false(none->hparams.rope_scaled);
    kvl_model_free(none);
}

static void refuses_impossible_scaling(void **state) {
    (void)state;
    static const struct {
        const char *key;
        float value;
    } bad[] = {
        {"llama.rope.scaling.factor", -4}, {"llama.rope.scaling.factor", NAN},
        {"llama.rope.scaling.factor", INFINITY}, {"llama.rope.scaling.attn_factor", NAN},
        {"llama.rope.scaling.yarn_beta_fast", 0}, {"llama.rope.scaling.yarn_beta_slow", -1},
        {"llama.rope.scaling.yarn_log_multiplier", INFINITY},
        {"llama.rope.scaling.original_context_length", 0.5f}, /* no integer */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct gguf_writer writer;
        write_default(&writer);
        gguf_add_string(&writer, "llama.rope.scaling.type", "yarn");
        gguf_add_f32(&writer, bad[i].key, bad[i].value);
        refuse(&writer, KVL_ERR_CORRUPT, bad[i].key);
    }
    const float factors[2][8] = {{1, 1, 1, 1, 1, 1, 1, 0}, {1, 1, 1, NAN, 1, 1, 1, 1}};
    for (size_t i = 0; i < 3; i++) {
        struct gguf_writer writer;
        write_default(&writer);
        gguf_add_tensor(&writer, "rope_freqs.weight", 0, 1, (uint64_t[]){i == 2 ? 7 : 8},
            factors[i % 2], i == 2 ? 28 : 32);
        refuse(&writer, KVL_ERR_CORRUPT, "rope_freqs.weight");
    }
}

static void reads_what_gemma2_adds(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct tiny_shape shape = tiny_shape_default();
    shape.architecture = "gemma2";
    tiny_model_write(&writer, &shape);
    struct kvl_model *model = load(&writer);
    const struct kvl_hparams *h = &model->hparams;
    assert_true(h->attention_softcap == 6 && h->logit_softcap == 4);
    assert_true(h->activation == KVL_ACTIVATION_GELU_TANH);
    assert_int_equal(kvl_layer_window(h, 0), 70);
    assert_int_equal(kvl_layer_window(h, 1), 0);
    kvl_model_free(model);
    static const char *const keys[] = {
        "llama.attn_logit_softcapping", "llama.attention.sliding_window"};
    write_default(&writer);
    gguf_add_f32(&writer, keys[0], 0.5f); /* not llama's: stays as it is */
    model = load(&writer);
    assert_true(model->hparams.attention_softcap == 0);
    kvl_model_free(model);
    write_default(&writer);
    gguf_add_u32(&writer, keys[1], 512);
    refuse(&writer, KVL_ERR_UNSUPPORTED, keys[1]);
}

/* Metadata alone: a bad number is refused before any tensor is missed. */
static void refuses_impossible_windows_and_caps(void **state) {
    (void)state;
    static const char *const floats[] = {
        "gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping"};
    static const float bad[] = {0, -1, NAN, INFINITY};
    for (size_t i = 0; i < 9; i++) {
        const char *key = i == 8 ? "gemma2.attention.sliding_window" : floats[i / 4];
        struct gguf_writer writer;
        gguf_writer_init(&writer);
        gguf_add_string(&writer, "general.architecture", "gemma2");
        gguf_add_u32(&writer, "gemma2.block_count", 2);
        gguf_add_u32(&writer, "gemma2.context_length", 77);
        gguf_add_u32(&writer, "gemma2.embedding_length", 96);
        gguf_add_u32(&writer, "gemma2.feed_forward_length", 160);
        gguf_add_u32(&writer, "gemma2.attention.head_count", 6);
        gguf_add_f32(&writer, "gemma2.attention.layer_norm_rms_epsilon", 1e-6f);
        if (i == 8) {
            gguf_add_u32(&writer, key, 0);
        } else {
            gguf_add_f32(&writer, key, bad[i % 4]);
        }
        refuse(&writer, KVL_ERR_CORRUPT, key);
    }
}

/* llama's tensors under the other architectures' metadata. */
static void knows_what_each_architecture_must_have(void **state) {
    (void)state;
    static const char *const names[] = {"qwen2", "qwen3"};
    static const char *const missing[] = {"blk.0.attn_q.bias", "blk.0.attn_q_norm.weight"};
    for (size_t i = 0; i < 2; i++) {
        struct gguf_writer writer, other;
        struct tiny_shape shape = tiny_shape_default();
        tiny_model_write(&writer, &shape);
        shape.architecture = names[i];
        tiny_model_write(&other, &shape);
        const struct gguf_buffer pairs = writer.pairs;
        writer.pairs = other.pairs;
        other.pairs = pairs;
        refuse(&writer, KVL_ERR_CORRUPT, missing[i]);
        gguf_writer_deinit(&other);
    }
}

static void refuses_tensors_it_would_leave_out(void **state) {
    (void)state;
    static const char *const names[] = {
        "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.1.attn_q_norm.weight"};
    const float zeros[96] = {0};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct gguf_writer writer;
        write_default(&writer);
        gguf_add_tensor(&writer, names[i], 0, 1, (uint64_t[]){96}, zeros, sizeof zeros);
        refuse(&writer, KVL_ERR_UNSUPPORTED, names[i]);
    }
}

static void refuses_other_weight_types(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct tiny_shape shape = tiny_shape_default();
    tiny_model_write(&writer, &shape);
    gguf_add_tensor_at(&writer, "output.weight", 17, 2, (uint64_t[]){96, 70}, 0); /* IQ2_XS */
    refuse(&writer, KVL_ERR_UNSUPPORTED, "output.weight");
}

static void refuses_shapes_that_contradict_the_metadata(void **state) {
    (void)state;
    struct gguf_writer writer;
    const float zeros[95 * 70] = {0};
    write_default(&writer);
    gguf_add_tensor(&writer, "output.weight", 0, 2, (uint64_t[]){95, 70}, zeros, 95 * 70 * 4);
    refuse(&writer, KVL_ERR_CORRUPT, "output.weight");
    struct tiny_shape shape = tiny_shape_default();
    shape.layers = 1;
    tiny_model_write(&writer, &shape);
    gguf_add_u32(&writer, "llama.vocab_size", 71);
    refuse(&writer, KVL_ERR_CORRUPT, "vocab_size");
}

static void refuses_missing_and_impossible_numbers(void **state) {
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
    } bad[] = {
        {"llama.block_count", 0},
        {"llama.block_count", 2000000000},
        {"llama.embedding_length", 0},
        {"llama.attention.head_count", 0},
        {"llama.attention.head_count_kv", 4}, /* does not divide 6 */
        {"llama.attention.key_length", 0},
        {"llama.attention.key_length", 100000},
        {"llama.rope.dimension_count", 18},
        {"llama.rope.dimension_count", 7},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        static const char *const keys[] = {"llama.block_count", "llama.context_length",
            "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
            "llama.attention.head_count_kv", "llama.attention.key_length",
            "llama.rope.dimension_count"};
        static const uint32_t good[] = {2, 4096, 96, 160, 6, 2, 16, 16};
        struct gguf_writer writer;
        gguf_writer_init(&writer);
        gguf_add_string(&writer, "general.architecture", "llama");
        gguf_add_f32(&writer, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
            const bool is_bad = strcmp(keys[k], bad[i].key) == 0;
            gguf_add_u32(&writer, keys[k], is_bad ? bad[i].value : good[k]);
        }
        refuse(&writer, KVL_ERR_CORRUPT, "");
    }
    struct gguf_writer writer;
    gguf_writer_init(&writer);
    gguf_add_string(&writer, "general.architecture", "llama");
    refuse(&writer, KVL_ERR_CORRUPT, "llama.block_count");
}

/* Each number alone is fine. */
static void refuses_heads_too_wide_together(void **state) {
    (void)state;
    static const char *const keys[] = {
        "llama.attention.key_length", "llama.attention.value_length"};
    for (size_t i = 0; i < 2; i++) {
        for (uint32_t heads = 1024; heads <= 1 << 20; heads *= 32) {
            struct gguf_writer writer;
            gguf_writer_init(&writer);
            gguf_add_string(&writer, "general.architecture", "llama");
            gguf_add_u32(&writer, "llama.block_count", 2);
            gguf_add_u32(&writer, "llama.context_length", 77);
            gguf_add_u32(&writer, "llama.embedding_length", 96);
            gguf_add_u32(&writer, "llama.feed_forward_length", 160);
            gguf_add_u32(&writer, "llama.attention.head_count", heads);
            gguf_add_u32(&writer, keys[i], 1024);
            gguf_add_u32(&writer, keys[1 - i], 8);
            gguf_add_f32(&writer, "llama.attention.layer_norm_rms_epsilon", 1e-6f);
            /* 1024 heads of 1024 are the most: there it is the tensors that are missing */
            refuse(&writer, KVL_ERR_CORRUPT, heads == 1024 ? "token_embd" : "heads of 1024");
        }
    }
}

int main(void) {
    char cache[] = "/tmp/kvl-cache-XXXXXX"; /* fingerprints of files that are gone tomorrow */
    if (mkdtemp(cache) == NULL || setenv("XDG_CACHE_HOME", cache, 1) != 0) {
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_hyperparameters),
        cmocka_unit_test(fills_in_defaults),
        cmocka_unit_test(refuses_other_architectures),
        cmocka_unit_test(refuses_features_by_name),
        cmocka_unit_test(scales_rope_linearly),
        cmocka_unit_test(refuses_impossible_scaling),
        cmocka_unit_test(reads_what_gemma2_adds),
        cmocka_unit_test(refuses_impossible_windows_and_caps),
        cmocka_unit_test(knows_what_each_architecture_must_have),
        cmocka_unit_test(refuses_tensors_it_would_leave_out),
        cmocka_unit_test(refuses_other_weight_types),
        cmocka_unit_test(refuses_shapes_that_contradict_the_metadata),
        cmocka_unit_test(refuses_missing_and_impossible_numbers),
        cmocka_unit_test(refuses_heads_too_wide_together),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", cache);
    return system(command) == 0 ? failed : 1;
}
