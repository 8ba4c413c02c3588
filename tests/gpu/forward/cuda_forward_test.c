/* cuda_forward_test.c - the CUDA backend on a real GPU: right (against the CPU backend), and its
 * bits depend on nothing but the tokens: not on how a prompt is cut into calls, on what is around a
 * row, on graphs, or on when a restore's layers arrive. */
#include "cuda/kernels.h"
#include "gpu_context.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- right numbers ---- */

struct tolerance {
    double share;  /* of the largest logit */
    double margin; /* greedy tokens may differ where their logits are this near */
};

static uint32_t largest(const float *row, uint32_t vocab) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++) {
        best = row[i] > row[best] ? i : best;
    }
    return best;
}

struct worst {
    double error, size, margin;
};

static void compare_row(
    const float *expected, const float *row, uint32_t vocab, struct worst *worst) {
    for (uint32_t i = 0; i < vocab; i++) {
        if (!isfinite(row[i])) {
            fail_msg("logit %u is %g, expected %g", i, (double)row[i], (double)expected[i]);
        }
        worst->error = fmax(worst->error, fabs((double)row[i] - expected[i]));
        worst->size = fmax(worst->size, fabs(expected[i]));
    }
    const uint32_t a = largest(expected, vocab), b = largest(row, vocab);
    worst->margin = fmax(worst->margin, (double)expected[a] - expected[b]);
}

static void check_worst(const char *what, struct worst worst, struct tolerance tolerance) {
    print_message("%s: off by %.4g of %.4g, greedy margins up to %.4g\n", what, worst.error,
        worst.size, worst.margin);
    if (!(worst.error <= tolerance.share * worst.size) || !(worst.margin <= tolerance.margin)) {
        fail_msg("%s: off by %g of %g (at most %g), margin %g (at most %g)", what, worst.error,
            worst.size, tolerance.share * worst.size, worst.margin, tolerance.margin);
    }
}

enum { PROMPT = 300, CUT = 200, STEPS = 24 };

/* A prompt in two calls, then steps with the same tokens on both. */
static void check_against_cpu(const char *name, const struct tiny_shape *shape,
    enum kvl_kv_dtype dtype, struct tolerance tolerance) {
    struct gpu_context *c = gpu_context_open(shape, (struct gpu_setting){64, dtype, true});
    const uint32_t vocab = c->model->hparams.vocab;
    struct gpu_side *const sides[] = {&c->cpu, &c->gpu};
    float *logits[2];
    for (int s = 0; s < 2; s++) {
        logits[s] = gpu_logits(c, PROMPT + STEPS);
        gpu_run(
            c, sides[s], (struct gpu_call){.count = CUT, .logits_rows = CUT, .logits = logits[s]});
        gpu_run(c, sides[s],
            (struct gpu_call){.position = CUT,
                .count = PROMPT - CUT,
                .logits_rows = PROMPT - CUT,
                .logits = logits[s] + (size_t)CUT * vocab});
        for (uint32_t i = PROMPT; i < PROMPT + STEPS; i++) {
            gpu_run(c, sides[s],
                (struct gpu_call){.position = i,
                    .count = 1,
                    .logits_rows = 1,
                    .phase = KVL_PHASE_DECODE,
                    .logits = logits[s] + (size_t)i * vocab});
        }
    }
    struct worst prefill = {0}, decode = {0};
    for (uint32_t row = 0; row < PROMPT + STEPS; row++) {
        compare_row(logits[0] + (size_t)row * vocab, logits[1] + (size_t)row * vocab, vocab,
            row < PROMPT ? &prefill : &decode);
    }
    char what[96];
    snprintf(what, sizeof what, "%s, KV type %d, prefill", name, (int)dtype);
    check_worst(what, prefill, tolerance);
    snprintf(what, sizeof what, "%s, KV type %d, decode", name, (int)dtype);
    check_worst(what, decode, tolerance);
    free(logits[0]);
    free(logits[1]);
    gpu_context_close(c);
}

static const struct tolerance f16_tolerance = {0.015, 0.05}, bf16_tolerance = {0.05, 0.2};

