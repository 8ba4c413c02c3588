/* decode_engine.h - the parts of one kvloft-decode run, opened in order and closed in reverse
 * (but the service before its connection): model, tokenizer, backend, service (embedded),
 * connection, sequence, session. */
#ifndef KVL_DECODE_ENGINE_H
#define KVL_DECODE_ENGINE_H

#include <signal.h>

#include "chat.h"
#include "decode_options.h"
#include "generate.h"
#include "model.h"
#include "stop_strings.h"

struct decode_engine {
    const struct decode_options *options;
    struct kvl_model *model;
    struct kvl_tokenizer *tokenizer; /* NULL with a random model */
    struct kvl_chat *chat;           /* with --chat */
    struct kvl_backend *backend;
    struct kvl_log *log;
    struct kvl_service_options memory; /* of a service without disk, for --prompts */
    struct kvl_service *service;       /* embedded */
    struct kvl_connection connection;  /* connected: a daemon or the service */
    struct kvl_sequence sequence;
    struct kvl_saved_session session;
    struct kvl_sampler sampler;
    struct kvl_stop_strings stops;
    uint32_t context_max;
    uint64_t load_ns; /* model, tokenizer and backend */
    bool streaming;
    char notices[1024]; /* held back while streaming */
};

/* What the interrupt handler sets, or who sees that going on is of no use; and what the caller
 * shows while prefill or a restore runs. */
struct decode_engine_hooks {
    volatile sig_atomic_t *stop;
    void (*progress)(void *arg, bool restoring, uint64_t done, uint64_t total);
    void *arg;
};

/* Errors: those of the parts; msg is for the user. Close it in any case. */
KVL_MUST_CHECK kvl_err decode_engine_open(struct decode_engine *engine,
    const struct decode_options *options, const struct decode_engine_hooks *hooks,
    struct kvl_errmsg *msg);
void decode_engine_close(struct decode_engine *engine); /* zeroed is fine */

/* Of every sequence of this engine. */
struct kvl_sequence_options decode_engine_sequence(
    struct decode_engine *engine, const struct decode_engine_hooks *hooks);

/* Only what --tokenize needs: no weights are looked at. */
KVL_MUST_CHECK kvl_err decode_tokenize_only(const struct decode_options *options, const char *text,
    uint64_t text_bytes, struct kvl_token_list *list, struct kvl_errmsg *msg);

/* The tokens that a user's text adds to the conversation so far: with --chat wrapped as a turn,
 * an unfinished answer before it closed. */
KVL_MUST_CHECK kvl_err decode_engine_tokens_of(struct decode_engine *engine, const char *text,
    uint64_t text_bytes, struct kvl_token_list *list, struct kvl_errmsg *msg);
struct decode_prompt {
    const char *text;
    uint64_t bytes;
    const char *system; /* with --chat; NULL: the template's own */
    uint64_t tokens;    /* keep the first so many; 0: all */
};
/* The same for a conversation of its own that begins with this prompt. */
KVL_MUST_CHECK kvl_err decode_engine_prompt(struct decode_engine *engine,
    const struct decode_prompt *prompt, struct kvl_token_list *list, struct kvl_errmsg *msg);
/* LIMIT: msg names how many tokens there are and what the context holds. INVALID: none at all. */
KVL_MUST_CHECK kvl_err decode_engine_fits(
    const struct decode_engine *engine, uint64_t tokens, const char *what, struct kvl_errmsg *msg);
/* Errors: INVALID (a bias of a token that is none; msg says which). */
KVL_MUST_CHECK kvl_err decode_engine_sampler(const struct decode_engine *engine,
    const struct decode_sampling *sampling, struct kvl_sampler *sampler, struct kvl_errmsg *msg);
/* --prompt-tokens N of a random model: seeded ids, of which a shorter prompt's are the first. */
KVL_MUST_CHECK kvl_err decode_engine_random_tokens(
    const struct decode_engine *engine, struct kvl_token_list *list);
/* Appends them. LIMIT: msg names how many there are and what the context holds. */
KVL_MUST_CHECK kvl_err decode_engine_append(
    struct decode_engine *engine, const struct kvl_token_list *list, struct kvl_errmsg *msg);

/* Between true and false, what the engine has to tell is held back; false prints it. */
void decode_engine_streaming(struct decode_engine *engine, bool streaming);

uint64_t decode_now_ns(void);

#endif
