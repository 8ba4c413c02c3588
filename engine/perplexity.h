/* perplexity.h - how well a model predicts a text: exp of the mean negative log-likelihood.
 *
 * Threads: the engine's one thread. */
#ifndef KVL_PERPLEXITY_H
#define KVL_PERPLEXITY_H

#include "sequence.h"

struct kvl_perplexity {
    uint64_t tokens;
    double nll_mean; /* natural log, over positions 1..tokens-1 */
    double ppl;
};

/* Appends the tokens to an empty sequence and computes them. Errors: INVALID (fewer than two
 * tokens), LIMIT, NOMEM, those of kvl_sequence_advance. */
KVL_MUST_CHECK kvl_err kvl_perplexity_of(struct kvl_sequence *sequence, const uint32_t *tokens,
    uint32_t count, struct kvl_perplexity *out);

#endif
