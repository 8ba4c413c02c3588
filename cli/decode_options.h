/* decode_options.h - what kvloft-decode was asked to do. */
#ifndef KVL_DECODE_OPTIONS_H
#define KVL_DECODE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "decode_sampling.h"
#include "service.h"

enum { DECODE_DONE = 0, DECODE_FAILED = 1, DECODE_USAGE = 2 };

/* Where the KV cache lives. */
enum decode_mode {
    DECODE_AUTO, /* the default daemon if it answers, else as DECODE_NO_OFFLOAD */
    DECODE_CONNECT,
    DECODE_EMBEDDED,
    DECODE_NO_OFFLOAD,
    DECODE_NO_CACHE,
};

struct decode_options {
    const char *model;        /* one of these two */
    const char *random_model; /* a shape's name or file */
    const char *prompt;       /* at most one of these two */
    const char *prompt_file;
    const char *prompts;    /* a file of JSON lines, "-": stdin; then none of these two */
    uint32_t parallel;      /* of them at once */
    uint64_t prompt_tokens; /* keep the first so many; 0: all; of a random model: make so many */
    uint32_t max_tokens;
    struct decode_sampling sampling;
    uint32_t ctx; /* 0: min(the model's, 8192) */
    enum kvl_kv_dtype kv_dtype;
    const char *device;     /* as given: cpu, cuda, cuda:N */
    uint32_t device_number; /* N */
    uint32_t threads;       /* 0: all */
    enum decode_mode mode;
    const char *address;                 /* DECODE_CONNECT; NULL: the default */
    const char *tenant, *secret_file;    /* NULL: what the environment says */
    struct kvl_service_options embedded; /* DECODE_EMBEDDED */
    bool has_device_bytes;               /* --device-bytes was given */
    const char *session;
    bool chat;
    const char *system;
    const char *chat_template; /* NULL: the file's */
    bool hash_logits;
    bool json;
    bool tokenize;
    bool special;
    bool perplexity;
};

/* True: go on. False: end with *status (--help, --version, wrong usage; already printed). */
bool decode_options_parse(int argc, char **argv, struct decode_options *options, int *status);

/* "kvloft-decode: ..." on stderr; returns DECODE_FAILED. */
__attribute__((format(printf, 1, 2))) int decode_error(const char *format, ...);

#endif
