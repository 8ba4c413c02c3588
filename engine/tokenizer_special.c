/* tokenizer_special.c - cuts a text at its special tokens.
 *
 * The order is llama.cpp's: a longer token before any shorter one, wherever they stand; of equally
 * long ones the lower id first; each from the left. Files may have thousands of special tokens, so
 * the text is not searched for one after the other: one walk finds the stretches in which special
 * tokens stand or overlap, and only those are cut in that order. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"
#include "utf8.h"

#define SPECIALS_MAX 16384 /* bounds the recursion of cut_stretch */

static bool is_special(const struct kvl_token *token) {
    return token->text.bytes > 0 &&
           (token->looks_control || token->kind == KVL_TOKEN_CONTROL ||
               token->kind == KVL_TOKEN_USER_DEFINED || token->kind == KVL_TOKEN_UNKNOWN);
}

struct special {
    struct kvl_gguf_string text;
    uint32_t id;
    uint32_t rank; /* of the order of cutting */
};

static int longest_first(const void *left, const void *right) {
    const struct special *a = left, *b = right;
    if (a->text.bytes != b->text.bytes) {
        return a->text.bytes < b->text.bytes ? 1 : -1;
    }
    return (a->id > b->id) - (a->id < b->id);
}

static int by_text(const void *left, const void *right) {
    const struct special *a = left, *b = right;
    uint64_t shorter = a->text.bytes < b->text.bytes ? a->text.bytes : b->text.bytes;
    int order = memcmp(a->text.data, b->text.data, shorter);
    return order != 0 ? order : (a->text.bytes > b->text.bytes) - (a->text.bytes < b->text.bytes);
}

static void mark_start(struct kvl_specials *specials, unsigned first, unsigned second) {
    unsigned start = first << 8 | second;
    specials->starts[start / 64] |= UINT64_C(1) << (start % 64);
}

static void mark_starts(struct kvl_specials *specials, struct kvl_gguf_string text) {
    if (text.bytes > 1) {
        mark_start(specials, (uint8_t)text.data[0], (uint8_t)text.data[1]);
        return;
    }
    for (unsigned second = 0; second < 256; second++) {
        mark_start(specials, (uint8_t)text.data[0], second);
    }
}

/* Of equal texts the lower id comes first, and counts. */
static void mark_single(struct kvl_specials *specials, const struct special *special) {
    uint32_t *single = &specials->single[(uint8_t)special->text.data[0]];
    if (special->text.bytes == 1 && *single == KVL_TOKEN_NONE) {
        *single = special->rank;
    }
}

static void fill(struct kvl_specials *specials, struct special *sorted) {
    memset(specials->single, 0xff, sizeof specials->single);
    qsort(sorted, specials->count, sizeof *sorted, longest_first);
    for (uint32_t i = 0; i < specials->count; i++) {
        specials->ids[i] = sorted[i].id;
        sorted[i].rank = i;
        mark_starts(specials, sorted[i].text);
        mark_single(specials, &sorted[i]);
    }
    qsort(sorted, specials->count, sizeof *sorted, by_text);
    for (uint32_t i = 0; i < specials->count; i++) {
        specials->by_text[i] = sorted[i].rank;
    }
}

kvl_err kvl_specials_create(
    struct kvl_tokenizer *tokenizer, const char *path, struct kvl_errmsg *msg) {
    struct kvl_specials *specials = &tokenizer->specials;
    uint32_t count = 0;
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        count += is_special(&tokenizer->tokens[id]);
    }
    if (count > SPECIALS_MAX) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "%s: %u special tokens; up to %d are supported",
            path, count, SPECIALS_MAX);
    }
    struct special *sorted = calloc((uint64_t)count + 1, sizeof *sorted);
    specials->ids = calloc(3 * ((uint64_t)count + 1), sizeof *specials->ids);
    specials->starts = calloc(65536 / 64, sizeof *specials->starts);
    if (!sorted || !specials->ids || !specials->starts) {
        free(sorted);
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", path);
    }
    specials->by_text = specials->ids + count + 1;
    specials->stretch = specials->by_text + count + 1;
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        if (is_special(&tokenizer->tokens[id])) {
            sorted[specials->count++] = (struct special){tokenizer->tokens[id].text, id, 0};
        }
    }
    fill(specials, sorted);
    free(sorted);
    return KVL_OK;
}

