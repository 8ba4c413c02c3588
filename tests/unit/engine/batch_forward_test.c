/* batch_forward_test.c - several batches in one forward call: each gives the bits that it gives
 * alone, in whatever company, and one that is stopped stops the call. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "quick.h"
#include "tiny_model.h"

enum { CONTEXT = 2304, SEQUENCES = 9, BLOCK_TOKENS = 16, BLOCKS = CONTEXT / BLOCK_TOKENS };

static bool quick; /* what matters is how threads meet */

struct setting {
    const struct kvl_cpu_kernels *kernels;
    uint32_t threads;
};

struct sequence {
    struct kvl_batch batch; /* position: computed so far */
    uint8_t *arena;
    uint8_t *blocks[BLOCKS];
    uint8_t *window_blocks[BLOCKS]; /* each behind the other group's */
    uint32_t tokens[CONTEXT];
    float *logits; /* [CONTEXT][vocab] */
};

/* A backend and sequences on it. */
struct group {
    struct kvl_model *model;
    struct kvl_backend *backend;
    uint64_t block_bytes; /* of all layer groups */
    uint64_t first_group_bytes;
    struct sequence sequences[SEQUENCES];
};

static void open_sequence(struct group *g, struct sequence *s, uint32_t seed) {
    s->arena = malloc(g->block_bytes * BLOCKS);
    s->logits = calloc((size_t)CONTEXT * g->model->hparams.vocab, sizeof(float));
    assert_true(s->arena != NULL && s->logits != NULL);
    memset(s->arena, 0xFF, g->block_bytes * BLOCKS); /* NaN */
    for (uint32_t i = 0; i < BLOCKS; i++) {
        s->blocks[i] = s->arena + i * 7 % BLOCKS * g->block_bytes;
        s->window_blocks[i] = s->blocks[i] + g->first_group_bytes;
    }
    for (uint32_t i = 0; i < CONTEXT; i++) {
        s->tokens[i] = (i * 2654435761u + seed * 40503u) % g->model->hparams.vocab;
    }
    s->batch = (struct kvl_batch){.block_tokens = BLOCK_TOKENS,
        .kv_dtype = KVL_KV_F16,
        .blocks = s->blocks,
        .window_blocks = s->window_blocks};
}

static struct group *open_group(const char *path, struct setting setting) {
    struct group *g = calloc(1, sizeof *g);
    struct kvl_errmsg msg = {{0}};
    assert_non_null(g);
    if (kvl_model_load(path, &g->model, &msg) != KVL_OK) {
        fail_msg("%s", msg.text);
    }
    const struct kvl_backend_options options = {
        .threads = setting.threads, .context_max = CONTEXT, .batches_max = SEQUENCES};
    const struct kvl_cpu_kernels *kernels =
        setting.kernels != NULL ? setting.kernels : kvl_cpu_kernels_best();
    assert_int_equal(kvl_cpu_create(kernels, g->model, &options, &g->backend, &msg), KVL_OK);
    g->block_bytes = kvl_block_bytes(&g->model->hparams, BLOCK_TOKENS, KVL_KV_F16);
    g->first_group_bytes = kvl_group_block_bytes(&g->model->hparams, 0, BLOCK_TOKENS, KVL_KV_F16);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        open_sequence(g, &g->sequences[i], i);
    }
    return g;
}

static void close_group(struct group *g) {
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        free(g->sequences[i].arena);
        free(g->sequences[i].logits);
    }
    g->backend->ops->destroy(g->backend);
    kvl_model_free(g->model);
    free(g);
}

/* The next `count` tokens, logits of all of them. */
static struct kvl_batch next_batch(const struct group *g, struct sequence *s, uint32_t count) {
    s->batch.tokens = s->tokens + s->batch.position;
    s->batch.count = count;
    s->batch.phase = count == 1 ? KVL_PHASE_DECODE : KVL_PHASE_PREFILL;
    s->batch.logits_rows = count;
    s->batch.logits = s->logits + (size_t)s->batch.position * g->model->hparams.vocab;
    const struct kvl_batch batch = s->batch;
    s->batch.position += count;
    return batch;
}

static void forward(struct group *g, const struct kvl_batch *batches, uint32_t count) {
    assert_int_equal(g->backend->ops->forward(g->backend, batches, count), KVL_OK);
}

/* All sequences as far as in `other`, each alone and in large pieces. */
static void run_alone(struct group *g, const struct group *other) {
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        while (g->sequences[i].batch.position < other->sequences[i].batch.position) {
            const uint32_t left =
                other->sequences[i].batch.position - g->sequences[i].batch.position;
            const struct kvl_batch batch = next_batch(g, &g->sequences[i], left < 700 ? left : 700);
            forward(g, &batch, 1);
        }
    }
}

