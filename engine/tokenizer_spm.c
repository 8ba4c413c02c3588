/* tokenizer_spm.c - SentencePiece as llama models use it ("tokenizer.ggml.model" = "llama").
 *
 * Spaces are written U+2581. The text begins as single characters; of all neighbours whose
 * concatenation is a token, the pair with the highest score is joined, the leftmost among equals.
 * A character that is no token becomes its bytes' tokens. */
#include <endian.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

#define PAIR_BITS (1u << 18)

static const char space_mark[3] = "\xe2\x96\x81"; /* U+2581 */

struct spm {
    struct kvl_token_index index; /* by text; no control or byte tokens */
    uint32_t *priorities;         /* by id: the highest score first */
    uint32_t byte_tokens[256];
    bool add_space_prefix;
    bool has_words;  /* no token goes on past a space into a word, or into the spaces before it */
    uint64_t *pairs; /* without words: bits, of which characters stand side by side in a token */
    struct kvl_known_words known;
    struct kvl_merger merger;
    char *escaped;
    uint64_t escaped_capacity_bytes;
};

static bool can_be_text(const struct kvl_token *token) {
    return token->kind == KVL_TOKEN_NORMAL || token->kind == KVL_TOKEN_USER_DEFINED;
}

/* Puts floats in order as integers, descending. */
static uint32_t priority_of(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are equal */
    memcpy(&bits, &score, sizeof bits);
    uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~ascending;
}

static kvl_err load_scores(struct spm *spm, const struct kvl_tokenizer *tokenizer,
    const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct kvl_gguf_array scores;
    if (!kvl_gguf_array(gguf, "tokenizer.ggml.scores", &scores) ||
        scores.element_type != KVL_GGUF_F32 || scores.count != tokenizer->vocab) {
        return kvl_fail(msg, KVL_ERR_CORRUPT, "%s: tokenizer.ggml.scores does not match the tokens",
            kvl_gguf_path(gguf));
    }
    spm->priorities = calloc(tokenizer->vocab, sizeof *spm->priorities);
    if (!spm->priorities) {
        return KVL_ERR_NOMEM;
    }
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        uint32_t bits;
        float score;
        memcpy(&bits, (const char *)scores.data + id * sizeof bits, sizeof bits);
        bits = le32toh(bits);
        memcpy(&score, &bits, sizeof score);
        if (isnan(score)) {
            return kvl_fail(msg, KVL_ERR_CORRUPT, "%s: the score of token %u is not a number",
                kvl_gguf_path(gguf), id);
        }
        spm->priorities[id] = priority_of(score);
    }
    return KVL_OK;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte of "<0x0A>", or -1. */
static int byte_of(struct kvl_gguf_string text) {
    if (text.bytes != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>') {
        return -1;
    }
    int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Writes what the token stands for to out, at most as many bytes as its text has. */
static uint64_t write_piece(const struct kvl_token *token, char *out) {
    int byte = token->kind == KVL_TOKEN_BYTE ? byte_of(token->text) : -1;
    if (byte >= 0) {
        *out = (char)byte;
        return 1;
    }
    uint64_t written = 0, at = 0;
    while (at < token->text.bytes) {
        if (token->kind == KVL_TOKEN_NORMAL && token->text.bytes - at >= sizeof space_mark &&
            memcmp(token->text.data + at, space_mark, sizeof space_mark) == 0) {
            out[written++] = ' ';
            at += sizeof space_mark;
        } else {
            out[written++] = token->text.data[at++];
        }
    }
    return written;
}

static void make_pieces(struct spm *spm, struct kvl_tokenizer *tokenizer, uint32_t unknown) {
    char *out = tokenizer->arena;
    for (int i = 0; i < 256; i++) {
        spm->byte_tokens[i] = unknown;
    }
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        struct kvl_token *token = &tokenizer->tokens[id];
        uint64_t bytes = write_piece(token, out);
        token->piece = (struct kvl_gguf_string){out, bytes};
        out += bytes;
        int byte = token->kind == KVL_TOKEN_BYTE ? byte_of(token->text) : -1;
        if (byte >= 0) {
            spm->byte_tokens[byte] = id;
        }
    }
}

/* Where a word begins: at a space mark that follows another character. text[at] begins one. */
static bool begins_word(const char *text, uint64_t text_bytes, uint64_t at) {
    return text_bytes - at >= sizeof space_mark &&
           memcmp(text + at, space_mark, sizeof space_mark) == 0 && at > 0 &&
           (at < sizeof space_mark ||
               memcmp(text + at - sizeof space_mark, space_mark, sizeof space_mark) != 0);
}

