/* tokenizer.c - the vocabulary of a model file, and what all tokenizers share. */
#include "tokenizer.h"

#include <assert.h>
#include <ctype.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

#define TEXT_BYTES_MAX (UINT64_C(1) << 30)
#define VOCAB_MAX (UINT64_C(1) << 24)

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
        "%s: tokenizer model '%.*s' is not supported; 'gpt2' and 'llama' are", kvl_gguf_path(gguf),
        (int)(model.bytes < 64 ? model.bytes : 64), model.data);
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

static uint32_t named_token(
    const struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf, const char *key) {
    uint64_t id;
    return kvl_gguf_u64(gguf, key, &id) && id < tokenizer->vocab ? (uint32_t)id : KVL_TOKEN_NONE;
}

/* What models end a turn or a text with. */
static const char *const end_texts[] = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>",
    "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>", "<eos>", "<EOT>", "_<EOT>",
    "[EOT]", "[EOS]", "<end_of_utterance>", "<|return|>", "<|call|>",
    ("<\xef\xbd\x9c"
     "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>")};
/* Marks of filling in the middle. */
static const char *const middle_texts[] = {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<|fim_middle|>", "<fim-middle>",
    "<fim_middle>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<fim_repo>", "<reponame>", "<|file_sep|>"};

static bool is_one_of(struct kvl_gguf_string text, const char *const *texts, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (text_is(text, texts[i])) {
            return true;
        }
    }
    return false;
}

/* Files often give these tokens another kind, with which a user's text could become one. llama.cpp
 * goes by their texts too. One that is a normal token keeps its merges (Qwen2's </s>). */
static void set_control_kinds(struct kvl_tokenizer *tokenizer) {
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        struct kvl_token *token = &tokenizer->tokens[id];
        if (token->text.bytes < 4 || !memchr("<[_", token->text.data[0], 3)) {
            continue;
        }
        bool is_end = is_one_of(token->text, end_texts, sizeof end_texts / sizeof *end_texts);
        token->looks_control = is_end || is_one_of(token->text, middle_texts,
                                             sizeof middle_texts / sizeof *middle_texts);
        if (token->looks_control && token->kind != KVL_TOKEN_NORMAL) {
            token->kind = KVL_TOKEN_CONTROL;
            token->ends_generation = is_end;
        }
    }
}

static void find_ends(struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        uint32_t id = named_token(tokenizer, gguf, keys[i]);
        if (id != KVL_TOKEN_NONE) {
            tokenizer->tokens[id].ends_generation = true;
        }
    }
}

/* In Phi-3's tokenizer white space behind a special token belongs to it, but for these three. GGUF
 * has no field for that; as in llama.cpp the model's name tells. */
static void find_strips(struct kvl_tokenizer *tokenizer, const struct kvl_gguf *gguf) {
    static const char *const plain[] = {"<unk>", "<s>", "<|endoftext|>"};
    struct kvl_gguf_string name;
    char lower[256] = "";
    if (!kvl_gguf_string(gguf, "general.name", &name)) {
        return;
    }
    for (uint64_t i = 0; i < name.bytes && i < sizeof lower - 1; i++) {
        lower[i] = (char)tolower((uint8_t)name.data[i]);
    }
    if (!strstr(lower, "phi-3") && !strstr(lower, "phi3")) {
        return;
    }
    for (uint32_t i = 0; i < tokenizer->specials.count; i++) {
        struct kvl_token *token = &tokenizer->tokens[tokenizer->specials.ids[i]];
        token->strips_right = true;
        for (size_t j = 0; j < sizeof plain / sizeof *plain; j++) {
            token->strips_right &= !text_is(token->text, plain[j]);
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
        set_control_kinds(tokenizer);
        err = kvl_specials_create(tokenizer, kvl_gguf_path(gguf), msg);
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
    kvl_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->add_bos);
    if (tokenizer->add_bos && tokenizer->bos == KVL_TOKEN_NONE) {
        return kvl_fail(
            msg, KVL_ERR_CORRUPT, "%s: asks for a BOS token and names none", kvl_gguf_path(gguf));
    }
    find_ends(tokenizer, gguf);
    find_strips(tokenizer, gguf);
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
    kvl_specials_destroy(&tokenizer->specials);
    free(tokenizer);
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
        err = kvl_specials_cut(tokenizer, (struct kvl_gguf_string){text, text_bytes},
            flags & KVL_TOKENIZE_PARSE_SPECIAL, list);
    }
    if (err) {
        list->count = count_before;
    }
    return err;
}

kvl_err kvl_tokenize_after(struct kvl_tokenizer *tokenizer, const char *text, uint64_t text_bytes,
    struct kvl_token_list *list) {
    uint32_t last = list->count > 0 ? list->ids[list->count - 1] : KVL_TOKEN_NONE;
    bool strips = last < tokenizer->vocab && tokenizer->tokens[last].strips_right;
    while (strips && text_bytes > 0 && kvl_is_ascii_space(*text)) {
        text++;
        text_bytes--;
    }
    return kvl_tokenize(tokenizer, text, text_bytes, 0, list);
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

bool kvl_token_is_end_of_generation(const struct kvl_tokenizer *tokenizer, uint32_t id) {
    return id < tokenizer->vocab && tokenizer->tokens[id].ends_generation;
}

bool kvl_token_is_control(const struct kvl_tokenizer *tokenizer, uint32_t id) {
    return id < tokenizer->vocab && (tokenizer->tokens[id].kind == KVL_TOKEN_CONTROL ||
                                        tokenizer->tokens[id].kind == KVL_TOKEN_UNKNOWN);
}
