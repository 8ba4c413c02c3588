/* chat.c - recognises ChatML templates and renders turns as tokens. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

#define START_MARKER "<|im_start|>"
#define END_MARKER "<|im_end|>"
#define TEMPLATE_BYTES_MAX (UINT64_C(1) << 20)

/* Templates in the normal form of normalize(): HEAD, where the template has a default system
 * message SYSTEM_HEAD message SYSTEM_TAIL, then TURNS. */
#define HEAD "{%formessageinmessages%}"
#define SYSTEM_HEAD "{%ifloop.firstandmessages[0]['role']!='system'%}{{'" START_MARKER "system\n"
#define SYSTEM_TAIL END_MARKER "\n'}}{%endif%}"
#define TURNS                                                                                      \
    "{{'" START_MARKER "'+message['role']+'\n'+message['content']+'" END_MARKER "'+'\n'}}"         \
    "{%endfor%}{%ifadd_generation_prompt%}{{'" START_MARKER "assistant\n'}}{%endif%}"

struct kvl_chat {
    struct kvl_tokenizer *tokenizer;
    char *normal; /* the template; default_system points into it */
    struct kvl_gguf_string default_system;
    uint32_t start, end;
};

struct scanner {
    struct kvl_gguf_string from;
    uint64_t at;
    char *out;
    uint64_t written;
};

static char next_char(struct scanner *scanner) {
    return scanner->at < scanner->from.bytes ? scanner->from.data[scanner->at++] : '\0';
}

/* A string literal after its opening quote, its escapes undone. False when it does not end, or has
 * an escape that we do not know. */
static bool copy_literal(struct scanner *scanner, char quote) {
    scanner->out[scanner->written++] = '\'';
    while (scanner->at < scanner->from.bytes) {
        char c = next_char(scanner);
        if (c == quote) {
            scanner->out[scanner->written++] = '\'';
            return true;
        }
        if (c == '\\') {
            c = next_char(scanner);
            if (c == 'n') {
                c = '\n';
            } else if (c != '\\' && c != '\'' && c != '"') {
                return false;
            }
        }
        scanner->out[scanner->written++] = c;
    }
    return false;
}

/* One {% %} or {{ }} after its opening brace. */
static bool copy_tag(struct scanner *scanner) {
    char kind = next_char(scanner), close = kind == '%' ? '%' : '}';
    if (kind != '%' && kind != '{') {
        return false;
    }
    scanner->out[scanner->written++] = '{';
    scanner->out[scanner->written++] = kind;
    while (scanner->at < scanner->from.bytes) {
        char c = next_char(scanner);
        if (c == '\'' || c == '"') {
            if (!copy_literal(scanner, c)) {
                return false;
            }
        } else if (c == close && scanner->at < scanner->from.bytes &&
                   scanner->from.data[scanner->at] == '}') {
            scanner->at++;
            scanner->out[scanner->written++] = close;
            scanner->out[scanner->written++] = '}';
            return true;
        } else if (c != ' ' && c != '\n' && c != '\t') {
            scanner->out[scanner->written++] = c;
        }
    }
    return false;
}

/* The template without the white space that Jinja ignores, literals with their escapes undone and
 * in single quotes. False for text outside of tags: no form that we know has any. */
static bool normalize(struct kvl_gguf_string template, char *out, uint64_t *out_bytes) {
    struct scanner scanner = {.from = template, .out = out};
    while (scanner.at < template.bytes) {
        if (next_char(&scanner) != '{' || !copy_tag(&scanner)) {
            return false;
        }
    }
    *out_bytes = scanner.written;
    return true;
}

static bool skip(struct kvl_gguf_string *text, const char *expected) {
    size_t bytes = strlen(expected);
    if (text->bytes < bytes || memcmp(text->data, expected, bytes) != 0) {
        return false;
    }
    text->data += bytes;
    text->bytes -= bytes;
    return true;
}

/* False when the normal form is none of ours. */
static bool recognize(struct kvl_chat *chat, struct kvl_gguf_string normal) {
    if (!skip(&normal, HEAD)) {
        return false;
    }
    if (skip(&normal, SYSTEM_HEAD)) {
        const char *tail = memmem(normal.data, normal.bytes, SYSTEM_TAIL, strlen(SYSTEM_TAIL));
        if (!tail) {
            return false;
        }
        chat->default_system =
            (struct kvl_gguf_string){normal.data, (uint64_t)(tail - normal.data)};
        normal.bytes -= chat->default_system.bytes;
        normal.data = tail;
        (void)skip(&normal, SYSTEM_TAIL);
    }
    return skip(&normal, TURNS) && normal.bytes == 0;
}