static void agrees_with_the_cpu_on_a_tiny_model(void **state) {
    (void)state;
    struct tiny_shape shape = tiny_shape_default();
    check_against_cpu("tiny", &shape, KVL_KV_F16, f16_tolerance);
    check_against_cpu("tiny", &shape, KVL_KV_F32, f16_tolerance);
    check_against_cpu("tiny", &shape, KVL_KV_BF16, bf16_tolerance);
    shape.type = KVL_GGML_Q8_0;
    shape.embedding_type = KVL_GGML_Q4_1;
    shape.tied = false;
    shape.rope_dims = 8; /* the rest of a head does not turn */
    shape.heads = 8;
    shape.kv_heads = 8;
    check_against_cpu("tiny, quantized", &shape, KVL_KV_F16, f16_tolerance);
}

static void agrees_with_the_cpu_on_a_middle_model(void **state) {
    (void)state;
    const struct tiny_shape shape = gpu_shape_middle();
    check_against_cpu("middle", &shape, KVL_KV_F16, f16_tolerance);
    check_against_cpu("middle", &shape, KVL_KV_BF16, bf16_tolerance);
}

static void agrees_with_the_cpu_at_head_size_64(void **state) {
    (void)state;
    struct tiny_shape shape = gpu_shape_middle();
    shape.layers = 2;
    shape.width = 576;
    shape.ffn_width = 1536;
    shape.heads = 9;
    shape.kv_heads = 3;
    shape.k_dim = shape.v_dim = shape.rope_dims = 64;
    shape.tied = true;
    check_against_cpu("head size 64", &shape, KVL_KV_F16, f16_tolerance);
    check_against_cpu("head size 64", &shape, KVL_KV_F32, f16_tolerance);
}

/* Tokens reach beyond the windows. */
static void agrees_with_the_cpu_on_every_architecture(void **state) {
    (void)state;
    static const char *const names[] = {"qwen2", "qwen3", "gemma", "gemma2", "gemma3"};
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !gpu_is_small(); i++) {
        struct tiny_shape shape = tiny_shape_default();
        shape.architecture = names[i];
        shape.layers = 4;
        check_against_cpu(names[i], &shape, KVL_KV_F16, f16_tolerance);
    }
    const struct tiny_shape gemma2 = gpu_shape_windowed("gemma2");
    check_against_cpu("gemma2, heads of 64", &gemma2, KVL_KV_F16, f16_tolerance);
}

static void agrees_with_the_cpu_on_windows_and_head_sizes(void **state) {
    (void)state;
    if (gpu_is_small()) {
        skip();
    }
    struct tiny_shape gemma2 = gpu_shape_windowed("gemma2"), gemma3 = gpu_shape_windowed("gemma3");
    check_against_cpu("gemma3, heads of 64", &gemma3, KVL_KV_F16, f16_tolerance);
    check_against_cpu("gemma3, heads of 64", &gemma3, KVL_KV_BF16, bf16_tolerance);
    gemma2.layers = gemma3.layers = 2;
    gemma2.k_dim = gemma2.v_dim = gemma2.rope_dims = 128;
    check_against_cpu("gemma2, heads of 128", &gemma2, KVL_KV_F32, f16_tolerance);
    gemma3.k_dim = gemma3.v_dim = gemma3.rope_dims = 256;
    check_against_cpu("gemma3, heads of 256", &gemma3, KVL_KV_F16, f16_tolerance);
}

/* ---- the same bits ---- */

/* Prefills `length` tokens at `start` again, behind the prefix that the first pass has left, with
 * all that comes after them destroyed. */
static void check_length(
    struct gpu_context *c, uint32_t start, uint32_t length, const float *expected, float *logits) {
    for (uint32_t i = start / c->block_tokens + 1; i < c->block_count; i++) {
        assert_int_equal(cudaMemset(c->gpu.blocks[i], 0xFF, c->block_bytes), cudaSuccess);
    }
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    gpu_run(c, &c->gpu,
        (struct gpu_call){
            .position = start, .count = length, .logits_rows = length, .logits = logits});
    gpu_assert_same_bits(c, expected + (size_t)start * c->model->hparams.vocab, logits, length,
        "prefill length", length);
}

