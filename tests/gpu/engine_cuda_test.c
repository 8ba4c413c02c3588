/* engine_cuda_test.c - the GPU against the CPU, token by token, through the engine's sequence.
 *
 * The CPU decodes greedily; the GPU is given the same tokens, so that one difference does not hide
 * the next. Wherever the GPU would have chosen another token, the CPU's two best logits are closer
 * than MARGIN: its own rounding could have turned them. Without a GPU it ends with 77. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "sequence.h"
#include "tiny_model.h"

enum { PROMPT = 300, DECODED = 100, CONTEXT = 512, BLOCK = 64, SEED = 5 };
#define MARGIN 0.05f /* of f16 KV */
#define MARGIN_BF16 0.2f

struct run {
    struct kvl_backend *backend;
    struct kvl_sequence sequence;
    float *logits;
};

static uint32_t vocab;

static void open_run(struct run *run, const struct kvl_backend_ops *ops,
    const struct kvl_model *model, enum kvl_kv_dtype kv_dtype) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_backend_options options = {.context_max = CONTEXT};
    *run = (struct run){0};
    if (ops->create(model, &options, &run->backend, &msg) != KVL_OK)
        fail_msg("%s: %s", ops->name, msg.text);
    struct kvl_sequence_options sequence = {.backend = run->backend,
        .hparams = &model->hparams,
        .kv_dtype = kv_dtype,
        .block_tokens = BLOCK,
        .context_max = CONTEXT};
    assert_int_equal(kvl_sequence_init(&run->sequence, &sequence), KVL_OK);
    run->logits = calloc(vocab, sizeof *run->logits);
    assert_non_null(run->logits);
}

static void close_run(struct run *run) {
    kvl_sequence_deinit(&run->sequence);
    run->backend->ops->destroy(run->backend);
    free(run->logits);
}

/* Appends and computes; the logits behind the last token. */
static void advance(struct run *run, const uint32_t *tokens, uint32_t count, bool is_decode) {
    struct kvl_wanted wanted = {.rows = 1, .logits = run->logits, .is_decode = is_decode};
    assert_int_equal(kvl_sequence_append(&run->sequence, tokens, count), KVL_OK);
    assert_int_equal(kvl_sequence_advance(&run->sequence, &wanted), KVL_OK);
}

static uint32_t best_of(const float *logits) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; ++i)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static void compare(
    const struct run *cpu, const struct run *gpu, uint32_t step, float margin, float *largest) {
    for (uint32_t i = 0; i < vocab; ++i) {
        float difference = fabsf(cpu->logits[i] - gpu->logits[i]);
        if (!isfinite(gpu->logits[i]))
            fail_msg("step %u: the GPU's logit %u is not finite", step, i);
        *largest = difference > *largest ? difference : *largest;
    }
    uint32_t best = best_of(cpu->logits), other = best_of(gpu->logits);
    float distance = cpu->logits[best] - cpu->logits[other];
    if (distance >= margin)
        fail_msg("step %u: CPU %u (%g), GPU %u (%g there, %g here): a margin of %g", step, best,
            cpu->logits[best], other, cpu->logits[other], gpu->logits[other], distance);
}

/* What the GPU says is the likeliest without its logits is what they say. */
static void check_greedy(const struct kvl_model *model, const uint32_t *prompt) {
    struct run run;
    uint32_t token = UINT32_MAX;
    struct kvl_wanted wanted = {.rows = 1, .greedy_token = &token};
    open_run(&run, kvl_backend_cuda, model, KVL_KV_F16);
    advance(&run, prompt, PROMPT, false);
    uint32_t expected = best_of(run.logits);
    kvl_sequence_deinit(&run.sequence);
    struct kvl_sequence_options sequence = {.backend = run.backend,
        .hparams = &model->hparams,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK,
        .context_max = CONTEXT};
    assert_int_equal(kvl_sequence_init(&run.sequence, &sequence), KVL_OK);
    assert_int_equal(kvl_sequence_append(&run.sequence, prompt, PROMPT), KVL_OK);
    assert_int_equal(kvl_sequence_advance(&run.sequence, &wanted), KVL_OK);
    assert_int_equal(token, expected);
    close_run(&run);
}

