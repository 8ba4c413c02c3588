/* tokenizer.c - the vocabulary of a model file, and the part that all tokenizers share: BOS and
 * the cutting of a text at its special tokens. */
#include "tokenizer.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

#define TEXT_BYTES_MAX (UINT64_C(1) << 30)
#define VOCAB_MAX (UINT64_C(1) << 24)
#define SPECIALS_MAX 16384 /* bounds the recursion of encode_from */

static const struct kvl_tokenizer_ops *const algorithms[] = {
    &kvl_tokenizer_bpe, &kvl_tokenizer_spm};
#define ALGORITHM_COUNT (sizeof algorithms / sizeof *algorithms)

kvl_err kvl_token_list_push(struct kvl_token_list *list, uint32_t id) {
    if (list->count == list->capacity) {
        uint64_t capacity = list->capacity > 0 ? 2 * list->capacity : 64;
        uint32_t *grown = realloc(list->ids, capacity * sizeof *grown);
        if (!grown) {
            return KVL_ERR_NOMEM;
        }
        list->ids = grown;
        list->capacity = capacity;
    }
    list->ids[list->count++] = id;
    return KVL_OK;
}

void kvl_token_list_free(struct kvl_token_list *list) {
    free(list->ids);
    *list = (struct kvl_token_list){0};
}

static bool text_is(struct kvl_gguf_string text, const char *wanted) {
    return text.bytes == strlen(wanted) && memcmp(text.data, wanted, text.bytes) == 0;
}

static kvl_err choose_algorithm(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct kvl_gguf_string model;
    if (!kvl_gguf_string(gguf, "tokenizer.ggml.model", &model)) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: has no tokenizer (tokenizer.ggml.model); use a file with one",
            kvl_gguf_path(gguf));
    }
    for (size_t i = 0; i < ALGORITHM_COUNT; i++) {
        if (text_is(model, algorithms[i]->model)) {
            tokenizer->ops = algorithms[i];
            return KVL_OK;
        }
    }
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "%s: tokenizer model '%.*s' is not supported; 'gpt2' (with pre-tokenizer smollm) and "
        "'llama' are",
        kvl_gguf_path(gguf), (int)(model.bytes < 64 ? model.bytes : 64), model.data);
}

/* Some kinds, and files without kinds, are read leniently: what is unknown is a normal token. */
static uint8_t token_kind(const struct kvl_gguf_array *kinds, uint64_t at) {
    if (!kinds->data) {
        return KVL_TOKEN_NORMAL;
    }
    uint32_t kind;
    memcpy(&kind, (const char *)kinds->data + at * sizeof kind, sizeof kind);
    kind = le32toh(kind);
    return kind >= KVL_TOKEN_NORMAL && kind <= KVL_TOKEN_BYTE ? (uint8_t)kind : KVL_TOKEN_NORMAL;
}

static kvl_err load_tokens(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct kvl_gguf_array texts, kinds = {0};
    const char *path = kvl_gguf_path(gguf);
    if (!kvl_gguf_array(gguf, "tokenizer.ggml.tokens", &texts) || !texts.strings ||
        texts.count > VOCAB_MAX) {
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: tokenizer.ggml.tokens has to be a list of 1 to %llu texts", path,
            (unsigned long long)VOCAB_MAX);
    }
    if (kvl_gguf_array(gguf, "tokenizer.ggml.token_type", &kinds) &&
        ((kinds.element_type != KVL_GGUF_I32 && kinds.element_type != KVL_GGUF_U32) ||
            kinds.count != texts.count)) {
        return kvl_fail(
            msg, KVL_ERR_CORRUPT, "%s: tokenizer.ggml.token_type does not match the tokens", path);
    }
    uint64_t arena_bytes = 1;
    for (uint64_t i = 0; i < texts.count; i++) {
        arena_bytes += texts.strings[i].bytes; /* no overflow: they lie in the file, apart */
    }
    tokenizer->tokens = calloc(texts.count, sizeof *tokenizer->tokens);
    tokenizer->arena = malloc(arena_bytes);
    if (!tokenizer->tokens || !tokenizer->arena) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", path);
    }
    tokenizer->vocab = (uint32_t)texts.count;
    for (uint32_t i = 0; i < tokenizer->vocab; i++) {
        tokenizer->tokens[i].text = texts.strings[i];
        tokenizer->tokens[i].kind = token_kind(&kinds, i);
    }
    return KVL_OK;
}

