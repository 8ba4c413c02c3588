/* forward_test.c - the forward pass is right (against a plain one in double), and its bits depend
 * on nothing but the tokens: not on how they are cut into calls, threads, block size, instruction
 * set, or what lies in slots that hold no token yet. */
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

#include "cpu/cpu.h"
#include "quick.h"
#include "tiny_model.h"

enum { TOKENS = 290, CONTEXT = 2304, MAX_BLOCKS = CONTEXT };

/* A context in blocks full of NaN, and logits of all its tokens. */
struct context {
    struct kvl_model *model;
    struct kvl_backend *backend;
    struct kvl_batch batch;
    uint8_t *arena;
    uint64_t arena_bytes;
    uint8_t *blocks[MAX_BLOCKS];
    uint8_t *window_blocks[MAX_BLOCKS]; /* each behind the other group's */
    uint32_t tokens[CONTEXT];
    float *logits; /* [CONTEXT][vocab] */
};

struct setting {
    const struct kvl_cpu_kernels *kernels; /* NULL: the best */
    uint32_t threads;
    uint32_t block_tokens;
    enum kvl_kv_dtype dtype;
};

static const struct setting plain = {NULL, 1, 64, KVL_KV_F16};

static bool quick; /* what matters is how threads meet */

/* The tables that this CPU runs, in turns. */
static const struct kvl_cpu_kernels *some_kernels(uint32_t turn) {
    const struct kvl_cpu_kernels *tables[8];
    uint32_t count = 0;
    for (const struct kvl_cpu_kernels *const *at = kvl_cpu_kernels_all; *at != NULL; at++) {
        if ((*at)->available()) {
            tables[count++] = *at;
        }
    }
    return tables[turn % count];
}

static struct context *open_context(const char *path, struct setting setting) {
    struct context *c = calloc(1, sizeof *c);
    struct kvl_errmsg msg = {{0}};
    assert_non_null(c);
    if (kvl_model_load(path, &c->model, &msg) != KVL_OK) {
        fail_msg("%s", msg.text);
    }
    const struct kvl_hparams *h = &c->model->hparams;
    const struct kvl_backend_options options = {.threads = setting.threads, .context_max = CONTEXT};
    const struct kvl_cpu_kernels *kernels =
        setting.kernels != NULL ? setting.kernels : kvl_cpu_kernels_best();
    assert_int_equal(kvl_cpu_create(kernels, c->model, &options, &c->backend, &msg), KVL_OK);
    const uint64_t block_bytes = kvl_block_bytes(h, setting.block_tokens, setting.dtype);
    const uint32_t block_count = (CONTEXT + setting.block_tokens - 1) / setting.block_tokens;
    c->arena_bytes = block_bytes * block_count;
    c->arena = malloc(c->arena_bytes);
    c->logits = calloc((size_t)CONTEXT * h->vocab, sizeof(float));
    assert_true(c->arena != NULL && c->logits != NULL);
    memset(c->arena, 0xFF, c->arena_bytes);      /* NaN in every dtype */
    for (uint32_t i = 0; i < block_count; i++) { /* scattered, as in a real arena */
        c->blocks[i] = c->arena + (i * 7 % block_count) * block_bytes;
        if (block_count % 7 == 0) {
            c->blocks[i] = c->arena + i * block_bytes;
        }
        c->window_blocks[i] =
            c->blocks[i] + kvl_group_block_bytes(h, 0, setting.block_tokens, setting.dtype);
    }
    for (uint32_t i = 0; i < CONTEXT; i++) {
        c->tokens[i] = i * 2654435761u % h->vocab;
    }
    c->batch = (struct kvl_batch){.block_tokens = setting.block_tokens,
        .kv_dtype = setting.dtype,
        .blocks = c->blocks,
        .window_blocks = c->window_blocks};
    return c;
}

