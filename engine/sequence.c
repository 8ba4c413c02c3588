/* sequence.c - see sequence.h. */
#include "sequence.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_TOKENS_DEFAULT 512u /* of a backend without a wish */
#define RESTORE_FAILURES_MAX 2u   /* then everything left is computed */
#define RESTORE_RACES_MAX 3u

kvl_err kvl_sequence_init(
    struct kvl_sequence *sequence, const struct kvl_sequence_options *options) {
    *sequence = (struct kvl_sequence){.options = *options};
    if (sequence->options.chunk_tokens == 0)
        sequence->options.chunk_tokens = options->backend->chunk_tokens;
    if (sequence->options.chunk_tokens == 0)
        sequence->options.chunk_tokens = CHUNK_TOKENS_DEFAULT;
    sequence->tokens = calloc(options->context_max, sizeof *sequence->tokens);
    if (sequence->tokens == NULL)
        return KVL_ERR_NOMEM;
    return KVL_OK;
}

void kvl_sequence_deinit(struct kvl_sequence *sequence) {
    kvl_caches_destroy(sequence->cache);
    free(sequence->tokens);
    *sequence = (struct kvl_sequence){0};
}

static void restore_progress(void *arg, uint32_t blocks_ready, uint32_t blocks) {
    struct kvl_sequence *sequence = arg;
    if (sequence->options.progress != NULL)
        sequence->options.progress(sequence->options.progress_arg, true, blocks_ready, blocks);
}

static kvl_err need_cache(struct kvl_sequence *sequence) {
    if (sequence->cache != NULL)
        return KVL_OK;
    struct kvl_cache_options options = {
        .backend = sequence->options.backend,
        .connection = sequence->options.connection,
        .hparams = sequence->options.hparams,
        .kv_dtype = sequence->options.kv_dtype,
        .block_tokens = sequence->options.block_tokens,
        .context_max = sequence->options.context_max,
        .restore_progress = restore_progress,
        .restore_progress_arg = sequence,
    };
    return kvl_caches_create(&options, &sequence->cache);
}

kvl_err kvl_sequence_append(struct kvl_sequence *sequence, const uint32_t *tokens, uint32_t count) {
    if (count > sequence->options.context_max - sequence->count)
        return KVL_ERR_LIMIT;
    kvl_err err = need_cache(sequence);
    if (err != KVL_OK)
        return err;
    if (count > 0)
        memcpy(sequence->tokens + sequence->count, tokens, count * sizeof *tokens);
    sequence->count += count;
    return kvl_caches_name_blocks(sequence->cache, sequence->tokens, sequence->count);
}

void kvl_sequence_offer_tail(
    struct kvl_sequence *sequence, const struct kvl_key *key, uint32_t tokens) {
    uint32_t block_tokens = sequence->options.block_tokens;
    if (tokens == 0 || tokens >= block_tokens || tokens > sequence->count)
        return;
    struct kvl_cache_tail tail = {
        .block = (sequence->count - tokens) / block_tokens, .tokens = tokens};
    if (kvl_caches_name_tail(sequence->cache, sequence->tokens, &tail) == KVL_OK &&
        kvl_key_equal(&tail.key, key))
        sequence->tail = tail;
}

uint32_t kvl_sequence_whole_blocks(const struct kvl_sequence *sequence) {
    return sequence->computed / sequence->options.block_tokens;
}

static void report_progress(const struct kvl_advance *advance, uint64_t done) {
    const struct kvl_sequence_options *options = &advance->sequence->options;
    if (options->progress != NULL && !advance->shows_nothing)
        options->progress(options->progress_arg, false, done, advance->sequence->count);
}

static kvl_err before_layer(void *arg, uint32_t layer) {
    const struct kvl_advance *advance = arg;
    struct kvl_sequence *sequence = advance->sequence;
    uint64_t chunk = advance->end - advance->begin;
    report_progress(advance, advance->begin + chunk * layer / sequence->options.hparams->layers);
    return kvl_caches_wait_layer(sequence->cache, layer);
}

/* Only what was generated is decoded: a prompt's last token is prefilled as the others are, also
 * when a restore has left nothing else to compute. */