static void prefill_bits_do_not_depend_on_the_call(void **state) {
    (void)state;
    enum { TOTAL = 1200 };
    const struct tiny_shape shape = gpu_shape_middle();
    struct gpu_context *c = gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
    float *expected = gpu_logits(c, TOTAL), *logits = gpu_logits(c, TOTAL);
    gpu_run(
        c, &c->gpu, (struct gpu_call){.count = TOTAL, .logits_rows = TOTAL, .logits = expected});
    check_length(c, 150, 1050, expected, logits); /* leaves what the next ones stand on */
    const uint32_t step = gpu_is_small() ? 43 : 1;
    for (uint32_t length = 130; length > 0 && length <= 130; length -= step) {
        check_length(c, 129 + (130 - length) * 7 % 62, length, expected, logits); /* block 2 */
    }
    static const uint32_t lengths[] = {512, 1023, 1024, 1025, 1200};
    for (size_t i = gpu_is_small() ? 4 : 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        check_length(c, 0, lengths[i], expected, logits);
    }
    free(expected);
    free(logits);
    gpu_context_close(c);
}

static void bits_do_not_depend_on_block_size(void **state) {
    (void)state;
    enum { TOTAL = 400 };
    static const uint32_t sizes[] = {64, 16, 32, 256};
    struct tiny_shape shape = gpu_shape_middle();
    shape.layers = 2;
    float *expected[2] = {NULL, NULL};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct gpu_context *c =
            gpu_context_open(&shape, (struct gpu_setting){sizes[i], KVL_KV_F16, false});
        float *prompt = gpu_logits(c, TOTAL), *step = gpu_logits(c, 1);
        gpu_run(
            c, &c->gpu, (struct gpu_call){.count = TOTAL, .logits_rows = TOTAL, .logits = prompt});
        gpu_run(c, &c->gpu,
            (struct gpu_call){.position = TOTAL,
                .count = 1,
                .logits_rows = 1,
                .phase = KVL_PHASE_DECODE,
                .logits = step});
        if (i == 0) {
            expected[0] = prompt;
            expected[1] = step;
        } else {
            gpu_assert_same_bits(c, expected[0], prompt, TOTAL, "block size", sizes[i]);
            gpu_assert_same_bits(c, expected[1], step, 1, "decode, block size", sizes[i]);
            free(prompt);
            free(step);
        }
        gpu_context_close(c);
    }
    free(expected[0]);
    free(expected[1]);
}

enum { WINDOW = 70, WHOLE = 400 }; /* of the generated models; tokens */

/* Prefills up to WHOLE in calls of `step`, decodes a token there, and compares with the same from a
 * prefill in one call. */
static void check_going_on(
    struct gpu_context *c, uint32_t from, uint32_t step, const float *expected, float *logits) {
    const uint32_t vocab = c->model->hparams.vocab;
    for (uint32_t at = from; at <= WHOLE;) {
        const uint32_t left = WHOLE - at, count = at == WHOLE ? 1 : left < step ? left : step;
        gpu_run(c, &c->gpu,
            (struct gpu_call){.position = at,
                .count = count,
                .logits_rows = count,
                .phase = at == WHOLE ? KVL_PHASE_DECODE : KVL_PHASE_PREFILL,
                .logits = logits + (size_t)at * vocab});
        at += count;
    }
    gpu_assert_same_bits(c, expected + (size_t)from * vocab, logits + (size_t)from * vocab,
        WHOLE + 1 - from, "from position", from);
}

