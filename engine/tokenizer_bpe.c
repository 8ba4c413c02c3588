/* tokenizer_bpe.c - byte-level BPE with a pre-tokenizer ("tokenizer.ggml.model" = "gpt2").
 *
 * A pattern cuts the text into words; inside a word, bytes are joined by the file's merges, the
 * earliest merge of the list first, the leftmost among equals. The file writes bytes as printable
 * characters (GPT-2's byte-to-unicode table); everything here works on the bytes themselves. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"
#include "utf8.h"

/* What llama.cpp takes for white space; PCRE2's \s has U+180E on top. */
#define WS                                                                                         \
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"       \
    "\\x{3000}"

#define CACHED_WORD_BYTES 30
#define CACHED_WORD_IDS 8
#define CACHE_WORDS (1u << 15)

/* GPT-2's pattern with each digit a word of its own. Digits are cut first, so that a run of white
 * space before one ends there, like at the end of the text. */
static const struct pre_tokenizer {
    const char *name;
    const char *pattern;
} pre_tokenizers[] = {
    {"smollm", "\\p{N}|'(?:[stmd]|re|ve|ll)| ?\\p{L}++| ?[^" WS "\\p{L}\\p{N}]++|[" WS "]+(?![^" WS
               "\\p{N}])|[" WS "]+"},
};

struct merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: free */
    uint32_t rank;
    uint32_t merged;
};

struct cached_word {
    uint8_t bytes; /* 0: free */
    uint8_t count;
    char word[CACHED_WORD_BYTES];
    uint32_t ids[CACHED_WORD_IDS];
};
_Static_assert(sizeof(struct cached_word) == 64, "one cache line");

struct bpe {
    uint32_t byte_tokens[256]; /* KVL_TOKEN_NONE where the vocabulary has none */
    struct merge *merges;
    uint64_t merge_mask;
    pcre2_code *pattern;
    pcre2_match_data *match;
    struct cached_word *cache;
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

static kvl_err compile_pattern(
    struct bpe *bpe, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct kvl_gguf_string name = {"(none)", 6};
    kvl_gguf_string(gguf, "tokenizer.ggml.pre", &name);
    const char *pattern = NULL;
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof *pre_tokenizers; i++) {
        if (name.bytes == strlen(pre_tokenizers[i].name) &&
            memcmp(name.data, pre_tokenizers[i].name, name.bytes) == 0) {
            pattern = pre_tokenizers[i].pattern;
        }
    }
    if (!pattern) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: pre-tokenizer '%.*s' is not supported; 'smollm' is", kvl_gguf_path(gguf),
            (int)(name.bytes < 64 ? name.bytes : 64), name.data);
    }
    int error;
    size_t error_offset;
    bpe->pattern = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &error_offset, NULL);
    if (!bpe->pattern) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "this PCRE2 cannot compile the pre-tokenizer (error %d at %zu); it needs Unicode",
            error, error_offset);
    }
    /* Where the system forbids executable memory the interpreter gives the same words, slower. */
    (void)pcre2_jit_compile(bpe->pattern, PCRE2_JIT_COMPLETE);
    bpe->match = pcre2_match_data_create_from_pattern(bpe->pattern, NULL);
    return bpe->match ? KVL_OK : KVL_ERR_NOMEM;
}

static kvl_err bpe_create(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct bpe *bpe = calloc(1, sizeof *bpe);
    struct kvl_token_index index = {0};
    tokenizer->state = bpe;
    kvl_err err = KVL_ERR_NOMEM;
    if (!bpe) {
        goto cleanup;
    }
    make_pieces(tokenizer);
    err = compile_pattern(bpe, gguf, msg);
    if (!err) {
        err = kvl_token_index_create(&index, tokenizer, false, is_normal);
    }
    if (err) {
        goto cleanup;
    }
    for (int i = 0; i < 256; i++) {
        bpe->byte_tokens[i] = kvl_token_index_find(&index, tokenizer, false, &(char){(char)i}, 1);
    }
    struct merge_source source = {tokenizer, &index, NULL};
    err = load_merges(bpe, &source, gguf, msg);
    if (!err) {
        bpe->cache = calloc(CACHE_WORDS, sizeof *bpe->cache);
        err = bpe->cache ? KVL_OK : KVL_ERR_NOMEM;
    }
cleanup:
    kvl_token_index_destroy(&index);
    return err == KVL_ERR_NOMEM ? kvl_fail(msg, err, "%s: out of memory", kvl_gguf_path(gguf))
                                : err;
}

static void bpe_destroy(struct kvl_tokenizer *tokenizer) {
    struct bpe *bpe = tokenizer->state;
    if (!bpe) {
        return;
    }
    pcre2_match_data_free(bpe->match);
    pcre2_code_free(bpe->pattern);
    kvl_merger_free(&bpe->merger);
    free(bpe->merges);
    free(bpe->cache);
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

static struct cached_word *cache_slot(
    const struct bpe *bpe, const char *word, uint64_t word_bytes) {
    uint64_t hash = word_bytes;
    for (uint64_t at = 0; at < word_bytes; at += 8) {
        uint64_t part = 0;
        memcpy(&part, word + at, word_bytes - at < 8 ? word_bytes - at : 8);
        hash = (hash ^ part) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return &bpe->cache[hash % CACHE_WORDS];
}

static kvl_err encode_word(struct kvl_tokenizer *tokenizer, const char *word, uint64_t word_bytes,
    struct kvl_token_list *list) {
    struct bpe *bpe = tokenizer->state;
    if (word_bytes > CACHED_WORD_BYTES) {
        return merge_word(tokenizer, word, word_bytes, list);
    }
    struct cached_word *cached = cache_slot(bpe, word, word_bytes);
    kvl_err err = KVL_OK;
    if (cached->bytes == word_bytes && memcmp(cached->word, word, word_bytes) == 0) {
        for (uint8_t i = 0; i < cached->count && !err; i++) {
            err = kvl_token_list_push(list, cached->ids[i]);
        }
        return err;
    }
    uint64_t first = list->count;
    err = merge_word(tokenizer, word, word_bytes, list);
    uint64_t count = list->count - first;
    if (!err && count <= CACHED_WORD_IDS) {
        cached->bytes = (uint8_t)word_bytes;
        cached->count = (uint8_t)count;
        memcpy(cached->word, word, word_bytes);
        if (count > 0) {
            memcpy(cached->ids, list->ids + first, count * sizeof *cached->ids);
        }
    }
    return err;
}

/* Cuts by `view`, which is valid UTF-8, and encodes the bytes of `text` at the same places. */
static kvl_err encode_words(struct kvl_tokenizer *tokenizer, const char *text, const char *view,
    uint64_t text_bytes, struct kvl_token_list *list) {
    struct bpe *bpe = tokenizer->state;
    const size_t *range = pcre2_get_ovector_pointer(bpe->match);
    for (uint64_t at = 0; at < text_bytes;) {
        int found = pcre2_match(
            bpe->pattern, (PCRE2_SPTR)view, text_bytes, at, PCRE2_NO_UTF_CHECK, bpe->match, NULL);
        if (found < 0) { /* the pattern has an answer for every character: a resource ran out */
            return found == PCRE2_ERROR_NOMEMORY ? KVL_ERR_NOMEM : KVL_ERR_LIMIT;
        }
        kvl_err err = encode_word(tokenizer, text + at, range[1] - at, list);
        if (err) {
            return err;
        }
        at = range[1];
    }
    return KVL_OK;
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
    .adds_bos = false,
    .create = bpe_create,
    .encode = bpe_encode,
    .destroy = bpe_destroy,
};