static struct kvl_batch batch_of(struct kvl_advance *advance) {
    struct kvl_sequence *sequence = advance->sequence;
    const struct kvl_wanted *wanted = &advance->wanted;
    uint32_t count = advance->end - advance->begin;
    bool last = advance->end == sequence->count;
    return (struct kvl_batch){
        .tokens = sequence->tokens + advance->begin,
        .count = count,
        .position = advance->begin,
        .phase = wanted->is_decode && count == 1 ? KVL_PHASE_DECODE : KVL_PHASE_PREFILL,
        .block_tokens = sequence->options.block_tokens,
        .kv_dtype = sequence->options.kv_dtype,
        .blocks = kvl_caches_table(sequence->cache, 0),
        .window_blocks = kvl_caches_table(sequence->cache, 1),
        .logits_rows = last ? wanted->rows : 0,
        .logits = wanted->logits,
        .greedy_token = last ? wanted->greedy_token : NULL,
        .before_layer = before_layer,
        .before_layer_arg = advance,
        .layers_arrive = kvl_caches_is_restoring(sequence->cache),
    };
}

/* Where the chunk that begins at `begin` ends: at a block boundary where there is one. The last
 * chunk holds all rows whose logits are wanted. */
static uint32_t chunk_end(const struct kvl_advance *advance) {
    const struct kvl_sequence *sequence = advance->sequence;
    uint32_t block_tokens = sequence->options.block_tokens;
    uint64_t end = (uint64_t)advance->begin + sequence->options.chunk_tokens;
    if (sequence->options.chunk_tokens >= block_tokens)
        end = end / block_tokens * block_tokens;
    uint32_t rows_begin = sequence->count - advance->wanted.rows;
    if (advance->begin >= rows_begin)
        return sequence->count;
    if (end >= sequence->count && advance->wanted.rows == 1)
        return sequence->count;
    return end > rows_begin ? rows_begin : (uint32_t)end;
}

/* Blocks that a restore may bring: all but the one with the last token. */
static uint32_t restorable_blocks(const struct kvl_advance *advance) {
    const struct kvl_sequence *sequence = advance->sequence;
    if (advance->failures >= RESTORE_FAILURES_MAX || sequence->options.connection == NULL)
        return 0;
    return (sequence->count - advance->wanted.rows) / sequence->options.block_tokens;
}

/* Sets begin: where computing starts, were everything asked for to come. */
static kvl_err begin_restore(struct kvl_advance *advance) {
    struct kvl_sequence *sequence = advance->sequence;
    uint32_t block_tokens = sequence->options.block_tokens;
    uint32_t first = sequence->computed / block_tokens;
    uint32_t limit = restorable_blocks(advance);
    advance->begin = sequence->computed;
    if (sequence->options.connection == NULL || advance->failures >= RESTORE_FAILURES_MAX ||
        sequence->computed % block_tokens != 0 || first > limit)
        return KVL_OK;
    const struct kvl_cache_tail *tail = &sequence->tail;
    bool tail_fits = (uint64_t)tail->block * block_tokens + tail->tokens <=
                     sequence->count - advance->wanted.rows;
    return kvl_caches_restore_begin(
        sequence->cache, first, limit, tail_fits ? tail : NULL, &advance->begin);
}

/* Gives the chunk's blocks memory; sets end. RETRY by end == begin: the next block is known after
 * all, ask for it again. */
static kvl_err prepare(struct kvl_advance *advance) {
    struct kvl_sequence *sequence = advance->sequence;
    uint32_t block_tokens = sequence->options.block_tokens;
    uint32_t end_block = 0;
    advance->end = chunk_end(advance);
    struct kvl_cache_span span = {
        .first = advance->begin / block_tokens,
        .end = (uint32_t)(((uint64_t)advance->end + block_tokens - 1) / block_tokens),
        .left_end = restorable_blocks(advance),
        .patience_ms = advance->shows_nothing ? KVL_DECODE_PATIENCE_MS : KVL_PATIENCE_MS,
    };
    span.left_first = span.first;
    if (advance->begin % block_tokens != 0 || advance->races >= RESTORE_RACES_MAX)
        ++span.left_first;
    kvl_err err = kvl_caches_prepare(sequence->cache, &span, &end_block);
    if (err == KVL_OK && end_block < span.end)
        advance->end = end_block * block_tokens;
    return err;
}

/* Between two forward calls. What failed is tried again once a block in decoding, once a chunk
 * (may_retry) in prefill. */
static void settle(struct kvl_sequence *sequence, bool may_retry) {
    may_retry = may_retry || sequence->computed % sequence->options.block_tokens == 0;
    kvl_caches_settle(
        sequence->cache, sequence->tokens, kvl_sequence_whole_blocks(sequence), may_retry);
}

