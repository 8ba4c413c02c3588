/* sampler.c - see sampler.h for the formulas. */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

uint32_t kvl_greedy_pick(const float *logits, uint32_t vocab) {
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

struct kvl_sampler_candidate {
    double logit;
    double weight; /* exp(logit - max): the probability, but for a factor */
    double key;    /* what the heap is by, the lowest first */
    uint32_t id;
};

void kvl_sampler_init(struct kvl_sampler *sampler, struct kvl_sampler_options options) {
    *sampler = (struct kvl_sampler){.options = options, .state = options.seed};
}

void kvl_sampler_deinit(struct kvl_sampler *sampler) {
    free(sampler->logits);
    free(sampler->counts);
    free(sampler->candidates);
    sampler->logits = NULL;
    sampler->counts = NULL;
    sampler->candidates = NULL;
    sampler->vocab = 0;
}

static bool cuts_tail(float share) {
    return share > 0 && share < 1;
}

static bool has_penalties(const struct kvl_sampler_options *options) {
    bool repeats = options->repeat_penalty > 0 && options->repeat_penalty != 1;
    return options->penalty_last > 0 &&
           (repeats || options->presence_penalty != 0 || options->frequency_penalty != 0);
}

bool kvl_sampler_is_greedy(const struct kvl_sampler *sampler) {
    const struct kvl_sampler_options *options = &sampler->options;
    return !(options->temperature > 0) && options->bias_count == 0 && !has_penalties(options);
}

static bool has_filters(const struct kvl_sampler_options *options) {
    return options->top_k > 0 || cuts_tail(options->top_p) || options->min_p > 0 ||
           cuts_tail(options->typical_p);
}

kvl_err kvl_sampler_prepare(struct kvl_sampler *sampler, uint32_t vocab) {
    if (sampler->vocab == vocab) {
        return KVL_OK;
    }
    kvl_sampler_deinit(sampler);
    sampler->logits = malloc(vocab * sizeof *sampler->logits);
    sampler->counts = calloc(vocab, sizeof *sampler->counts);
    if (has_filters(&sampler->options)) {
        sampler->candidates = malloc(vocab * sizeof *sampler->candidates);
    }
    if (!sampler->logits || !sampler->counts ||
        (has_filters(&sampler->options) && !sampler->candidates)) {
        kvl_sampler_deinit(sampler);
        return KVL_ERR_NOMEM;
    }
    sampler->vocab = vocab;
    return KVL_OK;
}

static float penalized(const struct kvl_sampler_options *options, float logit, uint32_t times) {
    float repeat = options->repeat_penalty > 0 ? options->repeat_penalty : 1;
    logit = logit > 0 ? logit / repeat : logit * repeat;
    return logit - ((float)times * options->frequency_penalty + options->presence_penalty);
}

static void penalize(struct kvl_sampler *sampler, const struct kvl_sampler_input *input) {
    uint32_t last = sampler->options.penalty_last;
    uint32_t first = input->context_tokens > last ? input->context_tokens - last : 0;
    for (uint32_t i = first; i < input->context_tokens; i++) {
        if (input->context[i] < input->vocab) {
            sampler->counts[input->context[i]]++;
        }
    }
    for (uint32_t i = first; i < input->context_tokens; i++) {
        uint32_t id = input->context[i];
        if (id < input->vocab && sampler->counts[id] > 0) {
            sampler->logits[id] =
                penalized(&sampler->options, sampler->logits[id], sampler->counts[id]);
            sampler->counts[id] = 0; /* once, and clean for the next pick */
        }
    }
}

/* The logits with bias and penalties. */
static const float *adjust(struct kvl_sampler *sampler, const struct kvl_sampler_input *input) {
    const struct kvl_sampler_options *options = &sampler->options;
    if (options->bias_count == 0 && !has_penalties(options)) {
        return input->logits;
    }
    memcpy(sampler->logits, input->logits, input->vocab * sizeof *sampler->logits);
    for (uint32_t i = 0; i < options->bias_count; i++) {
        if (options->bias[i].id < input->vocab) {
            sampler->logits[options->bias[i].id] += options->bias[i].value;
        }
    }
    if (has_penalties(options)) {
        penalize(sampler, input);
    }
    return sampler->logits;
}

static bool comes_first(
    const struct kvl_sampler_candidate *a, const struct kvl_sampler_candidate *b) {
    return a->key < b->key || (a->key == b->key && a->id < b->id);
}

static void sift_down(struct kvl_sampler_candidate *heap, uint32_t count, uint32_t at) {
    struct kvl_sampler_candidate moved = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && comes_first(&heap[child + 1], &heap[child]);
        if (!comes_first(&heap[child], &moved)) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* The candidates not taken are a heap at the array's beginning; those taken stand behind it, the
 * first at the end. */
struct selection {
    struct kvl_sampler_candidate *candidates;
    uint32_t left, count;
};

static struct selection select_by_key(struct kvl_sampler_candidate *candidates, uint32_t count) {
    for (uint32_t at = count / 2; at-- > 0;) {
        sift_down(candidates, count, at);
    }
    return (struct selection){candidates, count, count};
}

static const struct kvl_sampler_candidate *take(struct selection *selection) {
    struct kvl_sampler_candidate *candidates = selection->candidates, first = candidates[0];
    candidates[0] = candidates[--selection->left];
    sift_down(candidates, selection->left, 0);
    candidates[selection->left] = first;
    return &candidates[selection->left];
}

/* Moves those taken to the array's beginning, the first in front. Returns how many they are. */
static uint32_t keep_taken(const struct selection *selection) {
    struct kvl_sampler_candidate *candidates = selection->candidates;
    uint32_t kept = selection->count - selection->left;
    for (uint32_t i = 0, j = selection->count - 1; i < j; i++, j--) {
        struct kvl_sampler_candidate swapped = candidates[i];
        candidates[i] = candidates[j];
        candidates[j] = swapped;
    }
    return kept;
}

static double total_weight(const struct kvl_sampler_candidate *candidates, uint32_t count) {
    double total = 0;
    for (uint32_t i = 0; i < count; i++) {
        total += candidates[i].weight;
    }
    return total;
}

static void key_by_logit(struct kvl_sampler_candidate *candidates, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        candidates[i].key = -candidates[i].logit;
    }
}

static uint32_t keep_top_k(struct kvl_sampler_candidate *candidates, uint32_t count, uint32_t k) {
    if (k == 0 || k >= count) {
        return count;
    }
    key_by_logit(candidates, count);
    struct selection selection = select_by_key(candidates, count);
    while (selection.count - selection.left < k) {
        take(&selection);
    }
    return keep_taken(&selection);
}

/* -log p[i] - H = sum over j of p[j] x[j] - x[i]: no logarithm is needed. */
static uint32_t keep_typical(
    struct kvl_sampler_candidate *candidates, uint32_t count, float typical_p) {
    if (!cuts_tail(typical_p)) {
        return count;
    }
    double total = total_weight(candidates, count), mean = 0, mass = 0;
    for (uint32_t i = 0; i < count; i++) {
        mean += candidates[i].weight > 0 ? candidates[i].weight * candidates[i].logit : 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        candidates[i].key = fabs(mean / total - candidates[i].logit);
    }
    struct selection selection = select_by_key(candidates, count);
    while (selection.left > 0 && mass < (double)typical_p * total) {
        mass += take(&selection)->weight;
    }
    return keep_taken(&selection);
}

/* Top-p and min-p both keep the likeliest: the shorter of the two runs. */
static uint32_t keep_likeliest(struct kvl_sampler_candidate *candidates, uint32_t count,
    const struct kvl_sampler_options *options) {
    if (!cuts_tail(options->top_p) && !(options->min_p > 0)) {
        return count;
    }
    double total = total_weight(candidates, count), mass = 0, least = 0;
    double wanted = cuts_tail(options->top_p) ? (double)options->top_p * total : INFINITY;
    key_by_logit(candidates, count);
    struct selection selection = select_by_key(candidates, count);
    while (selection.left > 0 && mass < wanted && candidates[0].weight >= least) {
        const struct kvl_sampler_candidate *taken = take(&selection);
        least = least > 0 ? least : (double)options->min_p * taken->weight;
        mass += taken->weight;
    }
    return keep_taken(&selection);
}

static uint32_t draw_filtered(
    struct kvl_sampler *sampler, const float *logits, uint32_t vocab, double max, double uniform) {
    struct kvl_sampler_candidate *candidates = sampler->candidates;
    const struct kvl_sampler_options *options = &sampler->options;
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (!isnan(logits[i])) {
            double logit = logits[i] - max;
            candidates[count++] = (struct kvl_sampler_candidate){
                .logit = logit, .weight = exp_of_negative(logit), .id = i};
        }
    }
    count = keep_top_k(candidates, count, options->top_k);
    count = keep_typical(candidates, count, options->typical_p);
    count = keep_likeliest(candidates, count, options);
    double top = candidates[0].logit, sum = 0; /* typical may have left out the maximum */
    for (uint32_t i = 1; i < count; i++) {
        top = candidates[i].logit > top ? candidates[i].logit : top;
    }
    for (uint32_t i = 0; i < count; i++) {
        candidates[i].weight =
            exp_of_negative((candidates[i].logit - top) / (double)options->temperature);
    }
    double target = uniform * total_weight(candidates, count);
    for (uint32_t i = 0; i < count; i++) {
        sum += candidates[i].weight;
        if (sum > target) {
            return candidates[i].id;
        }
    }
    return candidates[0].id; /* the sum was rounded below the target */
}

static uint32_t draw(
    const float *logits, uint32_t vocab, uint32_t best, double temperature, double uniform) {
    double max = logits[best], total = 0, sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        total += weight(logits[i], max, temperature);
    }
    double target = uniform * total;
    for (uint32_t i = 0; i < vocab; i++) {
        sum += weight(logits[i], max, temperature);
        if (sum > target) {
            return i;
        }
    }
    return best;
}

uint32_t kvl_sampler_pick(struct kvl_sampler *sampler, const struct kvl_sampler_input *input) {
    const float *logits = adjust(sampler, input);
    uint32_t best = kvl_greedy_pick(logits, input->vocab);
    double temperature = sampler->options.temperature;
    if (!(temperature > 0)) {
        return best;
    }
    double uniform = (double)(splitmix64(&sampler->state) >> 11) * 0x1p-53; /* [0, 1) */
    if (!isfinite(logits[best])) {
        return best;
    }
    return has_filters(&sampler->options)
               ? draw_filtered(sampler, logits, input->vocab, logits[best], uniform)
               : draw(logits, input->vocab, best, temperature, uniform);
}
