/* together_speed.c - how fast the CPU backend decodes several sequences in one forward call, beside
 * one alone in the same run.
 *
 *   kvl_bench_together MODEL [threads [tokens...]]
 *
 * All of them stand behind the same prompt of `tokens` tokens, whose whole blocks they share, and
 * write blocks of their own. Figures are of the median step and of the best one. One thread alone
 * is timed by the CPU time it took, so that it can be measured on a busy machine too. Token ids are
 * arbitrary: speed does not depend on them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "private_memory.h"
#include "report.h"
#include "step_clock.h"

enum { BLOCK_TOKENS = 64, STEPS = 48, TOGETHER_MAX = 16, COUNTS_MAX = 16 };

struct session {
    struct kvl_model *model;
    struct kvl_backend *backend;
    struct kvl_private_memory *memory;
    uint32_t *tokens;
    float *logits;                  /* [TOGETHER_MAX][vocab] */
    uint8_t **blocks[TOGETHER_MAX]; /* tables: the prompt's whole blocks are the first one's */
    struct kvl_batch batches[TOGETHER_MAX];
};

static int forward(struct session *s, uint32_t count, double *seconds) {
    const double begin = step_clock_s();
    const kvl_err err = s->backend->ops->forward(s->backend, s->batches, count);
    *seconds = step_clock_s() - begin;
    if (err != KVL_OK) {
        fprintf(stderr, "forward: %s\n", kvl_err_text(err));
    }
    return err == KVL_OK ? 0 : 1;
}

static void set_batch(
    struct session *s, uint32_t sequence, uint32_t position, uint32_t count, uint32_t token) {
    s->batches[sequence] = (struct kvl_batch){
        .tokens = s->tokens + token,
        .count = count,
        .position = position,
        .phase = count == 1 ? KVL_PHASE_DECODE : KVL_PHASE_PREFILL,
        .block_tokens = BLOCK_TOKENS,
        .kv_dtype = KVL_KV_F16,
        .blocks = s->blocks[sequence],
        .logits_rows = 1,
        .logits = s->logits + (size_t)sequence * s->model->hparams.vocab,
    };
}

/* Tables of blocks, and token ids, for a prompt of so many tokens and the steps behind it. */
static int make_room(struct session *s, uint32_t tokens) {
    const struct kvl_hparams *h = &s->model->hparams;
    const uint32_t blocks = (tokens + STEPS) / BLOCK_TOKENS + 1;
    const uint64_t block_bytes = kvl_block_bytes(h, BLOCK_TOKENS, KVL_KV_F16);
    s->tokens = calloc(tokens + TOGETHER_MAX, sizeof *s->tokens);
    s->logits = calloc((size_t)TOGETHER_MAX * h->vocab, sizeof *s->logits);
    if (kvl_private_memory_create(s->backend, block_bytes, &s->memory) != KVL_OK ||
        s->tokens == NULL || s->logits == NULL) {
        return 1;
    }
    for (uint32_t i = 0; i < tokens + TOGETHER_MAX; i++) {
        s->tokens[i] = i * 2654435761u % h->vocab;
    }
    for (uint32_t i = 0; i < TOGETHER_MAX; i++) {
        s->blocks[i] = calloc(blocks, sizeof *s->blocks[i]);
        for (uint32_t b = 0; b < blocks; b++) {
            const bool is_shared = i > 0 && b < tokens / BLOCK_TOKENS;
            if (s->blocks[i] == NULL ||
                (!is_shared && kvl_private_memory_take(s->memory, &s->blocks[i][b]) != KVL_OK)) {
                return 1;
            }
            if (is_shared) {
                s->blocks[i][b] = s->blocks[0][b];
            }
        }
    }
    return 0;
}

static void give_room_back(struct session *s) {
    for (uint32_t i = 0; i < TOGETHER_MAX; i++) {
        free(s->blocks[i]);
        s->blocks[i] = NULL;
    }
    kvl_private_memory_destroy(s->memory);
    s->memory = NULL;
    free(s->tokens);
    free(s->logits);
    s->tokens = NULL;
    s->logits = NULL;
}

/* -> sequences * steps per second: of the median step, and of the best. */
static int measure_count(struct session *s, uint32_t count, uint32_t tokens, double rate[2]) {
    double steps_s[STEPS];
    for (uint32_t step = 0; step < STEPS; step++) {
        for (uint32_t i = 0; i < count; i++) {
            set_batch(s, i, tokens + step, 1, i);
        }
        if (forward(s, count, &steps_s[step]) != 0) {
            return 1;
        }
    }
    rate[0] = count / bench_percentile(steps_s, STEPS, 0.5);
    rate[1] = count / steps_s[0]; /* sorted by now */
    return 0;
}

static int measure(struct session *s, uint32_t tokens) {
    double prefill_s, alone[2], together[2];
    set_batch(s, 0, 0, tokens, 0);
    if (forward(s, 1, &prefill_s) != 0 || measure_count(s, 1, tokens, alone) != 0) {
        return 1;
    }
    printf("%6u tokens: 1 alone %.1f tok/s (best %.1f)\n", tokens, alone[0], alone[1]);
    for (uint32_t count = 2; count <= TOGETHER_MAX; count *= 2) {
        if (measure_count(s, count, tokens, together) != 0) {
            return 1;
        }
        printf("%6u tokens: %2u together %.1f tok/s, %.2fx (best %.1f, %.2fx)\n", tokens, count,
            together[0], together[0] / alone[0], together[1], together[1] / alone[1]);
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [threads [tokens...]]\n", argv[0]);
        return 2;
    }
    uint32_t counts[COUNTS_MAX] = {512, 2048};
    int count_of_counts = argc > 3 ? (argc - 3 > COUNTS_MAX ? COUNTS_MAX : argc - 3) : 2;
    for (int i = 0; i < count_of_counts && argc > 3; i++) {
        counts[i] = (uint32_t)strtoul(argv[3 + i], NULL, 10);
    }
    const struct kvl_backend_options options = {
        .threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0,
        .batches_max = TOGETHER_MAX};
    step_clock_init(options.threads);
    struct kvl_errmsg msg = {{0}};
    struct session session = {0};
    int status = 1;
    if (kvl_model_load(argv[1], &session.model, &msg) != KVL_OK ||
        kvl_backend_cpu.create(session.model, &options, &session.backend, &msg) != KVL_OK) {
        fprintf(stderr, "%s\n", msg.text);
        goto cleanup;
    }
    status = 0;
    for (int i = 0; i < count_of_counts && status == 0; i++) {
        status = make_room(&session, counts[i]);
        if (status != 0) {
            fprintf(stderr, "out of memory\n");
        } else {
            status = measure(&session, counts[i]);
        }
        give_room_back(&session);
    }

cleanup:
    kvl_backend_cpu.destroy(session.backend);
    kvl_model_free(session.model);
    return status;
}