static void assert_same_bits(const struct group *a, const struct group *b) {
    const size_t vocab = a->model->hparams.vocab;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const uint32_t tokens = a->sequences[i].batch.position;
        assert_int_equal(tokens, b->sequences[i].batch.position);
        for (uint32_t t = 0; t < tokens; t++) {
            if (memcmp(a->sequences[i].logits + t * vocab, b->sequences[i].logits + t * vocab,
                    vocab * sizeof(float)) != 0) {
                fail_msg("sequence %u: logits of token %u differ", i, t);
            }
        }
    }
}

static char *model_of(const char *architecture) {
    struct tiny_shape shape = tiny_shape_default();
    shape.architecture = architecture;
    shape.type = KVL_GGML_Q4_1;
    shape.embedding_type = KVL_GGML_Q8_0;
    return tiny_model_file(&shape);
}

/* Steps of random sequences with random numbers of tokens, mostly one, as in decoding. */
static void run_together(struct group *g, uint64_t seed, uint32_t steps) {
    for (uint32_t step = 0; step < steps; step++) {
        struct kvl_batch batches[SEQUENCES];
        uint32_t used = 0;
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            const double dice = tiny_random(&seed);
            const uint32_t tokens = dice > 0.9   ? 40 + (uint32_t)(200 * dice)
                                    : dice > 0.5 ? 2 + (uint32_t)(20 * dice)
                                                 : 1;
            if (tiny_random(&seed) > -0.6f) {
                batches[used++] = next_batch(g, &g->sequences[i], tokens);
            }
        }
        if (used > 0) {
            forward(g, batches, used);
        }
    }
}

static void company_does_not_change_bits(void **state) {
    (void)state;
    static const char *const architectures[] = {"llama", "qwen3", "gemma2"};
    for (uint32_t i = quick ? 2 : 0; i < 3; i++) {
        char *path = model_of(architectures[i]);
        struct group *alone = open_group(path, (struct setting){.threads = 1});
        for (uint32_t threads = quick ? 3 : 1; threads <= 3; threads++) {
            const struct kvl_cpu_kernels *kernels = threads == 2 ? &kvl_cpu_kernels_portable : NULL;
            struct group *together = open_group(path, (struct setting){kernels, threads});
            run_together(together, 1 + i, 9);
            run_alone(alone, together);
            assert_same_bits(alone, together);
            close_group(together);
        }
        close_group(alone);
        free(path);
    }
}

/* More rows than one chunk has, with batches that two chunks share; and so long contexts that not
 * all of them find room for a partition each (KVL_SPLIT_PARTITIONS_MIN). */
static void long_prompts_side_by_side(void **state) {
    (void)state;
    char *path = model_of("gemma2");
    struct group *alone = open_group(path, (struct setting){.threads = 2});
    struct group *together = open_group(path, (struct setting){.threads = 2});
    struct kvl_batch batches[SEQUENCES];
    const uint32_t prompt = quick ? 200 : 600;
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            batches[i] = next_batch(together, &together->sequences[i], prompt + 13 * i);
        }
        forward(together, batches, SEQUENCES);
    }
    for (uint32_t round = 0; round < 8; round++) {
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            batches[i] = next_batch(together, &together->sequences[i], 1 + round);
        }
        forward(together, batches, SEQUENCES);
    }
    run_alone(alone, together);
    assert_same_bits(alone, together);
    close_group(alone);
    close_group(together);
    free(path);
}

/* Blocks of another sequence's prefix below one's own. */
static void a_prefix_is_read_by_several(void **state) {
    (void)state;
    enum { SHARED = 5 * BLOCK_TOKENS };
    char *path = model_of("llama");
    struct group *alone = open_group(path, (struct setting){.threads = 1});
    struct group *together = open_group(path, (struct setting){.threads = 2});
    for (uint32_t i = 1; i < SEQUENCES; i++) {
        const size_t bytes = SHARED * sizeof(uint32_t);
        memcpy(together->sequences[i].tokens, together->sequences[0].tokens, bytes);
        memcpy(alone->sequences[i].tokens, alone->sequences[0].tokens, bytes);
        memcpy(together->sequences[i].blocks, together->sequences[0].blocks,
            SHARED / BLOCK_TOKENS * sizeof(uint8_t *));
        together->sequences[i].batch.position = SHARED;
    }
    struct kvl_batch batches[SEQUENCES];
    batches[0] = next_batch(together, &together->sequences[0], SHARED + 3);
    forward(together, batches, 1);
    for (uint32_t i = 1; i < SEQUENCES; i++) {
        memcpy(together->sequences[i].logits, together->sequences[0].logits,
            (size_t)SHARED * together->model->hparams.vocab * sizeof(float));
    }
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            batches[i] = next_batch(together, &together->sequences[i], round == 0 ? 20 + i : 1);
        }
        forward(together, batches, SEQUENCES);
    }
    run_alone(alone, together);
    assert_same_bits(alone, together);
    close_group(alone);
    close_group(together);
    free(path);
}

