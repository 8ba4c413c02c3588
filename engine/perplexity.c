/* perplexity.c - see perplexity.h. */
#include "perplexity.h"

#include <math.h>
#include <stdlib.h>

#define ROWS_MAX 64u /* logits of a large vocabulary take 200 KB a row */

/* -log softmax(logits)[token], in double. */
static double negative_log_likelihood(const float *logits, uint32_t vocab, uint32_t token) {
    double largest = logits[0];
    for (uint32_t i = 1; i < vocab; ++i)
        largest = logits[i] > largest ? logits[i] : largest;
    double sum = 0;
    for (uint32_t i = 0; i < vocab; ++i)
        sum += exp(logits[i] - largest);
    return log(sum) - (logits[token] - largest);
}

kvl_err kvl_perplexity_of(struct kvl_sequence *sequence, const uint32_t *tokens, uint32_t count,
    struct kvl_perplexity *out) {
    uint32_t vocab = sequence->options.hparams->vocab;
    if (count < 2 || sequence->count != 0)
        return KVL_ERR_INVALID;
    uint32_t rows_max =
        sequence->options.chunk_tokens < ROWS_MAX ? sequence->options.chunk_tokens : ROWS_MAX;
    float *logits = malloc((uint64_t)rows_max * vocab * sizeof *logits);
    if (logits == NULL)
        return KVL_ERR_NOMEM;
    double sum = 0;
    kvl_err err = KVL_OK;
    for (uint32_t begin = 0; begin < count && err == KVL_OK; begin += rows_max) {
        uint32_t rows = count - begin < rows_max ? count - begin : rows_max;
        err = kvl_sequence_append(sequence, tokens + begin, rows);
        if (err == KVL_OK)
            err = kvl_sequence_advance(
                sequence, &(struct kvl_wanted){.rows = rows, .logits = logits});
        for (uint32_t row = 0; row < rows && err == KVL_OK; ++row)
            if (begin + row + 1 < count)
                sum += negative_log_likelihood(
                    logits + (uint64_t)row * vocab, vocab, tokens[begin + row + 1]);
    }
    free(logits);
    double mean = sum / (count - 1);
    *out = (struct kvl_perplexity){.tokens = count, .nll_mean = mean, .ppl = exp(mean)};
    return err;
}
