/* tokenizer_bpe.c - byte-level BPE with a pre-tokenizer ("tokenizer.ggml.model" = "gpt2").
 *
 * The pre-tokenizer cuts the text into words; inside a word, bytes are joined by the file's merges,
 * the earliest merge of the list first, the leftmost among equals. The file writes bytes as
 * printable characters (GPT-2's byte-to-unicode table); everything here works on the bytes
 * themselves. */
#include <stdlib.h>
#include <string.h>

#include "pre_tokenizer.h"
#include "tokenizer_internal.h"
#include "utf8.h"

struct merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: free */
    uint32_t rank;
    uint32_t merged;
};

struct bpe {
    uint32_t byte_tokens[256]; /* KVL_TOKEN_NONE where the vocabulary has none */
    struct merge *merges;
    uint64_t merge_mask;
    struct kvl_pre_tokenizer *pre;
    struct kvl_token_index words; /* by piece; kept where whole words need no merges */
    struct kvl_known_words known;
    struct kvl_merger merger;
};

/* Characters of GPT-2's table: printable Latin-1 stands for itself, the others, in order, are
 * U+0100 and up. -1 when the character is none of the table. */
static int byte_of_char(uint32_t character) {
    static const uint8_t moved_ranges[][2] = {{0, 32}, {127, 160}, {173, 173}};
    uint32_t next = 0x100;
    for (size_t i = 0; i < sizeof moved_ranges / sizeof *moved_ranges; i++) {
        uint32_t low = moved_ranges[i][0], count = moved_ranges[i][1] - low + 1;
        if (character >= next && character < next + count) {
            return (int)(low + character - next);
        }
        if (character >= low && character < low + count) {
            return -1;
        }
        next += count;
    }
    return character < 0x100 ? (int)character : -1;
}

/* Writes the bytes that text stands for; UINT64_MAX when it is not written in the table. */
static uint64_t decode_bytes(struct kvl_gguf_string text, char *out) {
    uint64_t written = 0;
    for (uint64_t at = 0; at < text.bytes; written++) {
        uint32_t bytes = kvl_utf8_char_bytes(text.data + at, text.bytes - at);
        const uint8_t *lead = (const uint8_t *)text.data + at;
        if (bytes != 1 && bytes != 2) {
            return UINT64_MAX;
        }
        int byte = byte_of_char(bytes == 1 ? lead[0] : (lead[0] & 0x1fu) << 6 | (lead[1] & 0x3fu));
        if (byte < 0) {
            return UINT64_MAX;
        }
        out[written] = (char)byte;
        at += bytes;
    }
    return written;
}

static void make_pieces(struct kvl_tokenizer *tokenizer) {
    char *out = tokenizer->arena;
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        struct kvl_token *token = &tokenizer->tokens[id];
        uint64_t bytes =
            token->kind == KVL_TOKEN_NORMAL ? decode_bytes(token->text, out) : UINT64_MAX;
        if (bytes == UINT64_MAX) { /* stands for its own text, and no merge leads to it */
            token->piece = token->text;
            continue;
        }
        token->piece = (struct kvl_gguf_string){out, bytes};
        out += bytes;
    }
}

static bool is_normal(const struct kvl_token *token) {
    return token->kind == KVL_TOKEN_NORMAL && token->piece.data != token->text.data;
}

static struct merge *merge_slot(const struct bpe *bpe, uint64_t pair) {
    uint64_t slot = (pair * UINT64_C(0x9e3779b97f4a7c15)) >> 20 & bpe->merge_mask;
    while (bpe->merges[slot].pair != pair && bpe->merges[slot].pair != UINT64_MAX) {
        slot = (slot + 1) & bpe->merge_mask;
    }
    return &bpe->merges[slot];
}

struct merge_source {
    const struct kvl_tokenizer *tokenizer;
    const struct kvl_token_index *index;
    char *scratch; /* as long as the longest merge */
};

static uint32_t find_written(
    const struct merge_source *source, const char *text, uint64_t text_bytes, char *out) {
    uint64_t bytes = decode_bytes((struct kvl_gguf_string){text, text_bytes}, out);
    return bytes == UINT64_MAX
               ? KVL_TOKEN_NONE
               : kvl_token_index_find(source->index, source->tokenizer, false, out, bytes);
}

/* "left right": false when a part, or the whole, is not in the vocabulary. */
static bool read_merge(
    const struct merge_source *source, struct kvl_gguf_string line, struct merge *merge) {
    const char *gap = line.bytes > 2 ? memchr(line.data + 1, ' ', line.bytes - 1) : NULL;
    if (!gap) {
        return false;
    }
    uint64_t left_bytes = (uint64_t)(gap - line.data), right_bytes = line.bytes - left_bytes - 1;
    uint32_t left = find_written(source, line.data, left_bytes, source->scratch);
    uint32_t right = find_written(source, gap + 1, right_bytes, source->scratch);
    if (left == KVL_TOKEN_NONE || right == KVL_TOKEN_NONE) {
        return false;
    }
    struct kvl_gguf_string a = source->tokenizer->tokens[left].piece;
    struct kvl_gguf_string b = source->tokenizer->tokens[right].piece;
    memcpy(source->scratch, a.data, a.bytes);
    memcpy(source->scratch + a.bytes, b.data, b.bytes);
    merge->merged = kvl_token_index_find(
        source->index, source->tokenizer, false, source->scratch, a.bytes + b.bytes);
    merge->pair = (uint64_t)left << 32 | right;
    return merge->merged != KVL_TOKEN_NONE;
}

