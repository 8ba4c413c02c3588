/* decode_sampling.h - kvloft-decode's options of how tokens are chosen and where a text stops. */
#ifndef KVL_DECODE_SAMPLING_H
#define KVL_DECODE_SAMPLING_H

#include "sampler.h"

#define DECODE_BIAS_MAX 256
#define DECODE_STOPS_MAX 32

struct decode_sampling {
    struct kvl_sampler_options options; /* without bias, so that this can be copied */
    struct kvl_logit_bias bias[DECODE_BIAS_MAX];
    const char *stops[DECODE_STOPS_MAX]; /* the caller's */
    uint32_t stop_count;
};

/* Whether --name is one of these options that takes a number. */
bool decode_sampling_is_number(const char *name);
/* What is not given does nothing. */
void decode_sampling_init(struct decode_sampling *sampling);
/* --name value, one of temperature, seed and those of decode_sampling.c's tables. NULL when taken,
 * else what is wrong with the value ("not a number from 0 to 1"), in error. */
const char *decode_sampling_take(struct decode_sampling *sampling, const char *name,
    const char *value, char *error, uint64_t error_bytes);

#endif