static kvl_err read_template(
    struct kvl_chat *chat, const struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct kvl_gguf_string template, normal = {0};
    const char *path = kvl_gguf_path(gguf);
    if (!kvl_gguf_string(gguf, "tokenizer.chat_template", &template)) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: has no chat template; use it without --chat, or use a chat model", path);
    }
    if (template.bytes <= TEMPLATE_BYTES_MAX) {
        chat->normal = malloc(template.bytes + 1); /* the normal form is never longer */
        if (!chat->normal) {
            return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", path);
        }
        normal.data = chat->normal;
    }
    if (!chat->normal || !normalize(template, chat->normal, &normal.bytes) ||
        !recognize(chat, normal)) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: its chat template is not one that is supported (ChatML: %srole ... %s); use it "
            "without --chat",
            path, START_MARKER, END_MARKER);
    }
    return KVL_OK;
}

kvl_err kvl_chat_create(const struct kvl_gguf *gguf, struct kvl_tokenizer *tokenizer,
    struct kvl_chat **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_chat *chat = calloc(1, sizeof *chat);
    if (!chat) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", kvl_gguf_path(gguf));
    }
    chat->tokenizer = tokenizer;
    chat->start = kvl_tokenizer_special(tokenizer, START_MARKER);
    chat->end = kvl_tokenizer_special(tokenizer, END_MARKER);
    kvl_err err = read_template(chat, gguf, msg);
    if (!err && (chat->start == KVL_TOKEN_NONE || chat->end == KVL_TOKEN_NONE)) {
        err = kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: its chat template uses %s and %s, which are not special tokens of its vocabulary; "
            "use it without --chat",
            kvl_gguf_path(gguf), START_MARKER, END_MARKER);
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
        free(chat->normal);
        free(chat);
    }
}

struct kvl_gguf_string kvl_chat_default_system(const struct kvl_chat *chat) {
    return chat->default_system;
}

uint32_t kvl_chat_end_token(const struct kvl_chat *chat) {
    return chat->end;
}

static kvl_err append_text(
    struct kvl_chat *chat, const char *text, uint64_t text_bytes, struct kvl_token_list *list) {
    return kvl_tokenize(chat->tokenizer, text, text_bytes, 0, list);
}

/* Role and text are tokenized as one: the pre-tokenizer may join the newline between them with
 * what follows, and does so in the template. */
static kvl_err append_opening(struct kvl_chat *chat, const char *role, struct kvl_gguf_string text,
    struct kvl_token_list *list) {
    uint64_t role_bytes = strlen(role);
    char *joined = malloc(role_bytes + text.bytes + 1);
    if (!joined) {
        return KVL_ERR_NOMEM;
    }
    memcpy(joined, role, role_bytes);
    if (text.bytes > 0) {
        memcpy(joined + role_bytes, text.data, text.bytes);
    }
    kvl_err err = kvl_token_list_push(list, chat->start);
    if (!err) {
        err = append_text(chat, joined, role_bytes + text.bytes, list);
    }
    free(joined);
    return err;
}

static kvl_err append_turn(struct kvl_chat *chat, const char *role, struct kvl_gguf_string text,
    struct kvl_token_list *list) {
    kvl_err err = append_opening(chat, role, text, list);
    return err ? err : kvl_chat_end_turn(chat, false, list);
}

kvl_err kvl_chat_begin(struct kvl_chat *chat, const char *system, struct kvl_token_list *list) {
    uint64_t count_before = list->count;
    struct kvl_gguf_string text = chat->default_system;
    if (system) {
        text = (struct kvl_gguf_string){system, strlen(system)};
    }
    kvl_err err = kvl_tokenize(chat->tokenizer, "", 0, KVL_TOKENIZE_ADD_BOS, list);
    if (!err && text.data) {
        err = append_turn(chat, "system\n", text, list);
    }
    if (err) {
        list->count = count_before;
    }
    return err;
}

kvl_err kvl_chat_user_turn(
    struct kvl_chat *chat, const char *text, uint64_t text_bytes, struct kvl_token_list *list) {
    uint64_t count_before = list->count;
    kvl_err err = append_turn(chat, "user\n", (struct kvl_gguf_string){text, text_bytes}, list);
    if (!err) {
        err = append_opening(chat, "assistant\n", (struct kvl_gguf_string){0}, list);
    }
    if (err) {
        list->count = count_before;
    }
    return err;
}

kvl_err kvl_chat_end_turn(struct kvl_chat *chat, bool ended, struct kvl_token_list *list) {
    uint64_t count_before = list->count;
    kvl_err err = ended ? KVL_OK : kvl_token_list_push(list, chat->end);
    if (!err) {
        err = append_text(chat, "\n", 1, list);
    }
    if (err) {
        list->count = count_before;
    }
    return err;
}
