/* chat.c - renders turns as tokens. Text between two special tokens is tokenized as one, whether it
 * comes from the template or from a user: words may reach from one to the other, as they do where a
 * rendered template is tokenized. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "chat_format.h"
#include "chat_trim.h"

struct kvl_chat {
    struct kvl_tokenizer *tokenizer;
    struct kvl_chat_style style;
    uint32_t end;
};

/* The token that a format's text begins with, and its bytes there; KVL_TOKEN_NONE: it is text. */
static uint32_t token_at(
    const struct kvl_tokenizer *tokenizer, struct kvl_gguf_string text, uint64_t *bytes) {
    *bytes = 1;
    if (*text.data == *KVL_CHAT_BOS) {
        return kvl_tokenizer_bos(tokenizer);
    }
    if (*text.data == *KVL_CHAT_EOS) {
        return kvl_tokenizer_eos(tokenizer);
    }
    return kvl_tokenizer_special_at(tokenizer, text, bytes);
}

static kvl_err fail_marker(const char *path, const char *marker, struct kvl_errmsg *msg) {
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "%s: its chat template uses %s, which is no special token of its vocabulary; use it "
        "without "
        "--chat",
        path, marker);
}

/* Markers are special, whatever kind the file gives them, and never shown. */
static kvl_err check_markers(struct kvl_chat *chat, const char *path, struct kvl_errmsg *msg) {
    const struct kvl_chat_format *format = chat->style.format;
    for (size_t i = 0; i < sizeof format->tokens / sizeof *format->tokens; i++) {
        const char *marker = format->tokens[i];
        uint32_t id = marker ? kvl_tokenizer_special(chat->tokenizer, marker) : KVL_TOKEN_NONE;
        if (marker && id == KVL_TOKEN_NONE) {
            return fail_marker(path, marker, msg);
        }
        if (marker) {
            kvl_tokenizer_make_control(chat->tokenizer, id);
        }
    }
    return KVL_OK;
}

static kvl_err find_end(struct kvl_chat *chat, const char *path, struct kvl_errmsg *msg) {
    const char *close = chat->style.format->assistant_close;
    struct kvl_gguf_string text = {close, strlen(close)};
    chat->end = KVL_TOKEN_NONE;
    for (uint64_t bytes; text.bytes > 0 && chat->end == KVL_TOKEN_NONE;) {
        chat->end = token_at(chat->tokenizer, text, &bytes);
        text.data += bytes;
        text.bytes -= bytes;
    }
    return chat->end == KVL_TOKEN_NONE ? fail_marker(path, "EOS", msg) : KVL_OK;
}

static kvl_err find_style(
    struct kvl_chat *chat, const struct kvl_gguf *gguf, const char *name, struct kvl_errmsg *msg) {
    struct kvl_gguf_string template;
    char names[256];
    if (name) {
        return kvl_chat_style_of_name(name, &chat->style, msg);
    }
    if (!kvl_gguf_string(gguf, "tokenizer.chat_template", &template)) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: has no chat template; use it without --chat, or give --chat-template NAME: %s",
            kvl_gguf_path(gguf), kvl_chat_format_names(names, sizeof names));
    }
    return kvl_chat_style_of_template(template, kvl_gguf_path(gguf), &chat->style, msg);
}

kvl_err kvl_chat_create(const struct kvl_gguf *gguf, struct kvl_tokenizer *tokenizer,
    const char *name, struct kvl_chat **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_chat *chat = calloc(1, sizeof *chat);
    if (!chat) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", kvl_gguf_path(gguf));
    }
    chat->tokenizer = tokenizer;
    kvl_err err = find_style(chat, gguf, name, msg);
    if (!err) {
        err = check_markers(chat, kvl_gguf_path(gguf), msg);
    }
    if (!err) {
        err = find_end(chat, kvl_gguf_path(gguf), msg);
    }
    if (err) {
        kvl_chat_destroy(chat);
        return err;
    }
    *out = chat;
    return KVL_OK;
}

void kvl_chat_destroy(struct kvl_chat *chat) {
    if (chat) {
        kvl_chat_style_deinit(&chat->style);
        free(chat);
    }
}

const char *kvl_chat_format_name(const struct kvl_chat *chat) {
    return chat->style.format->name;
}

struct kvl_gguf_string kvl_chat_default_system(const struct kvl_chat *chat) {
    return chat->style.default_system;
}

bool kvl_chat_takes_system(const struct kvl_chat *chat) {
    return chat->style.takes_system;
}

uint32_t kvl_chat_end_token(const struct kvl_chat *chat) {
    return chat->end;
}

/* What was written since the last special token; err sticks. */
struct rendering {
    struct kvl_chat *chat;
    struct kvl_token_list *list;
    char *text;
    uint64_t bytes, capacity_bytes;
    kvl_err err;
};

static void add_text(struct rendering *rendering, struct kvl_gguf_string text) {
    if (rendering->err || text.bytes == 0) {
        return;
    }
    if (text.bytes > rendering->capacity_bytes - rendering->bytes) {
        uint64_t capacity_bytes = 2 * (rendering->bytes + text.bytes);
        char *grown = realloc(rendering->text, capacity_bytes);
        if (!grown) {
            rendering->err = KVL_ERR_NOMEM;
            return;
        }
        rendering->text = grown;
        rendering->capacity_bytes = capacity_bytes;
    }
    memcpy(rendering->text + rendering->bytes, text.data, text.bytes);
    rendering->bytes += text.bytes;
}

