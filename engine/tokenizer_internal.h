/* tokenizer_internal.h - what the tokenizers share: vocabulary, index by text, merging. */
#ifndef KVL_TOKENIZER_INTERNAL_H
#define KVL_TOKENIZER_INTERNAL_H

#include "tokenizer.h"

/* GGUF's tokenizer.ggml.token_type */
enum kvl_token_kind {
    KVL_TOKEN_NORMAL = 1,
    KVL_TOKEN_UNKNOWN = 2,
    KVL_TOKEN_CONTROL = 3,
    KVL_TOKEN_USER_DEFINED = 4,
    KVL_TOKEN_UNUSED = 5,
    KVL_TOKEN_BYTE = 6,
};

struct kvl_token {
    struct kvl_gguf_string text;  /* as the file writes it; in the GGUF */
    struct kvl_gguf_string piece; /* the bytes it stands for; in the arena */
    uint8_t kind;                 /* enum kvl_token_kind */
    bool looks_control; /* by its text; special where specials are parsed, whatever its kind */
    bool ends_generation;
    bool strips_right; /* white space behind it belongs to it, where specials are parsed */
};

/* The special tokens, as tokenizer_special.c cuts by them. A rank is a place in their order. */
struct kvl_specials {
    uint32_t *ids;     /* by rank: longest text first */
    uint32_t *by_text; /* ranks, in order of the texts' bytes; lies behind ids, as stretch does */
    uint32_t *stretch; /* scratch of a cut: ranks */
    uint32_t count;
    uint32_t single[256]; /* the rank of the one of this byte alone, or KVL_TOKEN_NONE */
    uint64_t *starts;     /* 65,536 bits: may one start with these two bytes? */
};

/* Text to id: open addressing over ids, the texts themselves stay with the tokens. */
struct kvl_token_index {
    uint32_t *slots; /* KVL_TOKEN_NONE: free */
    uint64_t mask;
};

typedef kvl_err kvl_encode_fn(struct kvl_tokenizer *tokenizer, const char *text,
    uint64_t text_bytes, struct kvl_token_list *list);

/* One tokenizer algorithm, embedded first in its own state. */
struct kvl_tokenizer_ops {
    const char *model; /* tokenizer.ggml.model */
    /* Fills in the tokens' pieces, state, and add_bos, which the file may override. */
    KVL_MUST_CHECK kvl_err (*create)(
        struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg);
    /* Appends the ids of text without special tokens. On an error list may have grown. */
    kvl_encode_fn *encode;
    void (*destroy)(struct kvl_tokenizer *tokenizer); /* state may be half made or NULL */
};

extern const struct kvl_tokenizer_ops kvl_tokenizer_bpe;
extern const struct kvl_tokenizer_ops kvl_tokenizer_spm;

struct kvl_tokenizer {
    const struct kvl_tokenizer_ops *ops;
    void *state; /* the algorithm's own */
    struct kvl_token *tokens;
    uint32_t vocab;
    char *arena;
    struct kvl_specials specials;
    uint32_t bos, eos;
    bool add_bos;
};

/* Words and their ids, as far as they are remembered. */
struct kvl_known_words {
    struct kvl_known_word *slots;
};
KVL_MUST_CHECK kvl_err kvl_known_words_create(struct kvl_known_words *words);
void kvl_known_words_destroy(struct kvl_known_words *words); /* zeroed is fine */
/* Appends the ids of a word: remembered, or by encode, whose answer depends on the word alone. */
KVL_MUST_CHECK kvl_err kvl_known_words_encode(struct kvl_known_words *words,
    struct kvl_tokenizer *tokenizer, kvl_encode_fn *encode, struct kvl_gguf_string word,
    struct kvl_token_list *list);

static inline bool kvl_is_ascii_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* From the tokens' texts and kinds. Errors: UNSUPPORTED (too many), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_specials_create(
    struct kvl_tokenizer *tokenizer, const char *path, struct kvl_errmsg *msg);
void kvl_specials_destroy(struct kvl_specials *specials); /* zeroed is fine */
/* Appends the ids of text: special tokens where they stand (user-defined ones only, unless
 * parse_special), the rest as the algorithm encodes it. On an error list may have grown. */
KVL_MUST_CHECK kvl_err kvl_specials_cut(struct kvl_tokenizer *tokenizer,
    struct kvl_gguf_string text, bool parse_special, struct kvl_token_list *list);

/* Index of the pieces (or, by_text, the texts) of the tokens for which wanted() holds; of equal
 * ones the last is found. Errors: NOMEM. */
KVL_MUST_CHECK kvl_err kvl_token_index_create(struct kvl_token_index *index,
    const struct kvl_tokenizer *tokenizer, bool by_text, bool (*wanted)(const struct kvl_token *));
void kvl_token_index_destroy(struct kvl_token_index *index);
uint32_t kvl_token_index_find(const struct kvl_token_index *index,
    const struct kvl_tokenizer *tokenizer, bool by_text, const char *text, uint64_t text_bytes);

/* Merging: symbols in a row, of which the best neighbouring pair is joined until none is left. */
struct kvl_symbol {
    const char *text; /* symbols are contiguous in one text */
    uint32_t bytes;   /* 0: joined into the one before */
    uint32_t id;      /* KVL_TOKEN_NONE: not a token */
    uint32_t previous, next;
};

struct kvl_merge_candidate {
    uint64_t key; /* priority << 32 | left symbol: the lowest is merged first */
    uint32_t right;
    uint32_t bytes; /* of both; other than now means a neighbour changed meanwhile */
    uint32_t merged;
};

struct kvl_merger { /* zeroed to start */
    struct kvl_symbol *symbols;
    uint64_t count, capacity;
    struct kvl_merge_candidate *heap;
    uint64_t heap_count, heap_capacity;
};

/* False when the pair does not merge. Lower priority first. */
typedef bool kvl_merge_rule(const struct kvl_tokenizer *tokenizer, const struct kvl_symbol *left,
    const struct kvl_symbol *right, uint32_t *priority, uint32_t *merged);

void kvl_merger_clear(struct kvl_merger *merger);
KVL_MUST_CHECK kvl_err kvl_merger_add(
    struct kvl_merger *merger, const char *text, uint32_t bytes, uint32_t id);
/* Afterwards the symbols with bytes > 0 are the result, in order. */
KVL_MUST_CHECK kvl_err kvl_merger_run(
    struct kvl_merger *merger, kvl_merge_rule *rule, const struct kvl_tokenizer *tokenizer);
void kvl_merger_free(struct kvl_merger *merger);

#endif