/* What the window of position `from` has left behind is gone: no address, and NaN where it was. */
static void leave_behind(struct gpu_context *c, uint32_t from) {
    const uint64_t bytes =
        kvl_group_block_bytes(&c->model->hparams, 1, c->block_tokens, c->kv_dtype);
    for (uint32_t i = 0; i < (from + 1 - WINDOW) / c->block_tokens; i++) {
        if (c->gpu.window_blocks[i] != NULL) {
            assert_int_equal(cudaMemset(c->gpu.window_blocks[i], 0xFF, bytes), cudaSuccess);
        }
        c->gpu.window_blocks[i] = NULL;
    }
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

static void check_windowed_bits(const char *architecture, uint32_t k_dim) {
    struct tiny_shape shape = gpu_shape_windowed(architecture);
    shape.layers = 4;
    shape.k_dim = shape.v_dim = shape.rope_dims = k_dim;
    const struct gpu_setting setting = {16, KVL_KV_F16, false};
    struct gpu_context *c = gpu_context_open(&shape, setting);
    float *expected = gpu_logits(c, WHOLE + 1), *logits = gpu_logits(c, WHOLE + 1);
    uint8_t *blocks[GPU_BLOCKS_MAX];
    memcpy(blocks, c->gpu.window_blocks, sizeof blocks);
    check_going_on(c, 0, WHOLE, expected, expected); /* makes it */
    static const struct {
        uint32_t from, step;
    } ways[] = {{112, 37}, {160, 1000}, {221, 64}, {397, 1}, {399, 1}};
    for (size_t i = gpu_is_small() ? 3 : 0; i < sizeof ways / sizeof ways[0]; i++) {
        memcpy(c->gpu.window_blocks, blocks, sizeof blocks);
        gpu_poison(c);
        gpu_run(c, &c->gpu, (struct gpu_call){.count = ways[i].from});
        leave_behind(c, ways[i].from);
        check_going_on(c, ways[i].from, ways[i].step, expected, logits);
    }
    free(expected);
    free(logits);
    gpu_context_close(c);
}

static void windowed_bits_do_not_depend_on_what_is_left_behind(void **state) {
    (void)state;
    check_windowed_bits("gemma2", 64);
    if (!gpu_is_small()) {
        check_windowed_bits("gemma3", 128);
        check_windowed_bits("gemma3", 256);
        check_windowed_bits("gemma2", 16); /* the general kernel */
    }
}

/* ---- decode ---- */

static void check_graphs(const struct tiny_shape *shape) {
    enum { FIRST = 250, LAST = 262 }; /* across a class of graphs: 256 */
    struct gpu_context *c = gpu_context_open(shape, (struct gpu_setting){64, KVL_KV_F16, false});
    const uint32_t vocab = c->model->hparams.vocab;
    const bool overlaps = c->cuda->programmatic;
    float *expected = gpu_logits(c, LAST - FIRST), *logits = gpu_logits(c, 1);
    gpu_run(c, &c->gpu, (struct gpu_call){.count = FIRST});
    for (uint32_t round = 0; round < 5; round++) {
        c->cuda->use_graphs = round >= 2;
        c->cuda->programmatic = round >= 1 && overlaps;
        for (uint32_t i = FIRST; i < LAST; i++) {
            float *to = round == 0 ? expected + (size_t)(i - FIRST) * vocab : logits;
            gpu_run(c, &c->gpu,
                (struct gpu_call){.position = i,
                    .count = 1,
                    .logits_rows = 1,
                    .phase = KVL_PHASE_DECODE,
                    .logits = to});
            if (round > 0) {
                gpu_assert_same_bits(
                    c, expected + (size_t)(i - FIRST) * vocab, logits, 1, "decode round", round);
            }
        }
    }
    for (size_t i = 0; i < sizeof c->cuda->graphs / sizeof c->cuda->graphs[0]; i++) {
        assert_true((c->cuda->graphs[i].exec != NULL) == (i < 2)); /* graphs were used */
    }
    free(expected);
    free(logits);
    gpu_context_close(c);
}

static void decode_bits_do_not_depend_on_graphs(void **state) {
    (void)state;
    const struct tiny_shape middle = gpu_shape_middle(), windowed = gpu_shape_windowed("gemma2");
    check_graphs(&middle);
    check_graphs(&windowed);
}

static void the_greedy_token_is_the_largest_logit(void **state) {
    (void)state;
    const struct tiny_shape shape = tiny_shape_default();
    struct gpu_context *c = gpu_context_open(&shape, (struct gpu_setting){16, KVL_KV_F16, false});
    const uint32_t vocab = c->model->hparams.vocab;
    float *logits = gpu_logits(c, 1);
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t with_logits = vocab, alone = vocab;
        struct gpu_call call = {.position = i,
            .count = 1,
            .logits_rows = 1,
            .phase = i % 2 == 0 ? KVL_PHASE_PREFILL : KVL_PHASE_DECODE,
            .logits = logits,
            .greedy_token = &with_logits};
        gpu_run(c, &c->gpu, call);
        call.logits = NULL;
        call.greedy_token = &alone;
        gpu_run(c, &c->gpu, call);
        assert_int_equal(with_logits, largest(logits, vocab));
        assert_int_equal(alone, with_logits);
    }
    free(logits);
    gpu_context_close(c);
}