/* No logits, all, the last one's, only which is the likeliest: in one call. */
static void each_batch_gets_what_it_asked_for(void **state) {
    (void)state;
    char *path = model_of("gemma2");
    struct group *all = open_group(path, (struct setting){.threads = 1});
    struct group *some = open_group(path, (struct setting){.threads = 2});
    const size_t vocab = all->model->hparams.vocab;
    struct kvl_batch batches[SEQUENCES];
    float last[SEQUENCES][512];
    uint32_t greedy[SEQUENCES];
    assert_true(vocab <= 512);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const struct kvl_batch batch = next_batch(all, &all->sequences[i], 30 + 20 * i);
        forward(all, &batch, 1);
        batches[i] = next_batch(some, &some->sequences[i], 30 + 20 * i);
        if (i % 4 == 0) {
            batches[i].logits_rows = 0;
        } else if (i % 4 != 1) {
            batches[i].logits_rows = 1;
            batches[i].logits = i % 4 == 2 ? last[i] : NULL;
            batches[i].greedy_token = &greedy[i];
        }
    }
    forward(some, batches, SEQUENCES);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const uint32_t tokens = 30 + 20 * i;
        const float *expected = all->sequences[i].logits + (tokens - 1) * vocab;
        if (i % 4 == 1) {
            assert_memory_equal(some->sequences[i].logits, all->sequences[i].logits,
                tokens * vocab * sizeof(float));
        }
        if (i % 4 == 2) {
            assert_memory_equal(last[i], expected, vocab * sizeof(float));
        }
        for (uint32_t id = 0; id < vocab && i % 4 >= 2; id++) {
            assert_true(expected[id] < expected[greedy[i]] ||
                        (expected[id] == expected[greedy[i]] && id >= greedy[i]));
        }
    }
    close_group(all);
    close_group(some);
    free(path);
}

/* ---- the contract of one call ---- */

static uint32_t asked[SEQUENCES];

static kvl_err note_layer(void *arg, uint32_t layer) {
    uint32_t *count = arg;
    assert_int_equal(layer, *count);
    ++*count;
    return KVL_OK;
}

static kvl_err stop_at_second_layer(void *arg, uint32_t layer) {
    (void)arg;
    return layer == 1 ? KVL_ERR_CANCELED : KVL_OK;
}

/* Each batch is asked once a layer; after a call that one of them stopped, the same call again
 * gives the right bits. */
static void one_that_is_stopped_stops_the_call(void **state) {
    (void)state;
    char *path = model_of("llama");
    struct group *alone = open_group(path, (struct setting){.threads = 1});
    struct group *together = open_group(path, (struct setting){.threads = 2});
    struct kvl_batch batches[SEQUENCES];
    memset(asked, 0, sizeof asked);
    for (uint32_t i = 0; i < SEQUENCES; i++) { /* the prompts fill more than one chunk */
        batches[i] = next_batch(together, &together->sequences[i], 100);
        batches[i].before_layer = i == 3 ? stop_at_second_layer : note_layer;
        batches[i].before_layer_arg = &asked[i];
    }
    assert_int_equal(
        together->backend->ops->forward(together->backend, batches, SEQUENCES), KVL_ERR_CANCELED);
    memset(asked, 0, sizeof asked);
    batches[3].before_layer = note_layer;
    forward(together, batches, SEQUENCES);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        assert_int_equal(asked[i], together->model->hparams.layers);
    }
    run_alone(alone, together);
    assert_same_bits(alone, together);
    close_group(alone);
    close_group(together);
    free(path);
}

static void refuses_impossible_calls(void **state) {
    (void)state;
    char *path = model_of("llama");
    struct group *g = open_group(path, (struct setting){.threads = 1});
    struct kvl_batch batches[SEQUENCES + 1];
    for (uint32_t i = 0; i <= SEQUENCES; i++) {
        batches[i] = next_batch(g, &g->sequences[i % SEQUENCES], 1);
    }
    assert_int_equal(g->backend->ops->forward(g->backend, batches, 0), KVL_ERR_INVALID);
    assert_int_equal(g->backend->ops->forward(g->backend, batches, SEQUENCES + 1), KVL_ERR_INVALID);
    batches[4].count = 0;
    assert_int_equal(g->backend->ops->forward(g->backend, batches, SEQUENCES), KVL_ERR_INVALID);
    close_group(g);
    free(path);
}

int main(int argc, char **argv) {
    quick = kvl_is_quick(argc, argv);
    char cache[] = "/tmp/kvl-cache-XXXXXX"; /* fingerprints of files that are gone tomorrow */
    if (mkdtemp(cache) == NULL || setenv("XDG_CACHE_HOME", cache, 1) != 0) {
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_does_not_change_bits),
        cmocka_unit_test(long_prompts_side_by_side),
        cmocka_unit_test(a_prefix_is_read_by_several),
        cmocka_unit_test(each_batch_gets_what_it_asked_for),
        cmocka_unit_test(one_that_is_stopped_stops_the_call),
        cmocka_unit_test(refuses_impossible_calls),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", cache);
    return system(command) == 0 ? failed : 1;
}