static void close_context(struct context *c) {
    c->backend->ops->destroy(c->backend);
    kvl_model_free(c->model);
    free(c->arena);
    free(c->logits);
    free(c);
}

static void advance(struct context *c, uint32_t count) {
    c->batch.tokens = c->tokens + c->batch.position;
    c->batch.count = count;
    c->batch.logits_rows = count;
    c->batch.logits = c->logits + (size_t)c->batch.position * c->model->hparams.vocab;
    assert_int_equal(c->backend->ops->forward(c->backend, &c->batch, 1), KVL_OK);
    c->batch.position += count;
}

static void advance_in_chunks(struct context *c, uint32_t total, uint32_t chunk) {
    while (c->batch.position < total) {
        const uint32_t left = total - c->batch.position;
        advance(c, left < chunk ? left : chunk);
    }
}

static void assert_same_bits(const struct context *a, const struct context *b, uint32_t tokens) {
    const size_t vocab = a->model->hparams.vocab;
    for (uint32_t t = 0; t < tokens; t++) {
        if (memcmp(a->logits + t * vocab, b->logits + t * vocab, vocab * sizeof(float)) != 0) {
            fail_msg("logits of token %u differ", t);
        }
        assert_true(isfinite(a->logits[t * vocab]));
    }
}

/* ---- right numbers ---- */

static void check_reference(const struct tiny_shape *shape, enum kvl_kv_dtype dtype, double limit) {
    enum { COUNT = 90 };
    char *path = tiny_model_file(shape);
    struct context *c = open_context(path, (struct setting){NULL, 2, 16, dtype});
    advance_in_chunks(c, COUNT, 40);
    double *expected = calloc((size_t)COUNT * shape->vocab, sizeof *expected);
    assert_non_null(expected);
    tiny_model_reference(shape, c->tokens, COUNT, expected);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < (size_t)COUNT * shape->vocab; i++) {
        worst = fmax(worst, fabs(c->logits[i] - expected[i]));
        largest = fmax(largest, fabs(expected[i]));
        assert_true(isfinite(c->logits[i]));
    }
    if (!(worst <= limit * largest)) {
        fail_msg("type %u: off by %g of %g", shape->type, worst, largest);
    }
    free(expected);
    close_context(c);
    free(path);
}

static const uint32_t types[] = {KVL_GGML_F32, KVL_GGML_F16, KVL_GGML_BF16, KVL_GGML_Q8_0,
    KVL_GGML_Q4_0, KVL_GGML_Q4_1, KVL_GGML_Q5_0, KVL_GGML_Q5_1, KVL_GGML_Q2_K, KVL_GGML_Q3_K,
    KVL_GGML_Q4_K, KVL_GGML_Q5_K, KVL_GGML_Q6_K, KVL_GGML_IQ4_NL, KVL_GGML_IQ4_XS};
enum { TYPES = sizeof types / sizeof types[0] };

/* Rows of every product a multiple of a K-quant's block. */
static struct tiny_shape shape_of_type(size_t index) {
    struct tiny_shape shape = tiny_shape_default();
    shape.layers = 1;
    shape.width = 256;
    shape.ffn_width = 256;
    shape.heads = 4;
    shape.v_dim = 64;
    shape.type = types[index];
    shape.embedding_type = types[TYPES - 1 - index];
    shape.seed = index + 1;
    return shape;
}

static void agrees_with_a_plain_pass_in_double(void **state) {
    (void)state;
    for (size_t i = 0; i < TYPES; i++) {
        struct tiny_shape shape = shape_of_type(i);
        check_reference(&shape, KVL_KV_F32, 2e-5);
    }
    struct tiny_shape shape = tiny_shape_default();
    shape.tied = false;
    check_reference(&shape, KVL_KV_F32, 2e-5);
    check_reference(&shape, KVL_KV_F16, 5e-3);
    check_reference(&shape, KVL_KV_BF16, 4e-2);
}