/* ---- a restore that is still running ---- */

/* Brings a layer's bytes of the first blocks when it is asked for that layer, not before. */
struct restore {
    struct gpu_context *c;
    uint8_t *saved; /* on the device: the blocks as they shall be */
    uint32_t blocks;
    cudaStream_t stream;
    uint32_t asked; /* layers */
    uint32_t fails_at;
    bool failed_to_copy;
};

static kvl_err bring_layer(void *arg, uint32_t layer) {
    struct restore *r = arg;
    const struct gpu_context *c = r->c;
    const struct timespec while_others_wait = {.tv_nsec = 2000000};
    r->failed_to_copy |= layer != r->asked;
    r->asked++;
    if (layer == r->fails_at) {
        return KVL_ERR_CLOSED;
    }
    nanosleep(&while_others_wait, NULL);
    for (uint32_t i = 0; i < r->blocks; i++) {
        const uint64_t offset = gpu_layer_offset(c, layer);
        r->failed_to_copy |=
            cudaMemcpyAsync(c->gpu.blocks[i] + offset, r->saved + i * c->block_bytes + offset,
                gpu_layer_bytes(c), cudaMemcpyDeviceToDevice, r->stream) != cudaSuccess;
    }
    r->failed_to_copy |= cudaStreamSynchronize(r->stream) != cudaSuccess;
    return KVL_OK;
}

enum { RESTORED_BLOCKS = 5, RESTORED = RESTORED_BLOCKS * 64, AFTER = 40 };

static void save_blocks(struct restore *r) {
    void *saved = NULL;
    assert_int_equal(cudaMalloc(&saved, r->blocks * r->c->block_bytes), cudaSuccess);
    r->saved = saved;
    for (uint32_t i = 0; i < r->blocks; i++) {
        assert_int_equal(cudaMemcpy(r->saved + i * r->c->block_bytes, r->c->gpu.blocks[i],
                             r->c->block_bytes, cudaMemcpyDeviceToDevice),
            cudaSuccess);
    }
    assert_int_equal(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking), cudaSuccess);
}

static void check_waits(struct tiny_shape shape) {
    shape.layers = 8; /* more than are enqueued ahead */
    struct gpu_context *c = gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
    float *expected = gpu_logits(c, AFTER), *logits = gpu_logits(c, AFTER);
    gpu_run(c, &c->gpu, (struct gpu_call){.count = RESTORED});
    struct restore restore = {.c = c, .blocks = RESTORED_BLOCKS};
    save_blocks(&restore);
    struct gpu_call call = {
        .position = RESTORED, .count = AFTER, .logits_rows = AFTER, .logits = expected};
    gpu_run(c, &c->gpu, call);
    call.logits = logits;
    call.before_layer = bring_layer;
    call.before_layer_arg = &restore;
    const bool can_wait = c->cuda->use_wait;
    print_message("the stream %s wait for a word\n", can_wait ? "can" : "cannot");
    for (uint32_t round = 0; round < 6; round++) {
        gpu_poison(c);
        c->cuda->use_wait = can_wait && round % 2 == 0;
        restore.asked = 0;
        restore.fails_at = round < 2 ? UINT32_MAX : round < 4 ? 3 : 0;
        memset(logits, 0, (size_t)AFTER * c->model->hparams.vocab * sizeof *logits);
        const kvl_err err = gpu_try(c, &c->gpu, call);
        assert_false(restore.failed_to_copy);
        if (round < 2) {
            assert_int_equal(err, KVL_OK);
            assert_int_equal(restore.asked, shape.layers);
            gpu_assert_same_bits(c, expected, logits, AFTER, "restore round", round);
        } else {
            assert_int_equal(err, KVL_ERR_CLOSED);
            assert_int_equal(restore.asked, restore.fails_at + 1);
        }
    }
    restore.asked = 0; /* and after the errors all is well again */
    restore.fails_at = UINT32_MAX;
    c->cuda->use_wait = can_wait;
    memset(c->cuda->warm_block_tokens, 0, sizeof c->cuda->warm_block_tokens); /* as if the first */
    gpu_poison(c);
    gpu_run(c, &c->gpu, call);
    gpu_assert_same_bits(c, expected, logits, AFTER, "restore after errors", 0);
    assert_int_equal(c->cuda->warm_block_tokens[KVL_KV_F16], c->block_tokens);
    assert_int_equal(cudaFree(restore.saved), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(restore.stream), cudaSuccess);
    free(expected);
    free(logits);
    gpu_context_close(c);
}

