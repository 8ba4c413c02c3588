/* tokenizer_words.c - remembers what words became: texts repeat their words, and looking one up is
 * some ten times faster than merging it again. Direct mapped, a cache line a word. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

#define WORD_BYTES_MAX 30
#define WORD_IDS_MAX 8
#define WORD_COUNT (1u << 15)

struct kvl_known_word {
    uint8_t bytes; /* 0: free */
    uint8_t count;
    char text[WORD_BYTES_MAX];
    uint32_t ids[WORD_IDS_MAX];
};
_Static_assert(sizeof(struct kvl_known_word) == 64, "one cache line");

kvl_err kvl_known_words_create(struct kvl_known_words *words) {
    words->slots = calloc(WORD_COUNT, sizeof *words->slots);
    return words->slots ? KVL_OK : KVL_ERR_NOMEM;
}

void kvl_known_words_destroy(struct kvl_known_words *words) {
    free(words->slots);
    words->slots = NULL;
}

static struct kvl_known_word *slot_of(
    const struct kvl_known_words *words, const char *word, uint64_t word_bytes) {
    uint64_t hash = word_bytes;
    for (uint64_t at = 0; at < word_bytes; at += 8) {
        uint64_t part = 0;
        memcpy(&part, word + at, word_bytes - at < 8 ? word_bytes - at : 8);
        hash = (hash ^ part) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return &words->slots[hash % WORD_COUNT];
}

static kvl_err push_known(const struct kvl_known_word *known, struct kvl_token_list *list) {
    kvl_err err = KVL_OK;
    for (uint8_t i = 0; i < known->count && !err; i++) {
        err = kvl_token_list_push(list, known->ids[i]);
    }
    return err;
}

static void remember(struct kvl_known_word *known, const char *word, uint64_t word_bytes,
    const uint32_t *ids, uint64_t count) {
    if (count > WORD_IDS_MAX) {
        return;
    }
    known->bytes = (uint8_t)word_bytes;
    known->count = (uint8_t)count;
    memcpy(known->text, word, word_bytes);
    if (count > 0) {
        memcpy(known->ids, ids, count * sizeof *ids);
    }
}

kvl_err kvl_known_words_encode(struct kvl_known_words *words, struct kvl_tokenizer *tokenizer,
    kvl_encode_fn *encode, struct kvl_gguf_string word, struct kvl_token_list *list) {
    if (word.bytes > WORD_BYTES_MAX) {
        return encode(tokenizer, word.data, word.bytes, list);
    }
    struct kvl_known_word *known = slot_of(words, word.data, word.bytes);
    if (known->bytes == word.bytes && memcmp(known->text, word.data, word.bytes) == 0) {
        return push_known(known, list);
    }
    uint64_t first = list->count;
    kvl_err err = encode(tokenizer, word.data, word.bytes, list);
    if (!err && list->count > first) {
        remember(known, word.data, word.bytes, list->ids + first, list->count - first);
    }
    return err;
}