/* True when words, each with the spaces before it, never join: no token has a beginning of a word
 * inside. So it is in the vocabularies that SentencePiece trains unless told otherwise. */
static bool find_has_words(const struct kvl_tokenizer *tokenizer) {
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        const struct kvl_token *token = &tokenizer->tokens[id];
        for (uint64_t at = 1; can_be_text(token) && at < token->text.bytes; at++) {
            if (begins_word(token->text.data, token->text.bytes, at)) {
                return false;
            }
        }
    }
    return true;
}

/* By the lead byte alone, as llama.cpp cuts: invalid bytes end up as byte tokens either way. */
static uint64_t char_bytes(const char *text, uint64_t text_bytes) {
    uint8_t lead = (uint8_t)*text;
    uint64_t bytes = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    return bytes < text_bytes ? bytes : text_bytes;
}

/* The bit of two neighbouring characters. Two pairs may share one: then a text is cut less often
 * than it could be. */
static uint32_t pair_bit(const char *left, uint64_t left_bytes, uint64_t right_bytes) {
    uint32_t characters[2] = {0, 0};
    memcpy(&characters[0], left, left_bytes);
    memcpy(&characters[1], left + left_bytes, right_bytes);
    uint64_t both = (uint64_t)characters[0] << 32 | characters[1];
    return (uint32_t)((both * UINT64_C(0x9e3779b97f4a7c15)) >> 40) % PAIR_BITS;
}

static kvl_err find_pairs(struct spm *spm, const struct kvl_tokenizer *tokenizer) {
    spm->pairs = calloc(PAIR_BITS / 64, sizeof *spm->pairs);
    if (!spm->pairs) {
        return KVL_ERR_NOMEM;
    }
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        const struct kvl_gguf_string text = tokenizer->tokens[id].text;
        if (!can_be_text(&tokenizer->tokens[id]) || text.bytes == 0) {
            continue;
        }
        uint64_t at = 0, bytes = char_bytes(text.data, text.bytes);
        while (at + bytes < text.bytes) {
            uint64_t next = at + bytes,
                     next_bytes = char_bytes(text.data + next, text.bytes - next);
            uint32_t bit = pair_bit(text.data + at, bytes, next_bytes);
            spm->pairs[bit / 64] |= UINT64_C(1) << bit % 64;
            at = next;
            bytes = next_bytes;
        }
    }
    return KVL_OK;
}

/* Where the text that begins at text[0] ends for merging: no token has inside what stands on either
 * side of there, so nothing is joined across, and the rest of a long text stays out of the heap. */
static uint64_t joinable_bytes(const struct spm *spm, const char *text, uint64_t text_bytes) {
    uint64_t at = 0, bytes = char_bytes(text, text_bytes);
    while (at + bytes < text_bytes) {
        uint64_t next = at + bytes, next_bytes = char_bytes(text + next, text_bytes - next);
        uint32_t bit = pair_bit(text + at, bytes, next_bytes);
        if (!(spm->pairs[bit / 64] >> bit % 64 & 1)) {
            return next;
        }
        at = next;
        bytes = next_bytes;
    }
    return text_bytes;
}

static uint64_t word_bytes_of(const char *text, uint64_t text_bytes, uint64_t begin) {
    uint64_t end = begin + 1;
    while (end < text_bytes && !begins_word(text, text_bytes, end)) {
        end++;
    }
    return end - begin;
}

static kvl_err spm_create(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct spm *spm = calloc(1, sizeof *spm);
    tokenizer->state = spm;
    if (!spm) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", kvl_gguf_path(gguf));
    }
    uint64_t unknown;
    if (!kvl_gguf_u64(gguf, "tokenizer.ggml.unknown_token_id", &unknown)) {
        unknown = 0;
    }
    if (unknown >= tokenizer->vocab) {
        return kvl_fail(msg, KVL_ERR_CORRUPT, "%s: the unknown token is outside the vocabulary",
            kvl_gguf_path(gguf));
    }
    tokenizer->add_bos = true;
    spm->add_space_prefix = true;
    kvl_gguf_bool(gguf, "tokenizer.ggml.add_space_prefix", &spm->add_space_prefix);
    make_pieces(spm, tokenizer, (uint32_t)unknown);
    kvl_err err = load_scores(spm, tokenizer, gguf, msg);
    if (!err) {
        err = kvl_token_index_create(&spm->index, tokenizer, true, can_be_text);
    }
    if (!err) {
        spm->has_words = find_has_words(tokenizer);
        err = spm->has_words ? KVL_OK : find_pairs(spm, tokenizer);
    }
    if (!err) {
        err = kvl_known_words_create(&spm->known);
    }
    return err == KVL_ERR_NOMEM ? kvl_fail(msg, err, "%s: out of memory", kvl_gguf_path(gguf))
                                : err;
}

