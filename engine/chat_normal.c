/* chat_normal.c - see chat_normal.h. */
#include "chat_normal.h"

#include <stdlib.h>
#include <string.h>

#define TEMPLATE_BYTES_MAX (UINT64_C(1) << 20)
#define QUOTE (*KVL_CHAT_QUOTE)

struct scanner {
    struct kvl_gguf_string from;
    uint64_t at;
    char *out;
    uint64_t written;
    int64_t depth;  /* of blocks: for, if, macro, ... */
    bool strips;    /* the tag before ended with a "-": white space goes */
    bool was_block; /* the tag before was a block: a line break goes */
};

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static char peek(const struct scanner *scanner, uint64_t ahead) {
    return scanner->at + ahead < scanner->from.bytes ? scanner->from.data[scanner->at + ahead]
                                                     : '\0';
}

static void put(struct scanner *scanner, char c) {
    scanner->out[scanner->written++] = c;
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* x["name"] is written x.name: the literal is written from its quote `open` on, its "]" not yet. */
static void undo_subscript(struct scanner *scanner, uint64_t open) {
    uint64_t next = 0;
    while (is_space(peek(scanner, next))) {
        next++;
    }
    if (peek(scanner, next) != ']' || open < 2 || scanner->out[open - 1] != '[' ||
        !(is_name_char(scanner->out[open - 2]) || scanner->out[open - 2] == ']')) {
        return;
    }
    for (uint64_t i = open + 1; i + 1 < scanner->written; i++) {
        if (!is_name_char(scanner->out[i])) {
            return;
        }
    }
    scanner->out[open - 1] = '.';
    memmove(scanner->out + open, scanner->out + open + 1, scanner->written - open - 2);
    scanner->written -= 2;
    scanner->at += next + 1;
}

/* x.strip() is written x|trim: both do the same. */
static void undo_strip(struct scanner *scanner) {
    static const char strip[] = ".strip()", trim[] = "|trim";
    const uint64_t strip_bytes = sizeof strip - 1;
    if (scanner->written >= strip_bytes &&
        memcmp(scanner->out + scanner->written - strip_bytes, strip, strip_bytes) == 0) {
        memcpy(scanner->out + scanner->written - strip_bytes, trim, sizeof trim - 1);
        scanner->written -= strip_bytes - (sizeof trim - 1);
    }
}

/* A string literal from its quote on. False when it does not end, or has an unknown escape. */
static bool copy_literal(struct scanner *scanner) {
    char quote = scanner->from.data[scanner->at++];
    uint64_t open = scanner->written;
    bool goes_on = open >= 2 && scanner->out[open - 1] == '+' && scanner->out[open - 2] == QUOTE;
    if (goes_on) {
        scanner->written -= 2; /* with the literal before */
    } else {
        put(scanner, QUOTE);
    }
    while (scanner->at < scanner->from.bytes) {
        char c = scanner->from.data[scanner->at++];
        if (c == quote) {
            put(scanner, QUOTE);
            if (!goes_on) {
                undo_subscript(scanner, open);
            }
            return true;
        }
        if (c == '\\') {
            static const char escapes[] = "n\nt\tr\r\\\\'\'\"\"";
            const char *known = strchr(escapes, peek(scanner, 0));
            if (peek(scanner, 0) == '\0' || !known || (known - escapes) % 2 != 0) {
                put(scanner, c); /* Jinja keeps what is no escape */
                continue;
            }
            c = known[1];
            scanner->at++;
        }
        put(scanner, c);
    }
    return false;
}

static bool word_follows(const char *text, uint64_t text_bytes, const char *word) {
    uint64_t bytes = strlen(word);
    return text_bytes >= bytes && memcmp(text, word, bytes) == 0;
}

/* Counts the blocks that a written "{%...%}" opens or closes. False for an end without beginning.
 */
static bool count_block(struct scanner *scanner, uint64_t tag) {
    static const char *const openers[] = {"for", "if", "macro", "filter", "call", "generation"};
    const char *word = scanner->out + tag + 2;
    uint64_t bytes = scanner->written - tag - 2;
    if (word_follows(word, bytes, "end")) {
        return --scanner->depth >= 0;
    }
    for (size_t i = 0; i < sizeof openers / sizeof *openers; i++) {
        if (word_follows(word, bytes, openers[i])) {
            scanner->depth++;
            return true;
        }
    }
    return true;
}

/* One {% %} or {{ }} from its brace on. */
static bool copy_tag(struct scanner *scanner) {
    char kind = peek(scanner, 1), close = kind == '%' ? '%' : '}';
    uint64_t tag = scanner->written;
    put(scanner, '{');
    put(scanner, kind);
    scanner->at += 2;
    scanner->at += peek(scanner, 0) == '-' || peek(scanner, 0) == '+';
    while (scanner->at < scanner->from.bytes) {
        char c = peek(scanner, 0);
        if (c == '\'' || c == '"') {
            if (!copy_literal(scanner)) {
                return false;
            }
            continue;
        }
        scanner->strips = c == '-' && peek(scanner, 1) == close && peek(scanner, 2) == '}';
        if (scanner->strips || (c == close && peek(scanner, 1) == '}')) {
            scanner->at += scanner->strips ? 3 : 2;
            put(scanner, close);
            put(scanner, '}');
            scanner->was_block = kind == '%';
            return kind != '%' || count_block(scanner, tag);
        }
        scanner->at++;
        if (!is_space(c)) {
            put(scanner, c);
            undo_strip(scanner);
        }
    }
    return false;
}

static bool skip_comment(struct scanner *scanner) {
    struct kvl_gguf_string rest = {
        scanner->from.data + scanner->at, scanner->from.bytes - scanner->at};
    const char *end = memmem(rest.data, rest.bytes, "#}", 2);
    if (!end) {
        return false;
    }
    scanner->strips = end[-1] == '-';
    scanner->was_block = true;
    scanner->at += (uint64_t)(end - rest.data) + 2;
    return true;
}

/* The text up to the next tag, without the white space that Jinja takes away. */
static void copy_text(struct scanner *scanner) {
    uint64_t end = scanner->at;
    while (end < scanner->from.bytes &&
           !(scanner->from.data[end] == '{' && end + 1 < scanner->from.bytes &&
               memchr("%{#", scanner->from.data[end + 1], 3))) {
        end++;
    }
    const char *tag = scanner->from.data + end;
    uint64_t left = scanner->from.bytes - end, stop = end;
    while (scanner->strips && scanner->at < stop && is_space(scanner->from.data[scanner->at])) {
        scanner->at++;
    }
    if (scanner->was_block && !scanner->strips && scanner->at < stop &&
        scanner->from.data[scanner->at] == '\n') {
        scanner->at++;
    }
    bool strips_before = left > 2 && tag[2] == '-', is_block = left > 1 && tag[1] != '{';
    uint64_t line = stop;
    while (line > scanner->at && (strips_before ? is_space(scanner->from.data[line - 1])
                                                : scanner->from.data[line - 1] == ' ' ||
                                                      scanner->from.data[line - 1] == '\t')) {
        line--;
    }
    if (strips_before || (is_block && (line == 0 || scanner->from.data[line - 1] == '\n'))) {
        stop = line;
    }
    while (scanner->at < stop) {
        put(scanner, scanner->from.data[scanner->at++]);
    }
    scanner->at = end;
}

static bool scan(struct scanner *scanner) {
    while (scanner->at < scanner->from.bytes) {
        copy_text(scanner);
        if (scanner->at == scanner->from.bytes) {
            break;
        }
        if (!(peek(scanner, 1) == '#' ? skip_comment(scanner) : copy_tag(scanner))) {
            return false;
        }
    }
    return scanner->depth == 0;
}

kvl_err kvl_chat_normalize(struct kvl_gguf_string template, char **out, uint64_t *out_bytes) {
    *out = NULL;
    if (template.bytes > TEMPLATE_BYTES_MAX) {
        return KVL_ERR_CORRUPT;
    }
    for (uint64_t i = 0; i < template.bytes; i++) {
        if (template.data[i] >= 1 && template.data[i] <= 3) {
            return KVL_ERR_CORRUPT;
        }
    }
    struct scanner scanner = {.from = template, .out = malloc(template.bytes + 1)};
    *out = scanner.out; /* the normal form is never longer */
    if (!scanner.out) {
        return KVL_ERR_NOMEM;
    }
    if (!scan(&scanner)) {
        return KVL_ERR_CORRUPT;
    }
    *out_bytes = scanner.written;
    return KVL_OK;
}
