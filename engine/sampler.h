/* sampler.h - chooses the next token from the logits.
 *
 * Temperature 0 is greedy: the largest logit, the lowest id among equals. Otherwise token i is
 * drawn with probability exp((logit[i] - max) / temperature) / sum, by one number of splitmix64
 * (Steele, Lea, Flood 2014) per token and a sum in order of ids. The exponential is our own plain
 * double arithmetic, so that equal logits and an equal seed give equal tokens on every machine.
 * NaN logits are never chosen while any other is there.
 *
 * Threads: one caller at a time. Errors: none. Plain data: copy it to fork, save `state` to go
 * on later. */
#ifndef KVL_SAMPLER_H
#define KVL_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

struct kvl_sampler_options {
    float temperature; /* 0 (or below): greedy */
    uint64_t seed;
};

struct kvl_sampler {
    struct kvl_sampler_options options;
    uint64_t state; /* of splitmix64; starts as the seed */
};

void kvl_sampler_init(struct kvl_sampler *sampler, struct kvl_sampler_options options);
/* True: the choice is the largest logit's alone, whoever looks for it. */
bool kvl_sampler_is_greedy(const struct kvl_sampler *sampler);
/* logits[vocab], vocab at least 1. Returns a token id. */
uint32_t kvl_sampler_pick(struct kvl_sampler *sampler, const float *logits, uint32_t vocab);

#endif