static kvl_err fill_merges(struct bpe *bpe, const struct merge_source *source,
    const struct kvl_gguf_array *lines, const char *path, struct kvl_errmsg *msg) {
    for (uint64_t i = 0; i < lines->count; i++) {
        struct merge merge = {.rank = (uint32_t)i};
        if (!read_merge(source, lines->strings[i], &merge)) {
            return kvl_fail(msg, KVL_ERR_CORRUPT,
                "%s: merge %llu of tokenizer.ggml.merges does not join two tokens to a third", path,
                (unsigned long long)i);
        }
        struct merge *slot = merge_slot(bpe, merge.pair);
        if (slot->pair == UINT64_MAX) { /* of two equal pairs the first counts */
            *slot = merge;
        }
    }
    return KVL_OK;
}

static kvl_err load_merges(struct bpe *bpe, const struct merge_source *source,
    const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct kvl_gguf_array lines;
    const char *path = kvl_gguf_path(gguf);
    if (!kvl_gguf_array(gguf, "tokenizer.ggml.merges", &lines) ||
        lines.element_type != KVL_GGUF_STRING || lines.count >= UINT32_MAX / 2) {
        return kvl_fail(
            msg, KVL_ERR_CORRUPT, "%s: tokenizer.ggml.merges has to be a list of texts", path);
    }
    uint64_t slot_count = 16, longest = 0;
    for (uint64_t i = 0; i < lines.count; i++) {
        longest = lines.strings[i].bytes > longest ? lines.strings[i].bytes : longest;
    }
    while (slot_count < 2 * lines.count) {
        slot_count *= 2;
    }
    struct merge_source with_scratch = *source;
    with_scratch.scratch = malloc(longest + 1);
    bpe->merges = malloc(slot_count * sizeof *bpe->merges);
    bpe->merge_mask = slot_count - 1;
    kvl_err err = KVL_ERR_NOMEM;
    if (with_scratch.scratch && bpe->merges) {
        memset(bpe->merges, 0xff, slot_count * sizeof *bpe->merges);
        err = fill_merges(bpe, &with_scratch, &lines, path, msg);
    }
    free(with_scratch.scratch);
    return err;
}

/* A file that names no pre-tokenizer gets the one called default. */
static kvl_err create_pre_tokenizer(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct bpe *bpe = tokenizer->state;
    struct kvl_gguf_string name = {"default", 7};
    kvl_gguf_string(gguf, "tokenizer.ggml.pre", &name);
    kvl_err err = kvl_pre_tokenizer_create(name, kvl_gguf_path(gguf), &bpe->pre, msg);
    if (!err) {
        tokenizer->add_bos = kvl_pre_tokenizer_adds_bos(bpe->pre);
    }
    return err;
}

static kvl_err bpe_create(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct bpe *bpe = calloc(1, sizeof *bpe);
    tokenizer->state = bpe;
    if (!bpe) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", kvl_gguf_path(gguf));
    }
    make_pieces(tokenizer);
    kvl_err err = create_pre_tokenizer(tokenizer, gguf, msg);
    if (!err) {
        err = kvl_token_index_create(&bpe->words, tokenizer, false, is_normal);
    }
    if (err) {
        return err == KVL_ERR_NOMEM ? kvl_fail(msg, err, "%s: out of memory", kvl_gguf_path(gguf))
                                    : err;
    }
    for (int i = 0; i < 256; i++) {
        bpe->byte_tokens[i] =
            kvl_token_index_find(&bpe->words, tokenizer, false, &(char){(char)i}, 1);
    }
    struct merge_source source = {tokenizer, &bpe->words, NULL};
    err = load_merges(bpe, &source, gguf, msg);
    if (!err) {
        err = kvl_known_words_create(&bpe->known);
    }
    if (!err && !kvl_pre_tokenizer_ignores_merges(bpe->pre)) {
        kvl_token_index_destroy(&bpe->words);
    }
    return err == KVL_ERR_NOMEM ? kvl_fail(msg, err, "%s: out of memory", kvl_gguf_path(gguf))
                                : err;
}

static void bpe_destroy(struct kvl_tokenizer *tokenizer) {
    struct bpe *bpe = tokenizer->state;
    if (!bpe) {
        return;
    }
    kvl_pre_tokenizer_destroy(bpe->pre);
    kvl_token_index_destroy(&bpe->words);
    kvl_merger_free(&bpe->merger);
    free(bpe->merges);
    kvl_known_words_destroy(&bpe->known);
    free(bpe);
}