static void layers_wait_for_their_blocks(void **state) {
    (void)state;
    check_waits(gpu_shape_middle());
    if (!gpu_is_small()) {
        check_waits(gpu_shape_windowed("gemma3"));
    }
}

/* CTest runs this also with CUDA_LAUNCH_BLOCKING=1, where a launch behind a wait does not return.
 */
static void it_is_found_out_whether_launches_return(void **state) {
    (void)state;
    const struct tiny_shape shape = tiny_shape_default();
    struct gpu_context *c = gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
    const char *const blocking = getenv("CUDA_LAUNCH_BLOCKING");
    const bool blocks = blocking != NULL && strcmp(blocking, "1") == 0;
    struct kvl_errmsg msg = {{0}};
    for (int round = 0; round < 2; round++) {
        bool returns = blocks;
        assert_int_equal(kvl_cuda_try_launch_behind_wait(c->cuda, &returns, &msg), KVL_OK);
        assert_int_equal(returns, !blocks);
    }
    if (blocks) {
        assert_false(c->cuda->use_wait);
    }
    assert_int_equal(setenv("KVL_CUDA_NO_WAIT", "1", 1), 0);
    assert_int_equal(kvl_cuda_try_wait(c->cuda, &msg), KVL_OK);
    assert_false(c->cuda->use_wait);
    assert_int_equal(setenv("KVL_CUDA_NO_WAIT", "0", 1), 0);
    assert_int_equal(kvl_cuda_try_wait(c->cuda, &msg), KVL_OK);
    assert_int_equal(c->cuda->use_wait, !blocks);
    assert_int_equal(unsetenv("KVL_CUDA_NO_WAIT"), 0);
    gpu_context_close(c);
}

/* ---- refusals ---- */

static void bad_calls_are_refused(void **state) {
    (void)state;
    const struct tiny_shape shape = tiny_shape_default();
    struct gpu_context *c = gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
    float *logits = gpu_logits(c, 4);
    uint32_t token;
    const struct gpu_call bad[] = {
        {.count = 0}, {.count = 2, .logits_rows = 3, .logits = logits},
        {.position = GPU_CONTEXT, .count = 1}, {.position = GPU_CONTEXT - 1, .count = 2},
        {.count = 2, .phase = KVL_PHASE_DECODE}, {.count = 1, .logits_rows = 1},  /* where to? */
        {.count = 2, .logits_rows = 2, .logits = logits, .greedy_token = &token}, /* of which? */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(gpu_try(c, &c->gpu, bad[i]), KVL_ERR_INVALID);
    }
    c->tokens[1] = c->model->hparams.vocab;
    assert_int_equal(gpu_try(c, &c->gpu, (struct gpu_call){.count = 2}), KVL_ERR_INVALID);
    c->tokens[1] = 0;
    gpu_run(c, &c->gpu, (struct gpu_call){.count = 2, .logits_rows = 2, .logits = logits});
    gpu_context_close(c);
    const struct tiny_shape windowed = gpu_shape_windowed("gemma3");
    c = gpu_context_open(&windowed, (struct gpu_setting){64, KVL_KV_F16, false});
    const struct kvl_batch no_window = {.tokens = c->tokens,
        .count = 1,
        .block_tokens = 64,
        .kv_dtype = KVL_KV_F16,
        .blocks = c->gpu.blocks};
    assert_int_equal(c->gpu.backend->ops->forward(c->gpu.backend, &no_window, 1), KVL_ERR_INVALID);
    const struct kvl_backend_options other = {.context_max = 64, .device = 99};
    struct kvl_backend *backend = NULL;
    struct kvl_errmsg msg = {{0}};
    assert_int_equal(kvl_backend_cuda->create(c->model, &other, &backend, &msg), KVL_ERR_NOTFOUND);
    assert_non_null(strstr(msg.text, "cuda:99"));
    free(logits);
    gpu_context_close(c);
}