static const char *const architectures[] = {"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"};
enum { ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

static void every_architecture_agrees_with_a_plain_pass(void **state) {
    (void)state;
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        struct tiny_shape shape = tiny_shape_default();
        shape.architecture = architectures[i];
        check_reference(&shape, KVL_KV_F32, 2e-5);
        shape.k_dim = 22; /* no multiple of 8, nor are its halves */
        shape.rope_dims = 14;
        shape.v_dim = 10;
        check_reference(&shape, KVL_KV_F32, 2e-5);
    }
}

static void handles_unusual_shapes(void **state) {
    (void)state;
    struct tiny_shape shape = tiny_shape_default();
    shape.width = 36; /* nothing a multiple of 8 or 16 */
    shape.ffn_width = 50;
    shape.heads = 5;
    shape.kv_heads = 1;
    shape.k_dim = 10;
    shape.v_dim = 21;
    shape.rope_dims = 6;
    shape.vocab = 33;
    shape.tied = false;
    check_reference(&shape, KVL_KV_F32, 2e-5);
    shape.heads = shape.kv_heads = 7;
    shape.k_dim = 20;
    shape.v_dim = 3;
    check_reference(&shape, KVL_KV_F32, 2e-5);
}

/* ---- the same bits ---- */

static char *quantised_model_of(const char *architecture) {
    struct tiny_shape shape = tiny_shape_default();
    shape.architecture = architecture;
    shape.type = KVL_GGML_Q4_1;
    shape.embedding_type = KVL_GGML_Q8_0;
    return tiny_model_file(&shape);
}

static char *quantised_model(void) {
    return quantised_model_of("llama");
}

static void chunk_lengths_do_not_change_bits(void **state) {
    (void)state;
    static const uint32_t chunks[] = {
        1, 2, 3, 4, 5, 6, 7, 13, 16, 31, 32, 33, 63, 64, 65, 96, 97, 100, 193, 256, 257, TOKENS};
    char *path = quantised_model();
    struct context *whole = open_context(path, plain);
    advance(whole, TOKENS);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        struct context *cut = open_context(path, plain);
        advance_in_chunks(cut, TOKENS, chunks[i]);
        assert_same_bits(whole, cut, TOKENS);
        close_context(cut);
    }
    close_context(whole);
    free(path);
}

static void threads_blocks_and_kernels_do_not_change_bits(void **state) {
    (void)state;
    static const enum kvl_kv_dtype dtypes[] = {KVL_KV_F16, KVL_KV_BF16, KVL_KV_F32};
    static const uint32_t block_sizes[] = {1, 16, 24, 64, 256, 512};
    char *path = quantised_model();
    for (size_t d = 0; d < (quick ? 1 : 3); d++) {
        struct context *first = open_context(path, (struct setting){NULL, 1, 64, dtypes[d]});
        advance(first, TOKENS);
        for (size_t b = 0; b < sizeof block_sizes / sizeof block_sizes[0]; b++) {
            struct context *other =
                open_context(path, (struct setting){some_kernels((uint32_t)b),
                                       1 + (uint32_t)(b + d) % 3, block_sizes[b], dtypes[d]});
            advance(other, 100 + (uint32_t)b);
            advance(other, 1);
            advance(other, TOKENS - other->batch.position);
            assert_same_bits(first, other, TOKENS);
            close_context(other);
        }
        close_context(first);
    }
    free(path);
}

static void no_architecture_changes_bits(void **state) {
    (void)state;
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        char *path = quantised_model_of(architectures[i]);
        struct context *whole = open_context(path, plain);
        advance(whole, TOKENS);
        for (uint32_t chunk = quick ? 65 : 1; chunk <= (quick ? 65 : 97); chunk += 32) {
            struct context *cut =
                open_context(path, (struct setting){chunk == 33 ? &kvl_cpu_kernels_portable : NULL,
                                       1 + chunk % 3, 24, KVL_KV_F16});
            advance_in_chunks(cut, TOKENS, chunk);
            assert_same_bits(whole, cut, TOKENS);
            close_context(cut);
        }
        close_context(whole);
        free(path);
    }
}

