/* sequence.h - the tokens in context, and the computing of their KV.
 *
 * Tokens are appended, kvl_sequence_advance computes what is not computed yet: it restores the
 * longest known prefix of whole blocks (at least one token is always computed), then computes the
 * rest in chunks, each straight into the blocks, and seals them as they fill. A prompt of thousands
 * of tokens and a decode step of one are the same call. Before each chunk other engines' blocks are
 * looked for again.
 *
 * The bits of the logits depend on the tokens alone, and on which of them were decoded: not on
 * chunk_tokens, on what was restored, or on where the blocks live (backend.h: row-invariant).
 *
 * Owns:    the cache; backend and connection are borrowed. Threads: the engine's one thread. */
#ifndef KVL_SEQUENCE_H
#define KVL_SEQUENCE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "caches.h"

struct kvl_sequence_options {
    struct kvl_backend *backend;
    const struct kvl_hparams *hparams; /* outlives the sequence */
    struct kvl_connection *connection; /* NULL: own cache only */
    enum kvl_kv_dtype kv_dtype;
    uint32_t block_tokens;
    uint32_t context_max;
    uint32_t chunk_tokens; /* 0: as many as the backend likes */
    bool no_cache;         /* recompute everything at each advance */
    /* Looked at between chunks: not 0 ends an advance with CANCELED. May be NULL. */
    const volatile sig_atomic_t *stop;
    /* Tokens done of the total, a few times a chunk; and while a restore is waited for, blocks.
     * May be NULL. */
    void (*progress)(void *arg, bool restoring, uint64_t done, uint64_t total);
    void *progress_arg;
};

struct kvl_sequence {
    struct kvl_sequence_options options;
    struct kvl_caches *cache;
    uint32_t *tokens; /* context_max of them */
    uint32_t count;
    uint32_t computed;          /* leading tokens whose KV is in the cache */
    uint64_t computed_total;    /* tokens that went through the forward pass */
    struct kvl_cache_tail tail; /* a session's; tokens 0: none */
};

KVL_MUST_CHECK kvl_err kvl_sequence_init(
    struct kvl_sequence *sequence, const struct kvl_sequence_options *options);
void kvl_sequence_deinit(struct kvl_sequence *sequence); /* zeroed is fine */

/* Errors: LIMIT (more than the context holds; nothing appended), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_sequence_append(
    struct kvl_sequence *sequence, const uint32_t *tokens, uint32_t count);
/* Says that a sealed block of `tokens` tokens stands behind the whole blocks of what was appended
 * so far; ignored when its key is not what these tokens make. */
void kvl_sequence_offer_tail(
    struct kvl_sequence *sequence, const struct kvl_key *key, uint32_t tokens);
/* What an advance is to bring: logits [rows][vocab] of the last `rows` tokens, which must not be
 * computed yet, and fit into one chunk. With one row, greedy_token may be set: the likeliest next
 * token; logits may then be NULL. */
struct kvl_wanted {
    uint32_t rows;
    float *logits;
    uint32_t *greedy_token;
    bool is_decode; /* the one token that is not computed was generated just now */
};
/* Computes up to the last token. Errors: CANCELED (stop was set; call again to go on), NOMEM, IO (a
 * lost device), INVALID (nothing to compute). */
KVL_MUST_CHECK kvl_err kvl_sequence_advance(
    struct kvl_sequence *sequence, const struct kvl_wanted *wanted);

/* ---- the same a forward call at a time, so that several sequences share one ------------------ */

struct kvl_advance { /* under way; the caller's, and not moved between begin and end */
    struct kvl_sequence *sequence;
    struct kvl_wanted wanted;
    uint32_t begin, end; /* tokens of the forward call */
    bool shows_nothing;  /* one token: no progress, retries once a block */
    bool is_done;
    uint32_t failures; /* of restores */
    uint32_t races;    /* "known" said alloc, "nothing" said restore */
};

/* Errors: INVALID. */
KVL_MUST_CHECK kvl_err kvl_advance_init(
    struct kvl_advance *advance, struct kvl_sequence *sequence, const struct kvl_wanted *wanted);
/* Restores what is known in front of the next tokens and gives them memory. batch->count 0: there
 * is nothing to compute yet, begin again. Otherwise the batch is for a forward call, alone or with
 * others', and kvl_advance_end must follow. Errors: CANCELED (stop was set), NOMEM, IO; then no end
 * follows, and begin may be tried again after CANCELED. */
KVL_MUST_CHECK kvl_err kvl_advance_begin(struct kvl_advance *advance, struct kvl_batch *batch);
/* Takes the forward call's result; seals what is whole. After CANCELED, by this sequence's restore
 * or another's, nothing was computed: begin again. Sets is_done. Errors: all other results. */
KVL_MUST_CHECK kvl_err kvl_advance_end(struct kvl_advance *advance, kvl_err result);

/* Leading blocks whose KV is complete. */
uint32_t kvl_sequence_whole_blocks(const struct kvl_sequence *sequence);

#endif