static void flush(struct rendering *rendering) {
    if (!rendering->err && rendering->bytes > 0) {
        rendering->err = kvl_tokenize_after(
            rendering->chat->tokenizer, rendering->text, rendering->bytes, rendering->list);
    }
    rendering->bytes = 0;
}

static void add_token(struct rendering *rendering, uint32_t id) {
    flush(rendering);
    if (!rendering->err && id != KVL_TOKEN_NONE) {
        rendering->err = kvl_token_list_push(rendering->list, id);
    }
}

/* A format's text: its special tokens are tokens. until_token: only up to and with the first. */
static struct kvl_gguf_string add_format(
    struct rendering *rendering, struct kvl_gguf_string format, bool until_token) {
    while (format.bytes > 0) {
        uint64_t bytes;
        uint32_t id = token_at(rendering->chat->tokenizer, format, &bytes);
        if (id == KVL_TOKEN_NONE && *format.data != *KVL_CHAT_BOS) {
            add_text(rendering, (struct kvl_gguf_string){format.data, bytes});
        } else {
            add_token(rendering, id);
        }
        format.data += bytes;
        format.bytes -= bytes;
        if (until_token && id != KVL_TOKEN_NONE) {
            break;
        }
    }
    return format;
}

static struct kvl_gguf_string text_of(const char *text) {
    return (struct kvl_gguf_string){text, text ? strlen(text) : 0};
}

static void add_trimmed(struct rendering *rendering, struct kvl_gguf_string text) {
    add_text(rendering, rendering->chat->style.trims ? kvl_chat_trim(text) : text);
}

static void add_system_turn(struct rendering *rendering, struct kvl_gguf_string system) {
    const struct kvl_chat_format *format = rendering->chat->style.format;
    if (format->system == KVL_CHAT_SYSTEM_TURN && (system.data || format->has_system_turn)) {
        add_format(rendering, text_of(format->system_open), false);
        add_trimmed(rendering, system);
        add_format(rendering, text_of(format->system_close), false);
    }
}

/* system: to stand inside the turn; data NULL: none does. */
static void add_user_turn(
    struct rendering *rendering, const struct kvl_chat_turn *turn, struct kvl_gguf_string system) {
    const struct kvl_chat_style *style = &rendering->chat->style;
    const struct kvl_chat_format *format = style->format;
    struct kvl_gguf_string text = {turn->text, turn->text_bytes};
    add_format(rendering, text_of(format->user_open), false);
    if (format->system == KVL_CHAT_SYSTEM_IN_USER && system.data) {
        /* none of these has special tokens in its system texts; trimming the end is the same
         * before and after joining, unless nothing is left of the user's */
        add_text(rendering, text_of(format->system_open));
        add_text(rendering, system);
        if (format->trims_whole) {
            text = style->trims ? kvl_chat_trim_end(text) : text;
            struct kvl_gguf_string close = text_of(format->system_close);
            add_text(rendering, style->trims && text.bytes == 0 ? kvl_chat_trim_end(close) : close);
            add_text(rendering, text);
        } else {
            add_text(rendering, text_of(format->system_close));
            add_trimmed(rendering, text);
        }
    } else {
        add_trimmed(rendering, text);
    }
    add_format(rendering, text_of(format->user_close), false);
}

/* The rest of the assistant's turn before this one. */
static void end_answer(struct rendering *rendering, bool ended) {
    struct kvl_gguf_string rest = text_of(rendering->chat->style.format->assistant_close);
    if (ended) {
        struct rendering nowhere = {.chat = rendering->chat, .list = &(struct kvl_token_list){0}};
        rest = add_format(&nowhere, rest, true);
        kvl_token_list_free(nowhere.list);
        free(nowhere.text);
    }
    add_format(rendering, rest, false);
}

static void begin(struct rendering *rendering) {
    struct kvl_tokenizer *tokenizer = rendering->chat->tokenizer;
    uint64_t count_before = rendering->list->count;
    const char *open = rendering->chat->style.format->user_open;
    rendering->err = kvl_tokenize(tokenizer, "", 0, KVL_TOKENIZE_ADD_BOS, rendering->list);
    if (*open == *KVL_CHAT_BOS) { /* comes with the turn */
        rendering->list->count = count_before;
    } else if (rendering->list->count == count_before && rendering->chat->style.writes_bos) {
        add_token(rendering, kvl_tokenizer_bos(tokenizer));
    }
}

kvl_err kvl_chat_append(
    struct kvl_chat *chat, const struct kvl_chat_turn *turn, struct kvl_token_list *list) {
    struct rendering rendering = {.chat = chat, .list = list};
    uint64_t count_before = list->count;
    struct kvl_gguf_string system = {0};
    if (turn->begins && turn->system && !chat->style.takes_system) {
        return KVL_ERR_INVALID;
    }
    if (turn->begins) {
        system = turn->system ? text_of(turn->system) : chat->style.default_system;
        begin(&rendering);
        add_system_turn(&rendering, system);
    } else {
        end_answer(&rendering, turn->ended);
    }
    add_user_turn(&rendering, turn, system);
    add_format(&rendering, text_of(chat->style.format->assistant_open), false);
    add_format(&rendering, chat->style.answer_begin, false);
    flush(&rendering);
    free(rendering.text);
    if (rendering.err) {
        list->count = count_before;
    }
    return rendering.err;
}