/* The block after the one being filled is asked for when that one begins. */
static void prepare_ahead(struct kvl_sequence *sequence, bool is_prefill) {
    uint32_t block_tokens = sequence->options.block_tokens;
    uint32_t in_block = sequence->computed % block_tokens;
    if (in_block <= 1 || is_prefill)
        kvl_caches_prepare_ahead(
            sequence->cache, sequence->computed / block_tokens + (in_block != 0));
}

/* Ends the restore, if one is under way. False: not all of it came; what did is computed then. */
static bool end_restore(struct kvl_advance *advance) {
    struct kvl_sequence *sequence = advance->sequence;
    uint32_t blocks = 0;
    if (!kvl_caches_is_restoring(sequence->cache) ||
        kvl_caches_restore_end(sequence->cache, &blocks))
        return true;
    ++advance->failures;
    sequence->computed = blocks * sequence->options.block_tokens;
    return false;
}

/* Without a forward call: the next block is known after all, or the restore failed already. */
static kvl_err end_without_batch(struct kvl_advance *advance, kvl_err err) {
    struct kvl_sequence *sequence = advance->sequence;
    bool restored = kvl_caches_is_restoring(sequence->cache);
    if (!end_restore(advance))
        err = err == KVL_ERR_CANCELED ? KVL_OK : err; /* compute from there on */
    else if (err == KVL_OK) {
        sequence->computed = advance->begin;
        advance->races = restored ? 0 : advance->races + 1;
    }
    if (err == KVL_OK)
        settle(sequence, !advance->shows_nothing);
    return err;
}

kvl_err kvl_advance_init(
    struct kvl_advance *advance, struct kvl_sequence *sequence, const struct kvl_wanted *wanted) {
    *advance = (struct kvl_advance){.sequence = sequence, .wanted = *wanted};
    advance->shows_nothing = sequence->count - sequence->computed == 1;
    if (sequence->options.no_cache)
        sequence->computed = 0;
    if (wanted->rows == 0 || wanted->rows > sequence->options.chunk_tokens ||
        (uint64_t)sequence->computed + wanted->rows > sequence->count)
        return KVL_ERR_INVALID;
    if (!advance->shows_nothing)
        settle(sequence, true);
    return KVL_OK;
}

kvl_err kvl_advance_begin(struct kvl_advance *advance, struct kvl_batch *batch) {
    const volatile sig_atomic_t *stop = advance->sequence->options.stop;
    *batch = (struct kvl_batch){0};
    if (stop != NULL && *stop != 0)
        return KVL_ERR_CANCELED;
    kvl_err err = begin_restore(advance);
    if (err == KVL_OK)
        err = prepare(advance);
    bool computes = err == KVL_OK && advance->end > advance->begin;
    if (computes)
        err = kvl_caches_take_tail(advance->sequence->cache);
    if (!computes || err != KVL_OK)
        return end_without_batch(advance, err);
    *batch = batch_of(advance);
    return KVL_OK;
}

kvl_err kvl_advance_end(struct kvl_advance *advance, kvl_err result) {
    struct kvl_sequence *sequence = advance->sequence;
    if (result == KVL_ERR_CANCELED) {
        advance->end = advance->begin;
        result = KVL_OK;
    }
    if (end_restore(advance) && result == KVL_OK) {
        sequence->computed = advance->end;
        sequence->computed_total += advance->end - advance->begin;
        advance->races = 0;
    }
    if (result != KVL_OK)
        return result;
    settle(sequence, !advance->shows_nothing);
    advance->is_done = sequence->computed == sequence->count;
    if (advance->is_done) {
        report_progress(advance, sequence->count);
        prepare_ahead(sequence, !advance->shows_nothing);
    }
    return KVL_OK;
}

kvl_err kvl_sequence_advance(struct kvl_sequence *sequence, const struct kvl_wanted *wanted) {
    struct kvl_backend *backend = sequence->options.backend;
    struct kvl_advance advance;
    kvl_err err = kvl_advance_init(&advance, sequence, wanted);
    while (err == KVL_OK && !advance.is_done) {
        struct kvl_batch batch;
        err = kvl_advance_begin(&advance, &batch);
        if (err == KVL_OK && batch.count > 0)
            err = kvl_advance_end(&advance, backend->ops->forward(backend, &batch, 1));
    }
    return err;
}