static void spm_destroy(struct kvl_tokenizer *tokenizer) {
    struct spm *spm = tokenizer->state;
    if (!spm) {
        return;
    }
    kvl_token_index_destroy(&spm->index);
    kvl_known_words_destroy(&spm->known);
    kvl_merger_free(&spm->merger);
    free(spm->priorities);
    free(spm->pairs);
    free(spm->escaped);
    free(spm);
}

static bool spm_rule(const struct kvl_tokenizer *tokenizer, const struct kvl_symbol *left,
    const struct kvl_symbol *right, uint32_t *priority, uint32_t *merged) {
    const struct spm *spm = tokenizer->state;
    *merged = kvl_token_index_find(
        &spm->index, tokenizer, true, left->text, (uint64_t)left->bytes + right->bytes);
    if (*merged == KVL_TOKEN_NONE) {
        return false;
    }
    *priority = spm->priorities[*merged];
    return true;
}

/* Leaves text with U+2581 for its spaces (and one before, where the model asks) in escaped. */
static kvl_err escape(
    struct spm *spm, const char *text, uint64_t text_bytes, uint64_t *escaped_bytes) {
    uint64_t needed = (text_bytes + 1) * sizeof space_mark;
    if (needed > spm->escaped_capacity_bytes) {
        char *grown = realloc(spm->escaped, needed);
        if (!grown) {
            return KVL_ERR_NOMEM;
        }
        spm->escaped = grown;
        spm->escaped_capacity_bytes = needed;
    }
    char *out = spm->escaped;
    if (spm->add_space_prefix) {
        out = mempcpy(out, space_mark, sizeof space_mark);
    }
    for (uint64_t i = 0; i < text_bytes; i++) {
        if (text[i] == ' ') {
            out = mempcpy(out, space_mark, sizeof space_mark);
        } else {
            *out++ = text[i];
        }
    }
    *escaped_bytes = (uint64_t)(out - spm->escaped);
    return KVL_OK;
}

static kvl_err push_symbol(
    const struct spm *spm, const struct kvl_symbol *symbol, struct kvl_token_list *list) {
    if (symbol->id != KVL_TOKEN_NONE && symbol->bytes > 0) {
        return kvl_token_list_push(list, symbol->id);
    }
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; i < symbol->bytes && !err; i++) {
        err = kvl_token_list_push(list, spm->byte_tokens[(uint8_t)symbol->text[i]]);
    }
    return err;
}

static kvl_err merge_word(struct kvl_tokenizer *tokenizer, const char *word, uint64_t word_bytes,
    struct kvl_token_list *list) {
    struct spm *spm = tokenizer->state;
    kvl_err err = KVL_OK;
    kvl_merger_clear(&spm->merger);
    for (uint64_t at = 0; at < word_bytes && !err;) {
        uint64_t bytes = char_bytes(word + at, word_bytes - at);
        uint32_t id = kvl_token_index_find(&spm->index, tokenizer, true, word + at, bytes);
        err = kvl_merger_add(&spm->merger, word + at, (uint32_t)bytes, id);
        at += bytes;
    }
    if (!err) {
        err = kvl_merger_run(&spm->merger, spm_rule, tokenizer);
    }
    for (uint64_t i = 0; i < spm->merger.count && !err; i++) {
        err = push_symbol(spm, &spm->merger.symbols[i], list);
    }
    return err;
}

static kvl_err spm_encode(struct kvl_tokenizer *tokenizer, const char *text, uint64_t text_bytes,
    struct kvl_token_list *list) {
    struct spm *spm = tokenizer->state;
    uint64_t escaped_bytes = 0;
    kvl_err err = escape(spm, text, text_bytes, &escaped_bytes);
    for (uint64_t begin = 0, bytes; begin < escaped_bytes && !err; begin += bytes) {
        const char *word = spm->escaped + begin;
        bytes = spm->has_words ? word_bytes_of(spm->escaped, escaped_bytes, begin)
                               : joinable_bytes(spm, word, escaped_bytes - begin);
        err = kvl_known_words_encode(
            &spm->known, tokenizer, merge_word, (struct kvl_gguf_string){word, bytes}, list);
    }
    return err;
}

const struct kvl_tokenizer_ops kvl_tokenizer_spm = {
    .model = "llama",
    .create = spm_create,
    .encode = spm_encode,
    .destroy = spm_destroy,
};