static void the_arithmetic_id_names_what_makes_the_bits(void **state) {
    (void)state;
    const struct tiny_shape shape = tiny_shape_default();
    struct gpu_context *c = gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
    const struct kvl_cuda_product *const products[] = {&c->cuda->qkv, &c->cuda->attention_out,
        &c->cuda->gate_up, &c->cuda->down, &c->cuda->logits_product};
    print_message("%s\n", c->gpu.backend->arithmetic_id);
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        print_message("%u x %u: candidate %u, %s\n", products[i]->shape.outputs,
            products[i]->shape.inputs, products[i]->candidate, products[i]->algorithm_text);
    }
    struct gpu_context *again =
        gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
    assert_string_equal(c->gpu.backend->arithmetic_id, again->gpu.backend->arithmetic_id);
    assert_non_null(strstr(c->gpu.backend->arithmetic_id, "cublaslt-"));
    struct kvl_cuda_code code;
    assert_int_equal(kvl_cuda_gemv_code(&code), cudaSuccess);
    print_message("%s, compiled for %u, machine code for %u\n", kvl_cuda_compiler,
        code.virtual_machine, code.machine);
    assert_non_null(strstr(c->gpu.backend->arithmetic_id, kvl_cuda_compiler));
    assert_int_equal(c->cuda->programmatic, code.virtual_machine >= 90 && code.machine >= 90);
    assert_in_range(code.virtual_machine, 80, code.machine);
    assert_true((int)code.machine <= 10 * c->cuda->device.major + c->cuda->device.minor);
    gpu_context_close(again);
    gpu_context_close(c);
}

/* Argument: which tests (cmocka_set_test_filter). */
int main(int argc, char **argv) {
    int gpus = 0;
    const cudaError_t error = cudaGetDeviceCount(&gpus);
    if (error != cudaSuccess || gpus == 0) {
        printf("skipped: no GPU (%s)\n", cudaGetErrorString(error));
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_arithmetic_id_names_what_makes_the_bits),
        cmocka_unit_test(agrees_with_the_cpu_on_a_tiny_model),
        cmocka_unit_test(agrees_with_the_cpu_at_head_size_64),
        cmocka_unit_test(agrees_with_the_cpu_on_a_middle_model),
        cmocka_unit_test(agrees_with_the_cpu_on_every_architecture),
        cmocka_unit_test(agrees_with_the_cpu_on_windows_and_head_sizes),
        cmocka_unit_test(prefill_bits_do_not_depend_on_the_call),
        cmocka_unit_test(bits_do_not_depend_on_block_size),
        cmocka_unit_test(windowed_bits_do_not_depend_on_what_is_left_behind),
        cmocka_unit_test(decode_bits_do_not_depend_on_graphs),
        cmocka_unit_test(the_greedy_token_is_the_largest_logit),
        cmocka_unit_test(layers_wait_for_their_blocks),
        cmocka_unit_test(it_is_found_out_whether_launches_return),
        cmocka_unit_test(bad_calls_are_refused),
        cmocka_unit_test(copies_zeros_and_slabs),
        cmocka_unit_test(too_much_memory_is_refused),
        cmocka_unit_test(an_arena_is_mapped_from_its_descriptor),
        cmocka_unit_test(a_foreign_arena_is_refused),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