static void no_weight_type_changes_bits(void **state) {
    (void)state;
    for (size_t i = 0; i < TYPES; i++) {
        const struct tiny_shape shape = shape_of_type(i);
        char *path = tiny_model_file(&shape);
        struct context *whole = open_context(path, plain);
        struct context *cut =
            open_context(path, (struct setting){&kvl_cpu_kernels_portable, 2, 16, KVL_KV_F16});
        advance(whole, 60);
        advance(cut, 41);
        advance_in_chunks(cut, 52, 1);
        advance_in_chunks(cut, 60, 5);
        assert_same_bits(whole, cut, 60);
        close_context(whole);
        close_context(cut);
        free(path);
    }
}

/* Beyond one chunk of scratch and several partitions; decode against prefill at the far end. */
static void long_context_keeps_its_bits(const char *architecture) {
    const uint32_t total = quick ? 700 : 2100;
    char *path = quantised_model_of(architecture);
    struct context *whole = open_context(path, (struct setting){NULL, 2, 64, KVL_KV_F16});
    struct context *cut = open_context(path, (struct setting){NULL, 3, 16, KVL_KV_F16});
    advance(whole, total);
    advance(cut, total - 600);
    advance_in_chunks(cut, total - 100, 77);
    advance_in_chunks(cut, total - 50, 1);
    advance_in_chunks(cut, total, 5);
    assert_same_bits(whole, cut, total);
    close_context(whole);
    close_context(cut);
    free(path);
}

static void long_contexts_keep_their_bits(void **state) {
    (void)state;
    if (!quick) {
        long_context_keeps_its_bits("llama");
    }
    long_context_keeps_its_bits("gemma2"); /* whole partitions left behind by the window */
}

/* The arena of one session, copied under another one, goes on as if that one had computed it. */
static void restored_blocks_go_on_with_the_same_bits(void **state) {
    (void)state;
    char *path = quantised_model();
    struct context *first = open_context(path, plain);
    advance(first, TOKENS);
    for (uint32_t restored = 64; restored < TOKENS; restored += 64) {
        struct context *second = open_context(path, plain);
        for (uint32_t b = 0; b < restored / 64; b++) {
            const uint64_t bytes = kvl_block_bytes(&first->model->hparams, 64, KVL_KV_F16);
            memcpy(second->blocks[b], first->blocks[b], bytes);
        }
        second->batch.position = restored;
        advance(second, TOKENS - restored);
        const size_t from = (size_t)restored * first->model->hparams.vocab;
        assert_memory_equal(first->logits + from, second->logits + from,
            (TOKENS - restored) * first->model->hparams.vocab * sizeof(float));
        close_context(second);
    }
    close_context(first);
    free(path);
}

/* Zeros in the place of what lies behind the window, also where an attention tile of 64 positions
 * reaches back over blocks of it, are as good as what was there. */
static void what_a_window_left_behind_counts_for_nothing(void **state) {
    (void)state;
    struct tiny_shape shape = tiny_shape_default();
    shape.architecture = "gemma2"; /* window: 70 */
    shape.layers = 3;
    char *path = tiny_model_file(&shape);
    const struct setting small = {NULL, 1, 16, KVL_KV_F16};
    struct context *whole = open_context(path, small);
    advance(whole, 400);
    for (uint32_t from = 112; from < 400; from += 48) {
        struct context *left = open_context(path, small);
        const uint64_t bytes = kvl_group_block_bytes(&left->model->hparams, 1, 16, KVL_KV_F16);
        uint8_t *nothing = calloc(1, bytes);
        assert_non_null(nothing);
        advance(left, from);
        for (uint32_t b = 0; b < (from + 1 - 70) / 16; b++) {
            memset(left->window_blocks[b], 0xFF, bytes);
            left->window_blocks[b] = nothing;
        }
        advance_in_chunks(left, 400, from % 96 == 16 ? 1 : 37);
        assert_same_bits(whole, left, 400);
        close_context(left);
        free(nothing);
    }
    close_context(whole);
    free(path);
}