static bool bpe_rule(const struct kvl_tokenizer *tokenizer, const struct kvl_symbol *left,
    const struct kvl_symbol *right, uint32_t *priority, uint32_t *merged) {
    const struct bpe *bpe = tokenizer->state;
    if (left->id == KVL_TOKEN_NONE || right->id == KVL_TOKEN_NONE) {
        return false;
    }
    const struct merge *merge = merge_slot(bpe, (uint64_t)left->id << 32 | right->id);
    *priority = merge->rank;
    *merged = merge->merged;
    return merge->pair != UINT64_MAX;
}

static kvl_err merge_word(struct kvl_tokenizer *tokenizer, const char *word, uint64_t word_bytes,
    struct kvl_token_list *list) {
    struct bpe *bpe = tokenizer->state;
    kvl_err err = KVL_OK;
    if (bpe->words.slots) { /* merges may not lead to every word that is a token */
        uint32_t id = kvl_token_index_find(&bpe->words, tokenizer, false, word, word_bytes);
        if (id != KVL_TOKEN_NONE) {
            return kvl_token_list_push(list, id);
        }
    }
    kvl_merger_clear(&bpe->merger);
    for (uint64_t i = 0; i < word_bytes && !err; i++) {
        err = kvl_merger_add(&bpe->merger, word + i, 1, bpe->byte_tokens[(uint8_t)word[i]]);
    }
    if (!err) {
        err = kvl_merger_run(&bpe->merger, bpe_rule, tokenizer);
    }
    for (uint64_t i = 0; i < bpe->merger.count && !err; i++) {
        const struct kvl_symbol *symbol = &bpe->merger.symbols[i];
        if (symbol->bytes > 0 && symbol->id != KVL_TOKEN_NONE) {
            err = kvl_token_list_push(list, symbol->id);
        }
    }
    return err;
}

struct encoding {
    struct kvl_tokenizer *tokenizer;
    const char *text;
    struct kvl_token_list *list;
};

static kvl_err encode_cut_word(void *arg, uint64_t offset_bytes, uint64_t word_bytes) {
    const struct encoding *encoding = arg;
    struct bpe *bpe = encoding->tokenizer->state;
    return kvl_known_words_encode(&bpe->known, encoding->tokenizer, merge_word,
        (struct kvl_gguf_string){encoding->text + offset_bytes, word_bytes}, encoding->list);
}

/* Cuts by `view`, which is valid UTF-8, and encodes the bytes of `text` at the same places. */
static kvl_err encode_words(struct kvl_tokenizer *tokenizer, const char *text, const char *view,
    uint64_t text_bytes, struct kvl_token_list *list) {
    struct bpe *bpe = tokenizer->state;
    struct encoding encoding = {tokenizer, text, list};
    return kvl_pre_tokenizer_cut(bpe->pre, view, text_bytes, encode_cut_word, &encoding);
}

static uint64_t valid_prefix_bytes(const char *text, uint64_t text_bytes) {
    uint64_t at = 0;
    while (at < text_bytes) {
        uint32_t bytes = kvl_utf8_char_bytes(text + at, text_bytes - at);
        if (bytes == 0) {
            break;
        }
        at += bytes;
    }
    return at;
}

/* For a text that is not UTF-8. What the pattern sees of an invalid byte is a control character,
 * of the same class as U+FFFD; what is encoded is the byte, or U+FFFD where it has no token. */
static kvl_err encode_invalid(struct kvl_tokenizer *tokenizer, const char *text,
    uint64_t text_bytes, struct kvl_token_list *list) {
    const struct bpe *bpe = tokenizer->state;
    char *repaired = malloc(2 * 3 * text_bytes);
    if (!repaired) {
        return KVL_ERR_NOMEM;
    }
    char *view = repaired + 3 * text_bytes;
    uint64_t written = 0;
    for (uint64_t at = 0; at < text_bytes;) {
        uint32_t bytes = kvl_utf8_char_bytes(text + at, text_bytes - at);
        const char *from = text + at;
        at += bytes > 0 ? bytes : 1;
        if (bytes == 0 && bpe->byte_tokens[(uint8_t)*from] != KVL_TOKEN_NONE) {
            repaired[written] = *from;
            view[written++] = '\x01';
            continue;
        }
        if (bytes == 0) {
            from = "\xef\xbf\xbd";
            bytes = 3;
        }
        memcpy(repaired + written, from, bytes);
        memcpy(view + written, from, bytes);
        written += bytes;
    }
    kvl_err err = encode_words(tokenizer, repaired, view, written, list);
    free(repaired);
    return err;
}

static kvl_err bpe_encode(struct kvl_tokenizer *tokenizer, const char *text, uint64_t text_bytes,
    struct kvl_token_list *list) {
    if (valid_prefix_bytes(text, text_bytes) == text_bytes) {
        return encode_words(tokenizer, text, text, text_bytes, list);
    }
    return encode_invalid(tokenizer, text, text_bytes, list);
}

const struct kvl_tokenizer_ops kvl_tokenizer_bpe = {
    .model = "gpt2",
    .create = bpe_create,
    .encode = bpe_encode,
    .destroy = bpe_destroy,
};
