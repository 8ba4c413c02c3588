/* generate.h - one turn: compute the prompt, choose tokens until the turn ends, and the numbers.
 *
 * Turns of several sequences can go on together: every step is one forward call with the next chunk
 * of each one's prompt, or the token that it chose last. A turn gives the same bits in whatever
 * company (backend.h).
 *
 * Threads: the engine's one thread; `stop` may be set by a signal handler. */
#ifndef KVL_GENERATE_H
#define KVL_GENERATE_H

#include <stdbool.h>
#include <stdint.h>

#include "sampler.h"
#include "saved_session.h"
#include "sequence.h"
#include "tokenizer.h"

enum kvl_stop_reason {
    KVL_STOP_LENGTH,      /* max_tokens */
    KVL_STOP_EOS,         /* the model ended its turn */
    KVL_STOP_CONTEXT,     /* the context is full */
    KVL_STOP_INTERRUPTED, /* `stop` was set */
    KVL_STOP_STRING,      /* on_token asked for it */
};
const char *kvl_stop_reason_name(enum kvl_stop_reason reason);

struct kvl_generate_options {
    struct kvl_sequence *sequence;         /* the prompt is appended to it already */
    struct kvl_saved_session *session;     /* NULL: none */
    const struct kvl_tokenizer *tokenizer; /* NULL: no token ends the turn */
    struct kvl_sampler *sampler;           /* is prepared here */
    uint32_t max_tokens;
    bool hash_logits;
    uint64_t began_ns;                           /* CLOCK_MONOTONIC, before tokenization; 0: now */
    bool (*on_token)(void *arg, uint32_t token); /* as it is chosen; false: the turn ends there
                                                  * (KVL_STOP_STRING). May be NULL */
    void *on_token_arg;
};

/* What one turn did. Token counts are of this turn, times in nanoseconds. */
struct kvl_turn_report {
    uint64_t prompt_tokens;   /* in context before generation */
    uint64_t computed_tokens; /* of the prompt, through the forward pass */
    uint64_t restored_tokens[KVL_TIER_COUNT];
    uint64_t restored_bytes; /* moved up from host and disk */
    uint64_t ttft_ns;        /* from began_ns to the first token chosen; 0: none was */
    uint64_t prefill_ns;     /* all of computing the prompt, restores included */
    uint64_t restore_ns;     /* the part of it until the last restored layer was there */
    uint64_t private_tokens; /* in context at the end, not in the daemon's memory */
    uint64_t decode_tokens;  /* forward calls of one token each */
    uint64_t decode_ns;
    uint64_t decode_step_ns_max; /* the slowest of them: stalls show here */
    struct kvl_token_list output;
    enum kvl_stop_reason stop_reason;
    uint8_t logits_sha256[32]; /* with hash_logits */
    bool daemon_lost;
};

/* Runs the turn to its end; a stop is no error. The chosen tokens are appended to the sequence, an
 * end token included; the session, if any, has all of them. report is the caller's to deinit, also
 * after an error. Errors: NOMEM, those of a backend. */
KVL_MUST_CHECK kvl_err kvl_generate(
    const struct kvl_generate_options *options, struct kvl_turn_report *report);
void kvl_turn_report_deinit(struct kvl_turn_report *report);

/* ---- the same a step at a time -------------------------------------------------------------- */

#define KVL_TURNS_MAX 64u /* in one step */

struct kvl_turn; /* under way; owns its logits, borrows what the options borrow, and the report */

/* Nothing is computed yet. options are copied. Errors: NOMEM, INVALID (nothing to compute). */
KVL_MUST_CHECK kvl_err kvl_turn_begin(const struct kvl_generate_options *options,
    struct kvl_turn_report *report, struct kvl_turn **out);
/* One forward call at most, for all of them that have not ended: at most KVL_TURNS_MAX, all of one
 * backend, which takes as many batches. What goes wrong with one of them ends that one, an
 * error of the forward call all that took part in it (kvl_turn_end says why). */
void kvl_turns_step(struct kvl_turn *const *turns, uint32_t count);
/* Its prompt is not computed yet. */
bool kvl_turn_is_prefilling(const struct kvl_turn *turn);
/* Nothing is left to step. */
bool kvl_turn_has_ended(const struct kvl_turn *turn);
/* Stores what can be stored, waits for the answers, completes the report and frees the turn, also
 * one that has not ended. Errors: as kvl_generate. */
KVL_MUST_CHECK kvl_err kvl_turn_end(struct kvl_turn *turn);

#endif