void kvl_specials_destroy(struct kvl_specials *specials) {
    free(specials->ids);
    free(specials->starts);
    *specials = (struct kvl_specials){0};
}

struct cutting {
    struct kvl_tokenizer *tokenizer;
    struct kvl_specials *specials;
    struct kvl_gguf_string text;
    uint64_t raw_begin; /* of the text that is no special token and not yet encoded */
    bool parse_special;
    struct kvl_token_list *list;
    /* the stretch under way: the ranks of its tokens, ascending, and where it begins and ends */
    uint32_t rank_count;
    uint64_t begin, end;
};

static const struct kvl_token *token_of_rank(const struct cutting *cutting, uint32_t rank) {
    return &cutting->tokenizer->tokens[cutting->specials->ids[rank]];
}

static kvl_err encode_raw(struct cutting *cutting, uint64_t end) {
    uint64_t begin = cutting->raw_begin;
    return end > begin ? cutting->tokenizer->ops->encode(cutting->tokenizer,
                             cutting->text.data + begin, end - begin, cutting->list)
                       : KVL_OK;
}

static kvl_err take_special(struct cutting *cutting, uint32_t rank, uint64_t at) {
    const struct kvl_token *token = token_of_rank(cutting, rank);
    kvl_err err = encode_raw(cutting, at);
    cutting->raw_begin = at + token->text.bytes;
    while (token->strips_right && cutting->raw_begin < cutting->text.bytes &&
           kvl_is_ascii_space(cutting->text.data[cutting->raw_begin])) {
        cutting->raw_begin++;
    }
    return err ? err : kvl_token_list_push(cutting->list, cutting->specials->ids[rank]);
}

/* Takes the special tokens of [begin, end) from stretch[from] on, in the order of the text. */
static kvl_err cut_stretch(struct cutting *cutting, uint32_t from, uint64_t begin, uint64_t end) {
    for (uint32_t i = from; i < cutting->rank_count && begin < end; i++) {
        uint32_t rank = cutting->specials->stretch[i];
        struct kvl_gguf_string wanted = token_of_rank(cutting, rank)->text;
        const char *hit;
        while (begin < end &&
               (hit = memmem(cutting->text.data + begin, end - begin, wanted.data, wanted.bytes))) {
            uint64_t at = (uint64_t)(hit - cutting->text.data);
            kvl_err err = cut_stretch(cutting, i + 1, begin, at);
            err = err ? err : take_special(cutting, rank, at);
            if (err) {
                return err;
            }
            begin = at + wanted.bytes;
        }
    }
    return KVL_OK;
}

static void add_to_stretch(struct cutting *cutting, uint32_t rank) {
    uint32_t *stretch = cutting->specials->stretch, at = cutting->rank_count;
    while (at > 0 && stretch[at - 1] > rank) {
        at--;
    }
    if (at > 0 && stretch[at - 1] == rank) {
        return;
    }
    memmove(&stretch[at + 1], &stretch[at], (cutting->rank_count - at) * sizeof *stretch);
    stretch[at] = rank;
    cutting->rank_count++;
}