/* ---- the contract of one call ---- */

static void writes_nothing_but_its_own_tokens(void **state) {
    (void)state;
    char *path = quantised_model();
    struct context *c = open_context(path, plain);
    const struct kvl_hparams h = c->model->hparams;
    advance(c, 70);
    uint8_t *before = malloc(c->arena_bytes);
    assert_non_null(before);
    memcpy(before, c->arena, c->arena_bytes);
    advance(c, 20);
    uint64_t changed = 0;
    for (uint64_t i = 0; i < c->arena_bytes; i += 2) {
        const bool differs = memcmp(before + i, c->arena + i, 2) != 0;
        const bool was_free = before[i] == 0xFF && before[i + 1] == 0xFF;
        assert_true(!differs || was_free);
        changed += differs;
    }
    assert_int_equal(
        changed, 20ull * h.layers * h.kv_heads * (h.k_dim + h.v_dim)); /* f16 elements */
    free(before);
    close_context(c);
    free(path);
}

static kvl_err count_gates(void *arg, uint32_t layer) {
    uint32_t *next = arg;
    assert_int_equal(layer, *next);
    return ++*next == 2 ? KVL_ERR_CANCELED : KVL_OK;
}

static void asks_before_each_layer_and_stops_when_told(void **state) {
    (void)state;
    char *path = quantised_model();
    struct context *c = open_context(path, plain);
    uint32_t asked = 0;
    c->batch.tokens = c->tokens;
    c->batch.count = 3;
    c->batch.before_layer = count_gates;
    c->batch.before_layer_arg = &asked;
    assert_int_equal(c->backend->ops->forward(c->backend, &c->batch, 1), KVL_ERR_CANCELED);
    assert_int_equal(asked, 2);
    close_context(c);
    free(path);
}

static void gives_logits_of_the_last_rows_only(void **state) {
    (void)state;
    char *path = quantised_model();
    struct context *all = open_context(path, plain);
    struct context *last = open_context(path, plain);
    const uint32_t vocab = all->model->hparams.vocab;
    advance(all, 600); /* across the edge of a chunk */
    last->batch.tokens = last->tokens;
    last->batch.count = 600;
    last->batch.logits_rows = 100;
    last->batch.logits = last->logits;
    assert_int_equal(last->backend->ops->forward(last->backend, &last->batch, 1), KVL_OK);
    assert_memory_equal(
        last->logits, all->logits + (size_t)500 * vocab, 100 * vocab * sizeof(float));
    close_context(all);
    close_context(last);
    free(path);
}

static void the_environment_chooses_kernels_that_run_here(void **state) {
    (void)state;
    struct kvl_backend *backend = NULL;
    struct kvl_model *model;
    struct kvl_errmsg msg = {{0}};
    const struct kvl_backend_options options = {.threads = 1, .context_max = 16};
    char *path = quantised_model();
    assert_int_equal(kvl_model_load(path, &model, &msg), KVL_OK);
    assert_int_equal(setenv("KVLOFT_CPU_KERNELS", "avx9", 1), 0);
    assert_int_equal(kvl_backend_cpu.create(model, &options, &backend, &msg), KVL_ERR_INVALID);
    assert_non_null(strstr(msg.text, "KVLOFT_CPU_KERNELS=avx9"));
    assert_int_equal(setenv("KVLOFT_CPU_KERNELS", "portable", 1), 0);
    assert_int_equal(kvl_backend_cpu.create(model, &options, &backend, &msg), KVL_OK);
    assert_ptr_equal(((struct kvl_cpu *)(void *)backend)->kernels, &kvl_cpu_kernels_portable);
    kvl_backend_cpu.destroy(backend);
    assert_int_equal(unsetenv("KVLOFT_CPU_KERNELS"), 0);
    assert_int_equal(kvl_backend_cpu.create(model, &options, &backend, &msg), KVL_OK);
    assert_ptr_equal(((struct kvl_cpu *)(void *)backend)->kernels, kvl_cpu_kernels_best());
    kvl_backend_cpu.destroy(backend);
    kvl_model_free(model);
    free(path);
}

