/* pre_tokenizer.h - cuts a text into the words that byte-level BPE may not join over
 * (`tokenizer.ggml.pre`). What each pre-tokenizer does is one row of the table in pre_tokenizer.c.
 *
 * Owns:    nothing of the caller's. The name is borrowed for the call.
 * Threads: one caller at a time.
 * Errors:  UNSUPPORTED (an unknown name: the message lists the known ones; a PCRE2 without
 *          Unicode), NOMEM, LIMIT (PCRE2 ran out of a resource), those of the caller's function. */
#ifndef KVL_PRE_TOKENIZER_H
#define KVL_PRE_TOKENIZER_H

#include "gguf.h"

struct kvl_pre_tokenizer;

/* file stands in messages. */
KVL_MUST_CHECK kvl_err kvl_pre_tokenizer_create(struct kvl_gguf_string name, const char *file,
    struct kvl_pre_tokenizer **out, struct kvl_errmsg *msg);
void kvl_pre_tokenizer_destroy(struct kvl_pre_tokenizer *pre); /* NULL is fine */

/* A word that is a token is that token, whatever the merges would make of it. */
bool kvl_pre_tokenizer_ignores_merges(const struct kvl_pre_tokenizer *pre);
/* Texts begin with BOS unless the file says otherwise. */
bool kvl_pre_tokenizer_adds_bos(const struct kvl_pre_tokenizer *pre);

/* Calls word(arg, offset, bytes) for every word of the text, in order; together they are the text.
 * text has to be valid UTF-8. Ends at the first error that word returns. */
typedef kvl_err kvl_word_fn(void *arg, uint64_t offset_bytes, uint64_t word_bytes);
KVL_MUST_CHECK kvl_err kvl_pre_tokenizer_cut(struct kvl_pre_tokenizer *pre, const char *text,
    uint64_t text_bytes, kvl_word_fn *word, void *arg);

#endif