/* The first of by_text that is not below these two bytes. */
static uint32_t first_with_start(const struct cutting *cutting, const char start[2]) {
    uint32_t low = 0, high = cutting->specials->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        struct kvl_gguf_string text =
            token_of_rank(cutting, cutting->specials->by_text[middle])->text;
        int order = memcmp(text.data, start, text.bytes < 2 ? 1 : 2);
        if (order < 0 || (order == 0 && text.bytes < 2)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void match(struct cutting *cutting, uint64_t at, uint32_t rank) {
    const struct kvl_token *token = token_of_rank(cutting, rank);
    uint64_t end = at + token->text.bytes;
    if (end > cutting->text.bytes ||
        memcmp(token->text.data, cutting->text.data + at, token->text.bytes) != 0 ||
        (!cutting->parse_special && token->kind != KVL_TOKEN_USER_DEFINED)) {
        return;
    }
    cutting->begin = cutting->rank_count > 0 ? cutting->begin : at;
    cutting->end = cutting->rank_count > 0 && cutting->end > end ? cutting->end : end;
    add_to_stretch(cutting, rank);
}

/* Adds the special tokens that the text has at `at` to the stretch. */
static void match_at(struct cutting *cutting, uint64_t at) {
    const struct kvl_specials *specials = cutting->specials;
    const char *start = cutting->text.data + at;
    uint32_t single = specials->single[(uint8_t)*start];
    if (single != KVL_TOKEN_NONE) {
        match(cutting, at, single);
    }
    if (cutting->text.bytes - at < 2) {
        return;
    }
    for (uint32_t i = first_with_start(cutting, start); i < specials->count; i++) {
        struct kvl_gguf_string text = token_of_rank(cutting, specials->by_text[i])->text;
        if (text.bytes < 2 || memcmp(text.data, start, 2) != 0) {
            break;
        }
        match(cutting, at, specials->by_text[i]);
    }
}

static bool may_start(const struct kvl_specials *specials, const char *at, uint64_t left) {
    unsigned start = (unsigned)(uint8_t)at[0] << 8 | (left > 1 ? (uint8_t)at[1] : 0);
    return specials->starts[start / 64] >> (start % 64) & 1;
}

kvl_err kvl_specials_cut(struct kvl_tokenizer *tokenizer, struct kvl_gguf_string text,
    bool parse_special, struct kvl_token_list *list) {
    struct cutting cutting = {.tokenizer = tokenizer,
        .specials = &tokenizer->specials,
        .text = text,
        .parse_special = parse_special,
        .list = list};
    for (uint64_t at = 0; at < text.bytes; at++) {
        if (cutting.rank_count > 0 && at >= cutting.end) {
            kvl_err err = cut_stretch(&cutting, 0, cutting.begin, cutting.end);
            if (err) {
                return err;
            }
            cutting.rank_count = 0;
        }
        if (may_start(cutting.specials, text.data + at, text.bytes - at)) {
            match_at(&cutting, at);
        }
    }
    kvl_err err = cut_stretch(&cutting, 0, cutting.begin, cutting.end);
    return err ? err : encode_raw(&cutting, text.bytes);
}

uint32_t kvl_tokenizer_special(const struct kvl_tokenizer *tokenizer, const char *text) {
    for (uint32_t i = 0; i < tokenizer->specials.count; i++) {
        struct kvl_gguf_string there = tokenizer->tokens[tokenizer->specials.ids[i]].text;
        if (there.bytes == strlen(text) && memcmp(there.data, text, there.bytes) == 0) {
            return tokenizer->specials.ids[i];
        }
    }
    return KVL_TOKEN_NONE;
}

uint32_t kvl_tokenizer_special_at(
    const struct kvl_tokenizer *tokenizer, struct kvl_gguf_string text, uint64_t *bytes) {
    for (uint32_t i = 0; i < tokenizer->specials.count; i++) {
        struct kvl_gguf_string there = tokenizer->tokens[tokenizer->specials.ids[i]].text;
        if (there.bytes <= text.bytes && memcmp(there.data, text.data, there.bytes) == 0) {
            *bytes = there.bytes;
            return tokenizer->specials.ids[i];
        }
    }
    uint32_t char_bytes = kvl_utf8_char_bytes(text.data, text.bytes);
    *bytes = char_bytes > 0 ? char_bytes : 1;
    return KVL_TOKEN_NONE;
}

void kvl_tokenizer_make_control(struct kvl_tokenizer *tokenizer, uint32_t id) {
    tokenizer->tokens[id].kind = KVL_TOKEN_CONTROL;
}