static bool is_special(const struct kvl_token *token) {
    return token->text.bytes > 0 &&
           (token->kind == KVL_TOKEN_CONTROL || token->kind == KVL_TOKEN_USER_DEFINED ||
               token->kind == KVL_TOKEN_UNKNOWN);
}

struct special {
    uint64_t bytes;
    uint32_t id;
};

static int longest_first(const void *left, const void *right) {
    const struct special *a = left, *b = right;
    if (a->bytes != b->bytes) {
        return a->bytes < b->bytes ? 1 : -1;
    }
    return (a->id > b->id) - (a->id < b->id);
}

static kvl_err collect_specials(
    struct kvl_tokenizer *tokenizer, const char *path, struct kvl_errmsg *msg) {
    uint32_t count = 0;
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        count += is_special(&tokenizer->tokens[id]);
    }
    if (count > SPECIALS_MAX) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "%s: %u special tokens; up to %d are supported",
            path, count, SPECIALS_MAX);
    }
    struct special *specials = calloc((uint64_t)count + 1, sizeof *specials);
    tokenizer->specials = calloc((uint64_t)count + 1, sizeof *tokenizer->specials);
    if (!specials || !tokenizer->specials) {
        free(specials);
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", path);
    }
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        if (is_special(&tokenizer->tokens[id])) {
            specials[tokenizer->special_count++] =
                (struct special){tokenizer->tokens[id].text.bytes, id};
        }
    }
    qsort(specials, count, sizeof *specials, longest_first);
    for (uint32_t i = 0; i < count; i++) {
        tokenizer->specials[i] = specials[i].id;
    }
    free(specials);
    return KVL_OK;
}

static uint32_t named_token(
    const struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, const char *key) {
    uint64_t id;
    return kvl_gguf_u64(gguf, key, &id) && id < tokenizer->vocab ? (uint32_t)id : KVL_TOKEN_NONE;
}

static void find_ends(struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id"};
    static const char *const texts[] = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>",
        "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        uint32_t id = named_token(tokenizer, gguf, keys[i]);
        if (id != KVL_TOKEN_NONE) {
            tokenizer->tokens[id].ends_generation = true;
        }
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        uint32_t id = kvl_tokenizer_special(tokenizer, texts[i]);
        if (id != KVL_TOKEN_NONE) {
            tokenizer->tokens[id].ends_generation = true;
        }
    }
}

static kvl_err load(
    struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    kvl_err err = choose_algorithm(tokenizer, gguf, msg);
    if (!err) {
        err = load_tokens(tokenizer, gguf, msg);
    }
    if (!err) {
        err = collect_specials(tokenizer, kvl_gguf_path(gguf), msg);
    }
    if (!err) {
        assert(tokenizer->ops); /* no algorithm, no success */
        err = tokenizer->ops->create(tokenizer, gguf, msg);
    }
    if (err) {
        return err;
    }
    tokenizer->bos = named_token(tokenizer, gguf, "tokenizer.ggml.bos_token_id");
    tokenizer->eos = named_token(tokenizer, gguf, "tokenizer.ggml.eos_token_id");
    tokenizer->add_bos = tokenizer->ops->adds_bos;
    kvl_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->add_bos);
    if (tokenizer->add_bos && tokenizer->bos == KVL_TOKEN_NONE) {
        return kvl_fail(
            msg, KVL_ERR_CORRUPT, "%s: asks for a BOS token and names none", kvl_gguf_path(gguf));
    }
    find_ends(tokenizer, gguf);
    return KVL_OK;
}

kvl_err kvl_tokenizer_create(
    const struct kvl_gguf *gguf, struct kvl_tokenizer **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", kvl_gguf_path(gguf));
    }
    kvl_err err = load(tokenizer, gguf, msg);
    if (err) {
        kvl_tokenizer_destroy(tokenizer);
        return err;
    }
    *out = tokenizer;
    return KVL_OK;
}

