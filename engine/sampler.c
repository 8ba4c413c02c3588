/* sampler.c - greedy and temperature sampling; see sampler.h for the formulas. */
#include "sampler.h"

#include <math.h>

/* exp(-746) is below the smallest double. */
#define EXPONENT_MIN (-745.0)

static uint64_t splitmix64(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* exp(x) for x <= 0: x = k ln 2 + r, |r| <= ln 2 / 2, and the Taylor series of exp(r). libm's exp
 * picks its code by what the processor offers, so its last bit is not the same everywhere. */
static double exp_of_negative(double x) {
    static const double ln2_high = 0x1.62e42fefa0000p-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
    if (!(x >= EXPONENT_MIN)) {
        return 0;
    }
    double k = floor(x * 0x1.71547652b82fep+0 + 0.5);
    double r = (x - k * ln2_high) - k * ln2_low;
    double sum = 1;
    for (int i = 14; i > 0; i--) {
        sum = 1 + sum * (r / i);
    }
    return ldexp(sum, (int)k);
}

static uint32_t greedy(const float *logits, uint32_t vocab) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) {
            best = i;
        }
    }
    return best;
}

/* A weight for each token; NaN weighs nothing. */
static double weight(float logit, double max, double temperature) {
    return isnan(logit) ? 0 : exp_of_negative(((double)logit - max) / temperature);
}

void kvl_sampler_init(struct kvl_sampler *sampler, struct kvl_sampler_options options) {
    *sampler = (struct kvl_sampler){.options = options, .state = options.seed};
}

bool kvl_sampler_is_greedy(const struct kvl_sampler *sampler) {
    return !(sampler->options.temperature > 0);
}

uint32_t kvl_sampler_pick(struct kvl_sampler *sampler, const float *logits, uint32_t vocab) {
    uint32_t best = greedy(logits, vocab);
    if (kvl_sampler_is_greedy(sampler)) {
        return best;
    }
    double temperature = sampler->options.temperature;
    double uniform = (double)(splitmix64(&sampler->state) >> 11) * 0x1p-53; /* [0, 1) */
    double max = logits[best], total = 0;
    if (!isfinite(max)) {
        return best;
    }
    for (uint32_t i = 0; i < vocab; i++) {
        total += weight(logits[i], max, temperature);
    }
    double target = uniform * total, sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        sum += weight(logits[i], max, temperature);
        if (sum > target) {
            return i;
        }
    }
    return best;
}
