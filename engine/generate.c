/* generate.c - see generate.h. */
#include "generate.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const char *kvl_stop_reason_name(enum kvl_stop_reason reason) {
    static const char *const names[] = {"length", "eos", "context", "interrupted", "stop"};
    return names[reason];
}

struct kvl_turn {
    struct kvl_generate_options options;
    struct kvl_turn_report *report;
    struct kvl_sequence *sequence;
    /* NULL: only the likeliest token is wanted, which spares a device the way of all logits. */
    float *logits;
    uint32_t greedy_token;
    uint32_t vocab;
    EVP_MD_CTX *hash; /* NULL: not wanted */

    struct kvl_advance advance;
    bool is_prefilling;
    bool is_forwarding; /* part of the forward call of this step */
    bool has_ended;
    kvl_err err;                   /* what ended it; CANCELED: stop */
    uint64_t began_ns;             /* the advance */
    struct kvl_cache_stats before; /* the prompt */
    uint64_t computed_before;
};

static void end_with(struct kvl_turn *turn, kvl_err err) {
    turn->err = err;
    turn->has_ended = true;
}

/* From now on the turn's steps compute all tokens that are not computed yet. */
static kvl_err begin_advance(struct kvl_turn *turn) {
    struct kvl_wanted wanted = {
        .rows = 1, .logits = turn->logits, .is_decode = !turn->is_prefilling};
    if (turn->logits == NULL)
        wanted.greedy_token = &turn->greedy_token;
    turn->began_ns = now_ns();
    return kvl_advance_init(&turn->advance, turn->sequence, &wanted);
}

static kvl_err init_logits(struct kvl_turn *turn) {
    turn->vocab = turn->sequence->options.hparams->vocab;
    if (kvl_sampler_is_greedy(turn->options.sampler) && !turn->options.hash_logits)
        return KVL_OK;
    turn->logits = malloc(turn->vocab * sizeof *turn->logits);
    if (turn->logits == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err = kvl_sampler_prepare(turn->options.sampler, turn->vocab);
    if (err != KVL_OK)
        return err;
    if (!turn->options.hash_logits)
        return KVL_OK;
    turn->hash = EVP_MD_CTX_new();
    if (turn->hash == NULL || EVP_DigestInit_ex(turn->hash, EVP_sha256(), NULL) != 1)
        return KVL_ERR_NOMEM;
    return KVL_OK;
}

static kvl_err hash_logits(struct kvl_turn *turn) {
    if (turn->hash != NULL &&
        EVP_DigestUpdate(turn->hash, turn->logits, turn->vocab * sizeof *turn->logits) != 1)
        return KVL_ERR_NOMEM;
    return KVL_OK;
}

static kvl_err begin_prefill(struct kvl_turn *turn) {
    struct kvl_sequence *sequence = turn->sequence;
    turn->is_prefilling = true;
    turn->before = *kvl_caches_stats(sequence->cache);
    turn->computed_before = sequence->computed_total;
    turn->report->prompt_tokens = sequence->count;
    if (turn->options.session != NULL)
        kvl_saved_session_follow(turn->options.session, sequence, true);
    return begin_advance(turn);
}

/* What is known of the prompt so far: also of one that an error or a stop ended. */
static void report_prefill(struct kvl_turn *turn) {
    struct kvl_turn_report *report = turn->report;
    const struct kvl_cache_stats *stats = kvl_caches_stats(turn->sequence->cache);
    const struct kvl_cache_stats *before = &turn->before;
    report->prefill_ns = now_ns() - turn->began_ns;
    report->computed_tokens = turn->sequence->computed_total - turn->computed_before;
    report->restore_ns = stats->restore_ns - before->restore_ns;
    report->restored_bytes = stats->restored_bytes - before->restored_bytes;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; ++i)
        report->restored_tokens[i] = stats->restored_tokens[i] - before->restored_tokens[i];
}

static void report_decode(struct kvl_turn *turn) {
    struct kvl_turn_report *report = turn->report;
    uint64_t step_ns = now_ns() - turn->began_ns;
    report->decode_ns += step_ns;
    if (step_ns > report->decode_step_ns_max)
        report->decode_step_ns_max = step_ns;
    ++report->decode_tokens;
}

/* Chooses the next token and appends it. True when the turn goes on. */
static bool choose(struct kvl_turn *turn, kvl_err *err) {
    const struct kvl_generate_options *options = &turn->options;
    struct kvl_turn_report *report = turn->report;
    *err = hash_logits(turn);
    const struct kvl_sampler_input input = {.logits = turn->logits,
        .vocab = turn->vocab,
        .context = turn->sequence->tokens,
        .context_tokens = turn->sequence->count};
    uint32_t token =
        turn->logits == NULL ? turn->greedy_token : kvl_sampler_pick(options->sampler, &input);
    if (*err == KVL_OK)
        *err = kvl_token_list_push(&report->output, token);
    if (*err != KVL_OK)
        return false;
    if (report->ttft_ns == 0)
        report->ttft_ns = now_ns() - options->began_ns;
    *err = kvl_sequence_append(turn->sequence, &token, 1);
    bool goes_on = options->on_token == NULL || options->on_token(options->on_token_arg, token);
    if (options->tokenizer != NULL && kvl_token_is_end_of_generation(options->tokenizer, token))
        report->stop_reason = KVL_STOP_EOS;
    else if (!goes_on)
        report->stop_reason = KVL_STOP_STRING;
    else if (report->output.count >= options->max_tokens)
        report->stop_reason = KVL_STOP_LENGTH;
    else if (turn->sequence->count >= turn->sequence->options.context_max)
        report->stop_reason = KVL_STOP_CONTEXT;
    else
        return *err == KVL_OK;
    if (*err == KVL_ERR_LIMIT)
        *err = KVL_OK; /* the last token of a full context */
    return false;
}