void kvl_tokenizer_destroy(struct kvl_tokenizer *tokenizer) {
    if (!tokenizer) {
        return;
    }
    if (tokenizer->ops) {
        tokenizer->ops->destroy(tokenizer);
    }
    free(tokenizer->tokens);
    free(tokenizer->arena);
    free(tokenizer->specials);
    free(tokenizer);
}

/* Cuts text at the special tokens from specials[from] on, a longer token before any shorter one,
 * wherever they stand, as llama.cpp does. */
static kvl_err encode_from(struct kvl_tokenizer *tokenizer, struct kvl_gguf_string text,
    uint32_t from, bool parse_special, struct kvl_token_list *list) {
    kvl_err err = KVL_OK;
    for (uint32_t i = from; i < tokenizer->special_count; i++) {
        uint32_t id = tokenizer->specials[i];
        const struct kvl_token *token = &tokenizer->tokens[id];
        if (!parse_special && token->kind != KVL_TOKEN_USER_DEFINED) {
            continue;
        }
        const char *hit;
        while (text.bytes > 0 &&
               (hit = memmem(text.data, text.bytes, token->text.data, token->text.bytes))) {
            struct kvl_gguf_string before = {text.data, (uint64_t)(hit - text.data)};
            err = encode_from(tokenizer, before, i + 1, parse_special, list);
            err = err ? err : kvl_token_list_push(list, id);
            if (err) {
                return err;
            }
            text.data = hit + token->text.bytes;
            text.bytes -= before.bytes + token->text.bytes;
        }
    }
    return text.bytes > 0 ? tokenizer->ops->encode(tokenizer, text.data, text.bytes, list) : KVL_OK;
}

kvl_err kvl_tokenize(struct kvl_tokenizer *tokenizer, const char *text, uint64_t text_bytes,
    unsigned flags, struct kvl_token_list *list) {
    uint64_t count_before = list->count;
    if (text_bytes > TEXT_BYTES_MAX) {
        return KVL_ERR_TOOBIG;
    }
    kvl_err err = KVL_OK;
    if ((flags & KVL_TOKENIZE_ADD_BOS) && tokenizer->add_bos) {
        err = kvl_token_list_push(list, tokenizer->bos);
    }
    if (!err) {
        err = encode_from(tokenizer, (struct kvl_gguf_string){text, text_bytes}, 0,
            flags & KVL_TOKENIZE_PARSE_SPECIAL, list);
    }
    if (err) {
        list->count = count_before;
    }
    return err;
}

struct kvl_gguf_string kvl_token_piece(const struct kvl_tokenizer *tokenizer, uint32_t id) {
    return id < tokenizer->vocab ? tokenizer->tokens[id].piece : (struct kvl_gguf_string){"", 0};
}

uint32_t kvl_tokenizer_vocab(const struct kvl_tokenizer *tokenizer) {
    return tokenizer->vocab;
}

uint32_t kvl_tokenizer_bos(const struct kvl_tokenizer *tokenizer) {
    return tokenizer->bos;
}

uint32_t kvl_tokenizer_eos(const struct kvl_tokenizer *tokenizer) {
    return tokenizer->eos;
}

uint32_t kvl_tokenizer_special(const struct kvl_tokenizer *tokenizer, const char *text) {
    for (uint32_t i = 0; i < tokenizer->special_count; i++) {
        if (text_is(tokenizer->tokens[tokenizer->specials[i]].text, text)) {
            return tokenizer->specials[i];
        }
    }
    return KVL_TOKEN_NONE;
}

bool kvl_token_is_end_of_generation(const struct kvl_tokenizer *tokenizer, uint32_t id) {
    return id < tokenizer->vocab && tokenizer->tokens[id].ends_generation;
}

bool kvl_token_is_control(const struct kvl_tokenizer *tokenizer, uint32_t id) {
    return id < tokenizer->vocab && (tokenizer->tokens[id].kind == KVL_TOKEN_CONTROL ||
                                        tokenizer->tokens[id].kind == KVL_TOKEN_UNKNOWN);
}
