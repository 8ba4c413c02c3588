/* layers_test.c - the CPU backend against a float64 forward pass, layer by layer, on a model of
 * each architecture and kind of RoPE; then the tokens that follow greedily against llama.cpp's.
 *
 * K and V of layer l depend on the hidden state that enters layer l; so K (after RoPE) and V in the
 * block memory are compared layer by layer, then the logits. References: make_tiny_reference.py.
 *
 * Tolerance: the backend computes in f32 with sums of at most 96 products a row, over 3 layers;
 * llama.cpp in f32 differs from these references by under 1e-6 of the largest value of a row, a
 * wrong weight, pair, head or position by 1e-2 and more. 1e-5 of a row's largest value stands well
 * between them. No two first tokens are as close as 1e-4 of the largest logit. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend.h"
#include "model.h"

#define TOLERANCE 1e-5

struct fixture {
    json_t *root;
    const json_t *expected;
    struct kvl_model *model;
    struct kvl_backend *backend;
    uint32_t *tokens;
    uint32_t token_count;
    uint32_t context; /* tokens, and those that follow */
    uint32_t block_tokens;
    uint32_t block_count;
    uint8_t **blocks;
    uint8_t **window_blocks; /* each behind the other group's */
};

static const json_t *member(const json_t *object, const char *name) {
    const json_t *value = json_object_get(object, name);
    assert_non_null(value);
    return value;
}

static void load_tokens(struct fixture *f) {
    const json_t *tokens = member(f->expected, "tokens");
    f->token_count = (uint32_t)json_array_size(tokens);
    f->tokens = calloc(f->token_count, sizeof *f->tokens);
    assert_non_null(f->tokens);
    for (uint32_t i = 0; i < f->token_count; i++)
        f->tokens[i] = (uint32_t)json_integer_value(json_array_get(tokens, i));
}

static void make_blocks(struct fixture *f) {
    f->context = f->token_count + (uint32_t)json_array_size(member(f->expected, "greedy"));
    f->block_tokens = (uint32_t)json_integer_value(member(f->expected, "block_tokens"));
    f->block_count = (f->context + f->block_tokens - 1) / f->block_tokens;
    uint64_t block_bytes = kvl_block_bytes(&f->model->hparams, f->block_tokens, KVL_KV_F32);
    assert_true(block_bytes > 0);
    f->blocks = calloc(f->block_count, sizeof *f->blocks);
    f->window_blocks = calloc(f->block_count, sizeof *f->window_blocks);
    assert_true(f->blocks != NULL && f->window_blocks != NULL);
    for (uint32_t i = 0; i < f->block_count; i++) {
        f->blocks[i] = aligned_alloc(4096, (block_bytes + 4095) / 4096 * 4096);
        assert_non_null(f->blocks[i]);
        memset(f->blocks[i], 0xff, block_bytes); /* NaN: a row that was not written shows */
        f->window_blocks[i] = f->blocks[i] + kvl_group_block_bytes(&f->model->hparams, 0,
                                                 f->block_tokens, KVL_KV_F32);
    }
}