/* The advance is done: its logits are there. */
static void go_on(struct kvl_turn *turn) {
    kvl_err err = KVL_OK;
    bool goes_on = false;
    if (turn->is_prefilling)
        report_prefill(turn);
    else
        report_decode(turn);
    turn->is_prefilling = false;
    if (turn->options.max_tokens > 0)
        goes_on = choose(turn, &err);
    if (goes_on) {
        if (turn->options.session != NULL)
            kvl_saved_session_follow(turn->options.session, turn->sequence, false);
        err = begin_advance(turn);
    }
    if (!goes_on || err != KVL_OK)
        end_with(turn, err);
}

/* Everything that can be stored is stored, and every answer has come. */
static void finish_storing(struct kvl_turn *turn) {
    struct kvl_sequence *sequence = turn->sequence;
    struct kvl_turn_report *report = turn->report;
    kvl_caches_finish(sequence->cache, sequence->tokens, kvl_sequence_whole_blocks(sequence));
    if (turn->options.session != NULL)
        kvl_saved_session_end_turn(turn->options.session, sequence);
    if (!sequence->options.no_cache)
        report->private_tokens = kvl_caches_private_tokens(sequence->cache, sequence->computed);
    const struct kvl_connection *connection = sequence->options.connection;
    report->daemon_lost = connection != NULL && connection->lost_ever;
}

static void free_turn(struct kvl_turn *turn) {
    EVP_MD_CTX_free(turn->hash);
    free(turn->logits);
    free(turn);
}

kvl_err kvl_turn_begin(const struct kvl_generate_options *options, struct kvl_turn_report *report,
    struct kvl_turn **out) {
    *report = (struct kvl_turn_report){0};
    struct kvl_turn *turn = calloc(1, sizeof *turn);
    if (turn == NULL)
        return KVL_ERR_NOMEM;
    turn->options = *options;
    if (turn->options.began_ns == 0)
        turn->options.began_ns = now_ns();
    turn->report = report;
    turn->sequence = options->sequence;
    kvl_err err = init_logits(turn);
    if (err == KVL_OK)
        err = begin_prefill(turn);
    if (err != KVL_OK) {
        free_turn(turn);
        return err;
    }
    *out = turn;
    return KVL_OK;
}

/* True: *batch is for a forward call. */
static bool begin_step(struct kvl_turn *turn, struct kvl_batch *batch) {
    if (turn->has_ended)
        return false;
    kvl_err err = kvl_advance_begin(&turn->advance, batch);
    if (err != KVL_OK)
        end_with(turn, err);
    return err == KVL_OK && batch->count > 0;
}

static void end_step(struct kvl_turn *turn, kvl_err result) {
    kvl_err err = kvl_advance_end(&turn->advance, result);
    if (err != KVL_OK)
        end_with(turn, err);
    else if (turn->advance.is_done)
        go_on(turn);
}

void kvl_turns_step(struct kvl_turn *const *turns, uint32_t count) {
    struct kvl_batch batches[KVL_TURNS_MAX];
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; ++i) {
        turns[i]->is_forwarding = begin_step(turns[i], &batches[used]);
        used += turns[i]->is_forwarding ? 1 : 0;
    }
    if (used == 0)
        return;
    struct kvl_backend *backend = turns[0]->sequence->options.backend;
    kvl_err err = backend->ops->forward(backend, batches, used);
    for (uint32_t i = 0; i < count; ++i)
        if (turns[i]->is_forwarding)
            end_step(turns[i], err);
}

bool kvl_turn_is_prefilling(const struct kvl_turn *turn) {
    return turn->is_prefilling && !turn->has_ended;
}

bool kvl_turn_has_ended(const struct kvl_turn *turn) {
    return turn->has_ended;
}

kvl_err kvl_turn_end(struct kvl_turn *turn) {
    kvl_err err = turn->err;
    if (turn->is_prefilling)
        report_prefill(turn);
    if (err == KVL_ERR_CANCELED || !turn->has_ended) {
        turn->report->stop_reason = KVL_STOP_INTERRUPTED;
        err = KVL_OK;
    }
    if (turn->hash != NULL && err == KVL_OK &&
        EVP_DigestFinal_ex(turn->hash, turn->report->logits_sha256, NULL) != 1)
        err = KVL_ERR_NOMEM;
    if (err == KVL_OK)
        finish_storing(turn);
    free_turn(turn);
    return err;
}

kvl_err kvl_generate(const struct kvl_generate_options *options, struct kvl_turn_report *report) {
    struct kvl_turn *turn = NULL;
    kvl_err err = kvl_turn_begin(options, report, &turn);
    if (err != KVL_OK)
        return err;
    while (!kvl_turn_has_ended(turn))
        kvl_turns_step(&turn, 1);
    return kvl_turn_end(turn);
}

void kvl_turn_report_deinit(struct kvl_turn_report *report) {
    kvl_token_list_free(&report->output);
}
