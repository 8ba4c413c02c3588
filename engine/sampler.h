/* sampler.h - chooses the next token from the logits x.
 *
 * In this order, each step on what the one before has left:
 *   bias         x += value of the token
 *   penalties    of a token that is n > 0 times among the last penalty_last tokens of the context:
 *                x = x > 0 ? x / repeat : x * repeat (Keskar et al. 2019), then
 *                x -= n * frequency + presence
 *   temperature 0  ends here, greedy: the largest x, the lowest id among equals. Otherwise
 *   top-k        the k largest; the lower id first among equals
 *   typical      p = softmax(x), H its entropy: the tokens of the smallest |-log p - H|, as few as
 *                have together at least typical_p (Meister et al. 2022)
 *   top-p        p = softmax(x): the likeliest tokens, as few as have together at least top_p
 *                (Holtzman et al. 2019)
 *   min-p        p at least min_p times the largest (Nguyen et al. 2024); whole p, no temperature
 *   temperature  token i with probability exp((x[i] - max) / temperature) / sum, by one number of
 *                splitmix64 (Steele, Lea, Flood 2014)
 *
 * The exponential is our own plain double arithmetic, so that equal logits and an equal seed give
 * equal tokens on every machine. NaN logits are never chosen while any other is there.
 *
 * Owns:    the sampler owns its scratch; bias is borrowed for its lifetime.
 * Threads: one caller at a time. Errors: NOMEM, of prepare; picking has none and allocates nothing.
 * Save `state` to go on later. */
#ifndef KVL_SAMPLER_H
#define KVL_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

#define KVL_PENALTY_LAST_DEFAULT 64u

struct kvl_logit_bias {
    uint32_t id;
    float value; /* may be infinite: never, or always */
};

/* All zero is greedy without anything else. */
struct kvl_sampler_options {
    float temperature; /* 0 (or below): greedy */
    uint64_t seed;
    uint32_t top_k;       /* 0: all */
    float top_p;          /* 0 or 1: all */
    float min_p;          /* 0: all */
    float typical_p;      /* 0 or 1: all */
    float repeat_penalty; /* 0 or 1: none */
    float presence_penalty, frequency_penalty;
    uint32_t penalty_last; /* tokens */
    const struct kvl_logit_bias *bias;
    uint32_t bias_count;
};

struct kvl_sampler {
    struct kvl_sampler_options options;
    uint64_t state; /* of splitmix64; starts as the seed */
    uint32_t vocab; /* what the scratch is for; 0: none yet */
    float *logits;
    uint32_t *counts; /* all zero between picks */
    struct kvl_sampler_candidate *candidates;
};

/* What a token is chosen from. */
struct kvl_sampler_input {
    const float *logits;     /* [vocab] */
    uint32_t vocab;          /* at least 1 */
    const uint32_t *context; /* the tokens before, for the penalties; ids below vocab count */
    uint32_t context_tokens;
};

void kvl_sampler_init(struct kvl_sampler *sampler, struct kvl_sampler_options options);
/* Before the first pick with this vocabulary; again costs nothing. */
KVL_MUST_CHECK kvl_err kvl_sampler_prepare(struct kvl_sampler *sampler, uint32_t vocab);
/* True: the choice is the largest logit's alone, whoever looks for it (kvl_greedy_pick). */
bool kvl_sampler_is_greedy(const struct kvl_sampler *sampler);
/* The largest logit, the lowest id among equals; vocab at least 1. */
uint32_t kvl_greedy_pick(const float *logits, uint32_t vocab);
uint32_t kvl_sampler_pick(struct kvl_sampler *sampler, const struct kvl_sampler_input *input);
void kvl_sampler_deinit(struct kvl_sampler *sampler); /* zeroed, or only initialised, is fine */

#endif