static void open_fixture(struct fixture *f, size_t index, uint32_t threads) {
    memset(f, 0, sizeof *f);
    f->root = json_load_file(KVL_GOLDEN_DATA "/tiny_reference.json", 0, NULL);
    assert_non_null(f->root);
    f->expected = json_array_get(member(f->root, "models"), index);
    assert_non_null(f->expected);
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", KVL_GOLDEN_DATA,
        json_string_value(member(f->expected, "file")));
    struct kvl_errmsg msg;
    if (kvl_model_load(path, &f->model, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    load_tokens(f);
    make_blocks(f);
    struct kvl_backend_options options = {.threads = threads, .context_max = f->context};
    assert_int_equal(kvl_backend_cpu.create(f->model, &options, &f->backend, &msg), KVL_OK);
}

static void close_fixture(struct fixture *f) {
    kvl_backend_cpu.destroy(f->backend);
    for (uint32_t i = 0; i < f->block_count; i++)
        free(f->blocks[i]);
    free(f->blocks);
    free(f->window_blocks);
    free(f->tokens);
    kvl_model_free(f->model);
    json_decref(f->root);
}

static void run(struct fixture *f, const uint32_t *tokens, uint32_t position, uint32_t count,
    uint32_t rows, float *logits) {
    struct kvl_batch batch = {
        .tokens = tokens,
        .count = count,
        .position = position,
        .block_tokens = f->block_tokens,
        .kv_dtype = KVL_KV_F32,
        .blocks = f->blocks,
        .window_blocks = f->window_blocks,
        .logits_rows = rows,
        .logits = logits,
    };
    assert_int_equal(kvl_backend_cpu.forward(f->backend, &batch, 1), KVL_OK);
}

/* Compares one row with `count` values of the reference from `first` on. */
static void compare(const char *what, uint32_t layer, int64_t row, const float *ours,
    const json_t *theirs, size_t first, size_t count) {
    double largest = 0.0;
    double worst = 0.0;
    for (size_t i = 0; i < count; i++) {
        double expected = json_real_value(json_array_get(theirs, first + i));
        double difference = fabs((double)ours[i] - expected);
        largest = fmax(largest, fabs(expected));
        worst = isnan(difference) ? INFINITY : fmax(worst, difference);
    }
    if (!(worst <= TOLERANCE * largest))
        fail_msg("%s of layer %u, row %lld: off by %g where the largest value is %g", what, layer,
            (long long)row, worst, largest);
}

/* The row of one KV head and position in the group's block memory: per layer of the group
 * K [head][token][dim], then V. */
static const float *kv_row(
    const struct fixture *f, uint32_t layer, bool is_v, uint32_t head, uint32_t position) {
    const struct kvl_hparams *h = &f->model->hparams;
    size_t k_elements = (size_t)h->kv_heads * f->block_tokens * h->k_dim;
    size_t v_elements = (size_t)h->kv_heads * f->block_tokens * h->v_dim;
    size_t dim = is_v ? h->v_dim : h->k_dim;
    size_t token = position % f->block_tokens;
    const struct kvl_layer_place place = kvl_layer_place(h, layer);
    size_t at = place.index * (k_elements + v_elements) + (is_v ? k_elements : 0) +
                (head * f->block_tokens + token) * dim;
    uint8_t **blocks = place.group == 0 ? f->blocks : f->window_blocks;
    return (const float *)(const void *)blocks[position / f->block_tokens] + at;
}

static void compare_kv(const struct fixture *f, uint32_t layer, bool is_v) {
    const struct kvl_hparams *h = &f->model->hparams;
    const json_t *rows = json_array_get(member(f->expected, is_v ? "v" : "k"), layer);
    const json_t *positions = member(f->expected, "positions");
    size_t dim = is_v ? h->v_dim : h->k_dim;
    assert_int_equal(json_array_size(rows), json_array_size(positions) * h->kv_heads * dim);
    for (size_t p = 0; p < json_array_size(positions); p++) {
        uint32_t position = (uint32_t)json_integer_value(json_array_get(positions, p));
        for (uint32_t head = 0; head < h->kv_heads; head++)
            compare(is_v ? "V" : "K", layer, position, kv_row(f, layer, is_v, head, position), rows,
                (p * h->kv_heads + head) * dim, dim);
    }
}

static void compare_all(const struct fixture *f, const float *logits) {
    const struct kvl_hparams *h = &f->model->hparams;
    for (uint32_t layer = 0; layer < h->layers; layer++) {
        compare_kv(f, layer, false);
        compare_kv(f, layer, true);
    }
    const json_t *rows = member(f->expected, "logits");
    for (size_t row = 0; row < json_array_size(rows); row++) {
        const json_t *theirs = json_array_get(rows, row);
        assert_int_equal(json_array_size(theirs), h->vocab);
        compare("logits", h->layers, (int64_t)row, logits + row * h->vocab, theirs, 0, h->vocab);
    }
}

static uint32_t first_of(const float *logits, uint32_t count) {
    uint32_t first = 0;
    for (uint32_t i = 1; i < count; i++)
        first = logits[i] > logits[first] ? i : first;
    return first;
}

/* logits: those after the last token */
static void compare_greedy(struct fixture *f, float *logits) {
    const json_t *greedy = member(f->expected, "greedy"), *margins = member(f->expected, "margins");
    for (uint32_t i = 0; i < json_array_size(greedy); i++) {
        assert_true(json_real_value(json_array_get(margins, i)) > 1e-4);
        uint32_t token = first_of(logits, f->model->hparams.vocab);
        if (token != (uint32_t)json_integer_value(json_array_get(greedy, i)))
            fail_msg("token %u after the prompt is %u", i, token);
        run(f, &token, f->token_count + i, 1, 1, logits);
    }
}

/* Runs the tokens in calls of the given sizes (their sum is the token count). */
static void check(size_t index, uint32_t threads, const uint32_t *calls, size_t call_count) {
    struct fixture f;
    open_fixture(&f, index, threads);
    uint32_t rows = (uint32_t)json_array_size(member(f.expected, "logits"));
    float *logits = calloc((size_t)rows * f.model->hparams.vocab, sizeof *logits);
    assert_non_null(logits);
    uint32_t position = 0;
    for (size_t i = 0; i < call_count; i++) {
        bool is_last = i + 1 == call_count;
        run(&f, f.tokens + position, position, calls[i], is_last ? rows : 0,
            is_last ? logits : NULL);
        position += calls[i];
    }
    assert_int_equal(position, f.token_count);
    print_message("%s\n", json_string_value(member(f.expected, "file")));
    compare_all(&f, logits);
    compare_greedy(&f, logits + (size_t)(rows - 1) * f.model->hparams.vocab);
    free(logits);
    close_fixture(&f);
}

static const uint32_t whole[] = {37};
static const uint32_t pieces[] = {1, 16, 2, 13, 5};
enum { MODELS = 11 };

static void every_model_in_one_call(void **state) {
    (void)state;
    for (size_t i = 0; i < MODELS; i++)
        check(i, 1 + i % 2, whole, 1);
}

static void every_model_in_pieces(void **state) {
    (void)state;
    for (size_t i = 0; i < MODELS; i++)
        check(i, 2 - i % 2, pieces, 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_model_in_one_call),
        cmocka_unit_test(every_model_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
