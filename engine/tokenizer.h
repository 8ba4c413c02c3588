/* tokenizer.h - text to token ids and back, as the model file says.
 *
 * Supported (`tokenizer.ggml.model` / `tokenizer.ggml.pre`): gpt2 (byte-level BPE) with the
 * pre-tokenizers of the table in pre_tokenizer.c, and llama (SentencePiece merging by score, with
 * byte fallback). Ids equal llama.cpp's for valid UTF-8. For bytes that are not UTF-8, llama.cpp
 * puts U+FFFD; here each keeps its own byte token, so that detokenizing gives the same bytes, and
 * only a byte that the vocabulary has no token for becomes U+FFFD. A valid character of which some
 * byte has no token loses that byte, there as here (SmolLM2: six control characters and
 * U+40000..U+BFFFF). What is a letter or a digit is up to the installed PCRE2 (10.42: Unicode 14);
 * later characters may be cut otherwise than by llama.cpp.
 *
 * Owns:    the tokenizer borrows the GGUF, which has to outlive it. Pieces live until destroy.
 * Threads: kvl_tokenize one caller at a time (it fills a cache of words); getters from any.
 * Errors:  UNSUPPORTED (another model or pre-tokenizer, names it), CORRUPT (a vocabulary that
 *          contradicts itself), NOMEM, TOOBIG (a text over 1 GiB). */
#ifndef KVL_TOKENIZER_H
#define KVL_TOKENIZER_H

#include "gguf.h"

#define KVL_TOKEN_NONE UINT32_MAX

struct kvl_tokenizer;

/* A growing list of ids; zeroed to start, kvl_token_list_free in the end. */
struct kvl_token_list {
    uint32_t *ids;
    uint64_t count;
    uint64_t capacity;
};

KVL_MUST_CHECK kvl_err kvl_token_list_push(struct kvl_token_list *list, uint32_t id);
void kvl_token_list_free(struct kvl_token_list *list);

enum kvl_tokenize_flags {
    /* Text that looks like a special token becomes that token. Without it, it stays text. */
    KVL_TOKENIZE_PARSE_SPECIAL = 1,
    /* Begin with BOS if the model file asks for it. */
    KVL_TOKENIZE_ADD_BOS = 2,
};

KVL_MUST_CHECK kvl_err kvl_tokenizer_create(
    const struct kvl_gguf *gguf, struct kvl_tokenizer **out, struct kvl_errmsg *msg);
void kvl_tokenizer_destroy(struct kvl_tokenizer *tokenizer); /* NULL is fine */

/* Appends to list; on an error the list holds what it held. text may hold any bytes. */
KVL_MUST_CHECK kvl_err kvl_tokenize(struct kvl_tokenizer *tokenizer, const char *text,
    uint64_t text_bytes, unsigned flags, struct kvl_token_list *list);

/* The same, without parsing, for text that follows the last token of list: where that is special
 * and takes white space behind it (Phi-3), the text's is left out. */
KVL_MUST_CHECK kvl_err kvl_tokenize_after(struct kvl_tokenizer *tokenizer, const char *text,
    uint64_t text_bytes, struct kvl_token_list *list);

/* The bytes a token stands for, special tokens with their text; not NUL terminated, perhaps part
 * of a character (see utf8.h). Empty for an id outside the vocabulary. */
struct kvl_gguf_string kvl_token_piece(const struct kvl_tokenizer *tokenizer, uint32_t id);

uint32_t kvl_tokenizer_vocab(const struct kvl_tokenizer *tokenizer); /* number of tokens */
/* KVL_TOKEN_NONE when the file names none. */
uint32_t kvl_tokenizer_bos(const struct kvl_tokenizer *tokenizer);
uint32_t kvl_tokenizer_eos(const struct kvl_tokenizer *tokenizer);
/* The id of the special token with this text, or KVL_TOKEN_NONE. */
uint32_t kvl_tokenizer_special(const struct kvl_tokenizer *tokenizer, const char *text);
/* The longest special token that text begins with, or KVL_TOKEN_NONE; *bytes is its length, or that
 * of the text's first character. text is not empty. */
uint32_t kvl_tokenizer_special_at(
    const struct kvl_tokenizer *tokenizer, struct kvl_gguf_string text, uint64_t *bytes);
/* Of a special token: from now on it is a control token, which text becomes only when parsed. */
void kvl_tokenizer_make_control(struct kvl_tokenizer *tokenizer, uint32_t id);

/* The file's eos, eot and eom, and special tokens with the usual texts of those. */
bool kvl_token_is_end_of_generation(const struct kvl_tokenizer *tokenizer, uint32_t id);
/* Control tokens are not shown to a reader. */
bool kvl_token_is_control(const struct kvl_tokenizer *tokenizer, uint32_t id);

#endif
