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

/* What one call of kvl_generate works with. */
struct turn {
    const struct kvl_generate_options *options;
    struct kvl_turn_report *report;
    struct kvl_sequence *sequence;
    /* NULL: only the likeliest token is wanted, which spares a device the way of all logits. */
    float *logits;
    uint32_t greedy_token;
    uint32_t vocab;
    EVP_MD_CTX *hash; /* NULL: not wanted */
};

static kvl_err advance(struct turn *turn, bool is_decode) {
    struct kvl_wanted wanted = {.rows = 1, .logits = turn->logits, .is_decode = is_decode};
    if (turn->logits == NULL)
        wanted.greedy_token = &turn->greedy_token;
    return kvl_sequence_advance(turn->sequence, &wanted);
}

static kvl_err turn_init(struct turn *turn) {
    turn->vocab = turn->sequence->options.hparams->vocab;
    if (kvl_sampler_is_greedy(turn->options->sampler) && !turn->options->hash_logits)
        return KVL_OK;
    turn->logits = malloc(turn->vocab * sizeof *turn->logits);
    if (turn->logits == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err = kvl_sampler_prepare(turn->options->sampler, turn->vocab);
    if (err != KVL_OK)
        return err;
    if (!turn->options->hash_logits)
        return KVL_OK;
    turn->hash = EVP_MD_CTX_new();
    if (turn->hash == NULL || EVP_DigestInit_ex(turn->hash, EVP_sha256(), NULL) != 1)
        return KVL_ERR_NOMEM;
    return KVL_OK;
}

static kvl_err hash_logits(struct turn *turn) {
    if (turn->hash != NULL &&
        EVP_DigestUpdate(turn->hash, turn->logits, turn->vocab * sizeof *turn->logits) != 1)
        return KVL_ERR_NOMEM;
    return KVL_OK;
}

static kvl_err prefill(struct turn *turn) {
    struct kvl_sequence *sequence = turn->sequence;
    struct kvl_turn_report *report = turn->report;
    const struct kvl_cache_stats *stats = kvl_caches_stats(sequence->cache);
    struct kvl_cache_stats before = *stats;
    uint64_t computed_before = sequence->computed_total;
    uint64_t began_ns = now_ns();
    report->prompt_tokens = sequence->count;
    if (turn->options->session != NULL)
        kvl_saved_session_follow(turn->options->session, sequence, true);
    kvl_err err = advance(turn, false);
    report->prefill_ns = now_ns() - began_ns;
    report->computed_tokens = sequence->computed_total - computed_before;
    report->restore_ns = stats->restore_ns - before.restore_ns;
    report->restored_bytes = stats->restored_bytes - before.restored_bytes;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; ++i)
        report->restored_tokens[i] = stats->restored_tokens[i] - before.restored_tokens[i];
    return err;
}

/* Chooses the next token and appends it. True when the turn goes on. */
static bool choose(struct turn *turn, kvl_err *err) {
    const struct kvl_generate_options *options = turn->options;
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

static kvl_err decode(struct turn *turn) {
    struct kvl_turn_report *report = turn->report;
    kvl_err err = KVL_OK;
    while (choose(turn, &err)) {
        uint64_t began_ns = now_ns();
        if (turn->options->session != NULL)
            kvl_saved_session_follow(turn->options->session, turn->sequence, false);
        err = advance(turn, true);
        if (err != KVL_OK)
            break;
        uint64_t step_ns = now_ns() - began_ns;
        report->decode_ns += step_ns;
        if (step_ns > report->decode_step_ns_max)
            report->decode_step_ns_max = step_ns;
        ++report->decode_tokens;
    }
    return err;
}

/* Everything that can be stored is stored, and every answer has come. */
static void end_turn(struct turn *turn) {
    struct kvl_sequence *sequence = turn->sequence;
    struct kvl_turn_report *report = turn->report;
    kvl_caches_finish(sequence->cache, sequence->tokens, kvl_sequence_whole_blocks(sequence));
    if (turn->options->session != NULL)
        kvl_saved_session_end_turn(turn->options->session, sequence);
    if (!sequence->options.no_cache)
        report->private_tokens = kvl_caches_private_tokens(sequence->cache, sequence->computed);
    const struct kvl_connection *connection = sequence->options.connection;
    report->daemon_lost = connection != NULL && connection->lost_ever;
}

kvl_err kvl_generate(const struct kvl_generate_options *options, struct kvl_turn_report *report) {
    *report = (struct kvl_turn_report){0};
    struct kvl_generate_options timed = *options;
    if (timed.began_ns == 0)
        timed.began_ns = now_ns();
    struct turn turn = {.options = &timed, .report = report, .sequence = options->sequence};
    kvl_err err = turn_init(&turn);
    if (err == KVL_OK)
        err = prefill(&turn);
    if (err == KVL_OK && options->max_tokens > 0)
        err = decode(&turn);
    if (err == KVL_ERR_CANCELED) {
        report->stop_reason = KVL_STOP_INTERRUPTED;
        err = KVL_OK;
    }
    if (turn.hash != NULL && err == KVL_OK &&
        EVP_DigestFinal_ex(turn.hash, report->logits_sha256, NULL) != 1)
        err = KVL_ERR_NOMEM;
    if (err == KVL_OK)
        end_turn(&turn);
    EVP_MD_CTX_free(turn.hash);
    free(turn.logits);
    return err;
}

void kvl_turn_report_deinit(struct kvl_turn_report *report) {
    kvl_token_list_free(&report->output);
}