static void check_model(
    const struct kvl_model *model, const char *name, enum kvl_kv_dtype kv_dtype, float margin) {
    struct run cpu, gpu;
    uint32_t prompt[PROMPT];
    uint64_t seed = SEED;
    float largest = 0;
    vocab = model->hparams.vocab;
    for (uint32_t i = 0; i < PROMPT; ++i)
        prompt[i] = (uint32_t)(0.5 * ((double)tiny_random(&seed) + 1) * (vocab - 1));
    open_run(&cpu, &kvl_backend_cpu, model, kv_dtype);
    open_run(&gpu, kvl_backend_cuda, model, kv_dtype);
    advance(&cpu, prompt, PROMPT, false);
    advance(&gpu, prompt, PROMPT, false);
    compare(&cpu, &gpu, 0, margin, &largest);
    for (uint32_t step = 1; step <= DECODED; ++step) {
        uint32_t token = best_of(cpu.logits);
        advance(&cpu, &token, 1, true);
        advance(&gpu, &token, 1, true);
        compare(&cpu, &gpu, step, margin, &largest);
    }
    printf("%s: logits differ by at most %g\n", name, largest);
    close_run(&gpu);
    close_run(&cpu);
    if (kv_dtype == KVL_KV_F16)
        check_greedy(model, prompt);
}

static void check_file(const char *name, enum kvl_kv_dtype kv_dtype, float margin) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_model *model = NULL;
    char path[512];
    snprintf(path, sizeof path, "%s/%s.gguf", KVL_GOLDEN_DATA, name);
    if (kvl_model_load(path, &model, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    check_model(model, name, kv_dtype, margin);
    kvl_model_free(model);
}

static void test_tiny_f32(void **state) {
    (void)state;
    check_file("tiny_f32", KVL_KV_F16, MARGIN);
}

static void test_tiny_mixed(void **state) {
    (void)state;
    check_file("tiny_mixed", KVL_KV_F16, MARGIN);
}

static void test_tiny_mixed_bf16(void **state) {
    (void)state;
    check_file("tiny_mixed", KVL_KV_BF16, MARGIN_BF16);
}

static void test_tiny_qwen2(void **state) {
    (void)state;
    check_file("tiny_qwen2", KVL_KV_F16, MARGIN);
}

static void test_tiny_qwen3(void **state) {
    (void)state;
    check_file("tiny_qwen3", KVL_KV_F16, MARGIN);
}

static void test_tiny_gemma(void **state) {
    (void)state;
    check_file("tiny_gemma", KVL_KV_F16, MARGIN);
}

static void test_tiny_gemma2(void **state) {
    (void)state;
    check_file("tiny_gemma2", KVL_KV_F16, MARGIN);
}

static void test_tiny_gemma3(void **state) {
    (void)state;
    check_file("tiny_gemma3", KVL_KV_F16, MARGIN);
}

static void check_random(const char *name, const char *shape) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_model *model = NULL;
    char path[] = "/tmp/kvloft-shape-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, shape, strlen(shape)), strlen(shape));
    close(fd);
    kvl_err err = kvl_model_random(path, SEED, &model, &msg);
    unlink(path);
    if (err != KVL_OK)
        fail_msg("%s", msg.text);
    check_model(model, name, KVL_KV_F16, MARGIN);
    kvl_model_free(model);
}

static void test_random_head_64(void **state) {
    (void)state;
    check_random("random, heads of 64",
        "{\"layers\": 4, \"width\": 512, \"ffn_width\": 1024, \"heads\": 8, \"kv_heads\": 2, "
        "\"vocab\": 2048, \"context_max\": 512}");
}

static void test_random_head_128_tied(void **state) {
    (void)state;
    check_random("random, heads of 128, tied",
        "{\"layers\": 2, \"width\": 1024, \"ffn_width\": 1536, \"heads\": 8, \"kv_heads\": 2, "
        "\"vocab\": 1000, \"context_max\": 512, \"tied\": true}");
}

int main(void) {
    if (kvl_backend_cuda == NULL || access("/dev/nvidiactl", F_OK) != 0) {
        puts(kvl_backend_cuda == NULL ? "skipped: this build has no CUDA backend"
                                      : "skipped: no NVIDIA GPU here");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_f32),
        cmocka_unit_test(test_tiny_mixed),
        cmocka_unit_test(test_tiny_mixed_bf16),
        cmocka_unit_test(test_tiny_qwen2),
        cmocka_unit_test(test_tiny_qwen3),
        cmocka_unit_test(test_tiny_gemma),
        cmocka_unit_test(test_tiny_gemma2),
        cmocka_unit_test(test_tiny_gemma3),
        cmocka_unit_test(test_random_head_64),
        cmocka_unit_test(test_random_head_128_tied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
