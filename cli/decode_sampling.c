/* decode_sampling.c - see decode_sampling.h. */
#include "decode_sampling.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "size.h"

static const struct {
    const char *name;
    size_t offset_bytes;
    float min, max;
} numbers[] = {
    {"temperature", offsetof(struct kvl_sampler_options, temperature), 0, 1000},
    {"top-p", offsetof(struct kvl_sampler_options, top_p), 0.001f, 1},
    {"min-p", offsetof(struct kvl_sampler_options, min_p), 0, 1},
    {"typical", offsetof(struct kvl_sampler_options, typical_p), 0.001f, 1},
    {"repeat-penalty", offsetof(struct kvl_sampler_options, repeat_penalty), 0.01f, 100},
    {"presence-penalty", offsetof(struct kvl_sampler_options, presence_penalty), -100, 100},
    {"frequency-penalty", offsetof(struct kvl_sampler_options, frequency_penalty), -100, 100},
};

static const struct {
    const char *name;
    size_t offset_bytes;
} counts[] = {
    {"top-k", offsetof(struct kvl_sampler_options, top_k)},
    {"repeat-last-n", offsetof(struct kvl_sampler_options, penalty_last)},
};

bool decode_sampling_is_number(const char *name) {
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; ++i)
        if (strcmp(name, numbers[i].name) == 0)
            return true;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; ++i)
        if (strcmp(name, counts[i].name) == 0)
            return true;
    return strcmp(name, "seed") == 0;
}

void decode_sampling_init(struct decode_sampling *sampling) {
    *sampling = (struct decode_sampling){.options.penalty_last = KVL_PENALTY_LAST_DEFAULT};
}

static bool parse_float(const char *text, float *out) {
    char *end = NULL;
    *out = strtof(text, &end);
    return end != text && *end == 0 && !isnan(*out);
}

/* "ID=VALUE"; the value may be -inf. */
static const char *take_bias(struct decode_sampling *sampling, const char *value) {
    const char *equals = strchr(value, '=');
    char id_text[16] = "";
    uint64_t id = 0;
    float bias = 0;
    if (equals != NULL && (size_t)(equals - value) < sizeof id_text)
        memcpy(id_text, value, (size_t)(equals - value));
    if (!kvl_parse_number(id_text, UINT32_MAX, &id) || !parse_float(equals + 1, &bias))
        return "not ID=VALUE, a token id and a number such as 2.5 or -inf";
    if (sampling->options.bias_count == DECODE_BIAS_MAX)
        return "that is more than 256 of them";
    sampling->bias[sampling->options.bias_count++] =
        (struct kvl_logit_bias){.id = (uint32_t)id, .value = bias};
    return NULL;
}

static const char *take_stop(struct decode_sampling *sampling, const char *value) {
    if (*value == 0)
        return "an empty text would stop everything";
    if (sampling->stop_count == DECODE_STOPS_MAX)
        return "that is more than 32 of them";
    sampling->stops[sampling->stop_count++] = value;
    return NULL;
}

const char *decode_sampling_take(struct decode_sampling *sampling, const char *name,
    const char *value, char *error, uint64_t error_bytes) {
    char *base = (char *)&sampling->options;
    uint64_t number = 0;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; ++i) {
        float *out = (float *)(void *)(base + numbers[i].offset_bytes);
        if (strcmp(name, numbers[i].name) != 0)
            continue;
        snprintf(error, error_bytes, "not a number from %g to %g", (double)numbers[i].min,
            (double)numbers[i].max);
        return parse_float(value, out) && *out >= numbers[i].min && *out <= numbers[i].max ? NULL
                                                                                           : error;
    }
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; ++i) {
        if (strcmp(name, counts[i].name) != 0)
            continue;
        if (!kvl_parse_number(value, INT32_MAX, &number))
            return "not a number from 0 on";
        *(uint32_t *)(void *)(base + counts[i].offset_bytes) = (uint32_t)number;
        return NULL;
    }
    if (strcmp(name, "seed") == 0)
        return kvl_parse_number(value, UINT64_MAX, &sampling->options.seed) ? NULL : "not a number";
    if (strcmp(name, "logit-bias") == 0)
        return take_bias(sampling, value);
    return take_stop(sampling, value);
}
