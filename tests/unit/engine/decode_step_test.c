/* decode_step_test.c - a decode step, from a token to the choice of the next one, allocates nothing
 * and takes no lock, on any thread: the linker sends every such call of ours through here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "sampler.h"
#include "tiny_model.h"

/* ---- what is counted ---- */

static _Atomic uint32_t calls;

/* For a function F: __wrap_F, which is called for F, counts and calls __real_F, which is F. */
#define COUNTED(type, name, parameters, arguments)                                                 \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        atomic_fetch_add(&calls, 1);                                                               \
        return __real_##name arguments;                                                            \
    }

COUNTED(void *, malloc, (size_t bytes), (bytes))
COUNTED(void *, calloc, (size_t count, size_t bytes), (count, bytes))
COUNTED(void *, realloc, (void *old, size_t bytes), (old, bytes))
COUNTED(void *, aligned_alloc, (size_t alignment, size_t bytes), (alignment, bytes))
COUNTED(int, posix_memalign, (void **out, size_t alignment, size_t bytes), (out, alignment, bytes))
COUNTED(void, free, (void *memory), (memory))
COUNTED(void *, mmap, (void *at, size_t bytes, int protection, int flags, int fd, off_t offset),
    (at, bytes, protection, flags, fd, offset))
COUNTED(int, munmap, (void *at, size_t bytes), (at, bytes))
COUNTED(int, pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex))
COUNTED(int, pthread_mutex_trylock, (pthread_mutex_t * mutex), (mutex))
COUNTED(int, pthread_rwlock_rdlock, (pthread_rwlock_t * lock), (lock))
COUNTED(int, pthread_rwlock_wrlock, (pthread_rwlock_t * lock), (lock))
COUNTED(int, pthread_spin_lock, (pthread_spinlock_t * lock), (lock))
COUNTED(int, pthread_cond_wait, (pthread_cond_t * condition, pthread_mutex_t *mutex),
    (condition, mutex))
COUNTED(int, sem_wait, (sem_t * semaphore), (semaphore))

static void calls_are_counted(void **state) {
    (void)state;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    const uint32_t before = calls;
    void *volatile memory = malloc(10);
    assert_non_null(memory);
    free(memory);
    assert_int_equal(pthread_mutex_lock(&mutex), 0);
    assert_int_equal(pthread_mutex_unlock(&mutex), 0);
    assert_int_equal(calls - before, 3);
}

/* ---- steps ---- */

enum { BLOCK_TOKENS = 16, BLOCKS = 34, PROMPT = 490, STEPS = 40 };

struct run {
    struct kvl_model *model;
    struct kvl_backend *backend;
    struct kvl_sampler sampler;
    uint8_t *memory, *blocks[BLOCKS];
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    float *logits;
};

static void open_run(struct run *run, uint32_t threads) {
    struct tiny_shape shape = tiny_shape_default();
    shape.type = KVL_GGML_Q4_1;
    shape.embedding_type = KVL_GGML_Q8_0;
    char *path = tiny_model_file(&shape);
    struct kvl_errmsg msg = {{0}};
    *run = (struct run){0};
    assert_int_equal(kvl_model_load(path, &run->model, &msg), KVL_OK);
    free(path);
    const struct kvl_backend_options options = {
        .threads = threads, .context_max = BLOCKS * BLOCK_TOKENS};
    assert_int_equal(kvl_backend_cpu.create(run->model, &options, &run->backend, &msg), KVL_OK);
    const struct kvl_hparams *h = &run->model->hparams;
    const uint64_t block_bytes = kvl_block_bytes(h, BLOCK_TOKENS, KVL_KV_F16);
    run->memory = calloc(BLOCKS, block_bytes);
    run->logits = calloc(h->vocab, sizeof *run->logits);
    assert_true(run->memory != NULL && run->logits != NULL);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        run->blocks[i] = run->memory + i * block_bytes;
    }
    kvl_sampler_init(&run->sampler,
        (struct kvl_sampler_options){
            .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .repeat_penalty = 1.1f, .seed = 3});
    assert_int_equal(kvl_sampler_prepare(&run->sampler, h->vocab), KVL_OK);
}

static void close_run(struct run *run) {
    kvl_sampler_deinit(&run->sampler);
    run->backend->ops->destroy(run->backend);
    kvl_model_free(run->model);
    free(run->memory);
    free(run->logits);
}

/* Computes tokens from `position` on and chooses the one behind them. */
static void advance(struct run *run, uint32_t position, uint32_t count) {
    const struct kvl_batch batch = {.tokens = run->tokens + position,
        .count = count,
        .position = position,
        .phase = count == 1 ? KVL_PHASE_DECODE : KVL_PHASE_PREFILL,
        .block_tokens = BLOCK_TOKENS,
        .kv_dtype = KVL_KV_F16,
        .blocks = run->blocks,
        .logits_rows = 1,
        .logits = run->logits};
    if (run->backend->ops->forward(run->backend, &batch, 1) != KVL_OK) {
        abort(); /* an assertion that holds may take locks of its own */
    }
    const struct kvl_sampler_input input = {.logits = run->logits,
        .vocab = run->model->hparams.vocab,
        .context = run->tokens,
        .context_tokens = position + count};
    run->tokens[position + count] = kvl_sampler_pick(&run->sampler, &input);
}

/* Also across the ends of blocks and of a partition of the context, and with threads asleep. */
static void a_decode_step_allocates_nothing_and_takes_no_lock(void **state) {
    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct run run;
        open_run(&run, threads);
        advance(&run, 0, PROMPT);
        const uint32_t before = calls;
        for (uint32_t i = 0; i < STEPS; i++) {
            advance(&run, PROMPT + i, 1);
            if (i % 8 == 7) {
                usleep(1000);
            }
        }
        assert_int_equal(calls - before, 0);
        close_run(&run);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_are_counted),
        cmocka_unit_test(a_decode_step_allocates_nothing_and_takes_no_lock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
