/* tokenizer_index.c - finds a token by its text: a hash table of ids, linear probing, at most half
 * full. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

static uint64_t hash_text(const char *text, uint64_t text_bytes) { /* FNV-1a */
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint64_t i = 0; i < text_bytes; i++) {
        hash = (hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
    }
    return hash ^ hash >> 32;
}

static struct kvl_gguf_string key_of(
    const struct kvl_tokenizer *tokenizer, uint32_t id, bool by_text) {
    return by_text ? tokenizer->tokens[id].text : tokenizer->tokens[id].piece;
}

/* The slot that holds the text, or the free one where it would go. */
static uint64_t find_slot(const struct kvl_token_index *index,
    const struct kvl_tokenizer *tokenizer, bool by_text, struct kvl_gguf_string text) {
    uint64_t slot = hash_text(text.data, text.bytes) & index->mask;
    while (index->slots[slot] != KVL_TOKEN_NONE) {
        struct kvl_gguf_string there = key_of(tokenizer, index->slots[slot], by_text);
        if (there.bytes == text.bytes && memcmp(there.data, text.data, text.bytes) == 0) {
            break;
        }
        slot = (slot + 1) & index->mask;
    }
    return slot;
}

kvl_err kvl_token_index_create(struct kvl_token_index *index, const struct kvl_tokenizer *tokenizer,
    bool by_text, bool (*wanted)(const struct kvl_token *)) {
    uint64_t slot_count = 16;
    while (slot_count < 2 * (uint64_t)tokenizer->vocab) {
        slot_count *= 2;
    }
    index->slots = malloc(slot_count * sizeof *index->slots);
    index->mask = slot_count - 1;
    if (!index->slots) {
        return KVL_ERR_NOMEM;
    }
    memset(index->slots, 0xff, slot_count * sizeof *index->slots);
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        struct kvl_gguf_string key = key_of(tokenizer, id, by_text);
        if (key.bytes > 0 && wanted(&tokenizer->tokens[id])) {
            index->slots[find_slot(index, tokenizer, by_text, key)] = id;
        }
    }
    return KVL_OK;
}

void kvl_token_index_destroy(struct kvl_token_index *index) {
    free(index->slots);
    *index = (struct kvl_token_index){0};
}

uint32_t kvl_token_index_find(const struct kvl_token_index *index,
    const struct kvl_tokenizer *tokenizer, bool by_text, const char *text, uint64_t text_bytes) {
    struct kvl_gguf_string key = {text, text_bytes};
    return index->slots[find_slot(index, tokenizer, by_text, key)];
}