static void refuses_impossible_batches(void **state) {
    (void)state;
    char *path = quantised_model();
    struct context *c = open_context(path, plain);
    struct kvl_batch good = c->batch;
    good.tokens = c->tokens;
    good.count = 1;
    struct kvl_batch bad[6] = {good, good, good, good, good, good};
    bad[0].count = 0;
    bad[1].position = CONTEXT;
    bad[2].logits_rows = 2;
    bad[3].block_tokens = 0;
    bad[4].kv_dtype = (enum kvl_kv_dtype)9;
    const uint32_t no_token = c->model->hparams.vocab;
    bad[5].tokens = &no_token;
    for (int i = 0; i < 6; i++) {
        assert_int_equal(c->backend->ops->forward(c->backend, &bad[i], 1), KVL_ERR_INVALID);
    }
    close_context(c);
    free(path);
}

static void block_bytes_are_checked(void **state) {
    (void)state;
    struct kvl_hparams h = {.layers = 30, .kv_heads = 3, .k_dim = 64, .v_dim = 64};
    assert_int_equal(kvl_block_bytes(&h, 64, KVL_KV_F16), 64 * 23040);
    assert_int_equal(kvl_block_bytes(&h, 1, KVL_KV_F32), 46080);
    h.layers = h.kv_heads = h.k_dim = UINT32_MAX;
    assert_int_equal(kvl_block_bytes(&h, 64, KVL_KV_F16), 0);
}

int main(int argc, char **argv) {
    char cache[] = "/tmp/kvl-cache-XXXXXX"; /* fingerprints of files that are gone tomorrow */
    if (mkdtemp(cache) == NULL || setenv("XDG_CACHE_HOME", cache, 1) != 0) {
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_a_plain_pass_in_double),
        cmocka_unit_test(every_architecture_agrees_with_a_plain_pass),
        cmocka_unit_test(handles_unusual_shapes),
        cmocka_unit_test(chunk_lengths_do_not_change_bits),
        cmocka_unit_test(threads_blocks_and_kernels_do_not_change_bits),
        cmocka_unit_test(no_architecture_changes_bits),
        cmocka_unit_test(no_weight_type_changes_bits),
        cmocka_unit_test(long_contexts_keep_their_bits),
        cmocka_unit_test(restored_blocks_go_on_with_the_same_bits),
        cmocka_unit_test(what_a_window_left_behind_counts_for_nothing),
        cmocka_unit_test(writes_nothing_but_its_own_tokens),
        cmocka_unit_test(asks_before_each_layer_and_stops_when_told),
        cmocka_unit_test(gives_logits_of_the_last_rows_only),
        cmocka_unit_test(the_environment_chooses_kernels_that_run_here),
        cmocka_unit_test(refuses_impossible_batches),
        cmocka_unit_test(block_bytes_are_checked),
    };
    const struct CMUnitTest of_threads[] = {
        cmocka_unit_test(threads_blocks_and_kernels_do_not_change_bits),
        cmocka_unit_test(no_architecture_changes_bits),
        cmocka_unit_test(no_weight_type_changes_bits),
        cmocka_unit_test(long_contexts_keep_their_bits),
        cmocka_unit_test(asks_before_each_layer_and_stops_when_told),
    };
    quick = kvl_is_quick(argc, argv);
    const int failed = quick ? cmocka_run_group_tests(of_threads, NULL, NULL)
                             : cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", cache);
    return system(command) == 0 ? failed : 1;
}
