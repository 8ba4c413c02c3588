/* chat_format.c - the table of formats, and the search for a template's row. */
#include "chat_format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat_normal.h"

#define Q KVL_CHAT_QUOTE /* around literals, in the normal form */
#define NAME "\x04"      /* in marks: a variable, its fields and indices, whatever it is called */
#define NAME_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.[]:"
#define BOS KVL_CHAT_BOS
#define EOS KVL_CHAT_EOS

#define LLAMA3_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
/* The templates of Llama 3.1 to 3.3 write this date unless told another; those that would take
 * today's are given this one too, so that a conversation is the same tomorrow. */
#define LLAMA3_DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

/* The first row whose marks are found counts. */
static const struct kvl_chat_format formats[] = {
    {.name = "chatml",
        .marks = {"<|im_start|>", "<|im_end|>"},
        .absent = {"<|im_sep|>", "<|im_middle|>", "<end_of_utterance>"},
        .tokens = {"<|im_start|>", "<|im_end|>"},
        .system_open = "<|im_start|>system\n",
        .system_close = "<|im_end|>\n",
        .user_open = "<|im_start|>user\n",
        .user_close = "<|im_end|>\n",
        .assistant_open = "<|im_start|>assistant\n",
        .assistant_close = "<|im_end|>\n"},
    {.name = "llama-2",
        .marks = {"<<SYS>>\n", "\n<</SYS>>\n\n",
            "bos_token+" Q "[INST] " Q "+" NAME "|trim+" Q " [/INST]"},
        .system = KVL_CHAT_SYSTEM_IN_USER,
        .system_open = "<<SYS>>\n",
        .system_close = "\n<</SYS>>\n\n",
        .user_open = BOS "[INST] ",
        .user_close = " [/INST]",
        .assistant_open = "",
        .assistant_close = " " EOS,
        .trims = true,
        .trims_whole = true},
    {.name = "llama-3.1",
        .marks = {"<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>",
            "Cutting Knowledge Date: December 2023\n", Q "Today Date: " Q "+" NAME "+" Q "\n\n" Q,
            "=" Q "26 Jul 2024" Q "%}"},
        .tokens = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
        .system_open = LLAMA3_HEADER("system") LLAMA3_DATES,
        .system_close = "<|eot_id|>",
        .user_open = LLAMA3_HEADER("user"),
        .user_close = "<|eot_id|>",
        .assistant_open = LLAMA3_HEADER("assistant"),
        .assistant_close = "<|eot_id|>",
        .has_system_turn = true,
        .trims = true},
    {.name = "llama-3",
        .marks = {"<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"},
        .absent = {"Cutting Knowledge Date"},
        .tokens = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
        .system_open = LLAMA3_HEADER("system"),
        .system_close = "<|eot_id|>",
        .user_open = LLAMA3_HEADER("user"),
        .user_close = "<|eot_id|>",
        .assistant_open = LLAMA3_HEADER("assistant"),
        .assistant_close = "<|eot_id|>",
        .trims = true},
    {.name = "mistral", /* 7B v0.3 */
        .marks = {Q "[INST] ", "[/INST]", "[AVAILABLE_TOOLS]"},
        .absent = {" [/INST]", "[SYSTEM_PROMPT]"},
        .tokens = {"[INST]", "[/INST]"},
        .system = KVL_CHAT_SYSTEM_IN_USER,
        .system_open = "",
        .system_close = "\n\n",
        .user_open = "[INST] ",
        .user_close = "[/INST]",
        .assistant_open = "",
        .assistant_close = EOS},
    {.name = "mistral-nemo",
        .marks = {Q "[INST]" Q, "[/INST]", "[AVAILABLE_TOOLS]"},
        .absent = {"[SYSTEM_PROMPT]"},
        .tokens = {"[INST]", "[/INST]"},
        .system = KVL_CHAT_SYSTEM_IN_USER,
        .system_open = "",
        .system_close = "\n\n",
        .user_open = "[INST]",
        .user_close = "[/INST]",
        .assistant_open = "",
        .assistant_close = EOS},
    {.name = "mistral-large", /* 2411 */
        .marks = {Q "[INST] ", Q "[/INST]", Q "[SYSTEM_PROMPT] ", Q "[/SYSTEM_PROMPT]"},
        .tokens = {"[INST]", "[/INST]", "[SYSTEM_PROMPT]"},
        .system_open = "[SYSTEM_PROMPT] ",
        .system_close = "[/SYSTEM_PROMPT]",
        .user_open = "[INST] ",
        .user_close = "[/INST]",
        .assistant_open = "",
        .assistant_close = EOS},
    {.name = "mistral-v1", /* 7B v0.2 with a system message */
        .marks = {Q " [INST] " Q "+" NAME "+" Q "\n\n" Q "+" NAME "+" Q " [/INST]" Q},
        .absent = {"<<SYS>>", "[AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]"},
        .system = KVL_CHAT_SYSTEM_IN_USER,
        .system_open = "",
        .system_close = "\n\n",
        .user_open = " [INST] ",
        .user_close = " [/INST]",
        .assistant_open = "",
        .assistant_close = EOS},
    {.name = "mistral-v0", /* 7B v0.2 and before */
        .marks = {"{{" Q "[INST] " Q "+" NAME ".content+" Q " [/INST]"},
        .absent = {"<<SYS>>", "[AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]"},
        .system = KVL_CHAT_SYSTEM_NONE,
        .user_open = "[INST] ",
        .user_close = " [/INST]",
        .assistant_open = "",
        .assistant_close = EOS},
    {.name = "gemma-3",
        .marks = {"<start_of_turn>", "<end_of_turn>\n",
            "{%set" NAME "=" NAME "[0].content+" Q "\n\n" Q "%}",
            "+(" NAME "ifloop.firstelse" Q Q ")}}"},
        .tokens = {"<start_of_turn>", "<end_of_turn>"},
        .system = KVL_CHAT_SYSTEM_IN_USER,
        .system_open = "",
        .system_close = "\n\n",
        .user_open = "<start_of_turn>user\n",
        .user_close = "<end_of_turn>\n",
        .assistant_open = "<start_of_turn>model\n",
        .assistant_close = "<end_of_turn>\n",
        .trims = true},
    {.name = "gemma",
        .marks = {"<start_of_turn>", "<end_of_turn>\n",
            "[0].role==" Q "system" Q "%}{{raise_exception("},
        .tokens = {"<start_of_turn>", "<end_of_turn>"},
        .system = KVL_CHAT_SYSTEM_NONE,
        .user_open = "<start_of_turn>user\n",
        .user_close = "<end_of_turn>\n",
        .assistant_open = "<start_of_turn>model\n",
        .assistant_close = "<end_of_turn>\n",
        .trims = true},
    {.name = "phi-3",
        .marks = {"<|assistant|>", "<|end|>\n"},
        .absent = {"<|im_start|>", "<|start|>", "<|channel|>"},
        .tokens = {"<|user|>", "<|assistant|>", "<|end|>"},
        .system_open = "<|system|>\n",
        .system_close = "<|end|>\n",
        .user_open = "<|user|>\n",
        .user_close = "<|end|>\n",
        .assistant_open = "<|assistant|>\n",
        .assistant_close = "<|end|>\n"},
    {.name = "zephyr",
        .marks = {Q "<|user|>\n" Q "+" NAME ".content+eos_token", "<|assistant|>"},
        .absent = {"<|end|>"},
        .system_open = "<|system|>\n",
        .system_close = EOS "\n",
        .user_open = "<|user|>\n",
        .user_close = EOS "\n",
        .assistant_open = "<|assistant|>\n",
        .assistant_close = EOS "\n"},
};
#define NAME_BYTES_MAX 64
#define FORMAT_COUNT (sizeof formats / sizeof *formats)

const char *kvl_chat_format_names(char *out, uint64_t out_bytes) {
    out[0] = '\0';
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        size_t used = strlen(out);
        snprintf(out + used, out_bytes - used, "%s%s", i > 0 ? ", " : "", formats[i].name);
    }
    return out;
}

static const char *find(struct kvl_gguf_string text, const char *wanted) {
    return memmem(text.data, text.bytes, wanted, strlen(wanted));
}

/* True when text begins with the mark. */
static bool is_mark(struct kvl_gguf_string text, const char *mark) {
    for (; *mark; mark++) {
        if (*mark != *NAME) {
            if (text.bytes == 0 || *text.data != *mark) {
                return false;
            }
            text.data++;
            text.bytes--;
            continue;
        }
        uint64_t bytes = 0; /* the longest first; at most two names in a mark, so this ends soon */
        while (bytes < text.bytes && bytes < NAME_BYTES_MAX &&
               memchr(NAME_CHARS, text.data[bytes], sizeof NAME_CHARS - 1)) {
            bytes++;
        }
        for (; bytes > 0; bytes--) {
            if (is_mark(
                    (struct kvl_gguf_string){text.data + bytes, text.bytes - bytes}, mark + 1)) {
                return true;
            }
        }
        return false;
    }
    return true;
}

static bool has_mark(struct kvl_gguf_string normal, const char *mark) {
    const char start[2] = {*mark};
    for (const char *hit; (hit = find(normal, start));) {
        normal.bytes -= (uint64_t)(hit - normal.data);
        normal.data = hit;
        if (is_mark(normal, mark)) {
            return true;
        }
        normal.data++;
        normal.bytes--;
    }
    return false;
}

static bool has_marks(const struct kvl_chat_format *format, struct kvl_gguf_string normal) {
    for (size_t i = 0; i < sizeof format->marks / sizeof *format->marks; i++) {
        if (format->marks[i] && !has_mark(normal, format->marks[i])) {
            return false;
        }
    }
    for (size_t i = 0; i < sizeof format->absent / sizeof *format->absent; i++) {
        if (format->absent[i] && find(normal, format->absent[i])) {
            return false;
        }
    }
    return true;
}

/* The literal that begins at the quote `at`; data NULL when it does not. */
static struct kvl_gguf_string literal_at(struct kvl_gguf_string normal, const char *at) {
    const char *end = normal.data + normal.bytes;
    const char *close = at < end && *at == *Q ? memchr(at + 1, *Q, (size_t)(end - at - 1)) : NULL;
    return close ? (struct kvl_gguf_string){at + 1, (uint64_t)(close - at - 1)}
                 : (struct kvl_gguf_string){0};
}

static bool begins_with(struct kvl_gguf_string text, const char *wanted) {
    return text.bytes >= strlen(wanted) && memcmp(text.data, wanted, strlen(wanted)) == 0;
}

/* True when no condition and no loop is open before `at`. */
static bool is_outside_of_blocks(struct kvl_gguf_string normal, const char *at) {
    int64_t depth = 0;
    struct kvl_gguf_string rest = {normal.data, (uint64_t)(at - normal.data)};
    for (const char *tag; (tag = find(rest, "{%"));) {
        rest.bytes -= (uint64_t)(tag + 2 - rest.data);
        rest.data = tag + 2;
        depth += begins_with(rest, "if") || begins_with(rest, "for") || begins_with(rest, "macro");
        depth -= begins_with(rest, "end");
    }
    return depth == 0;
}

/* A literal "<open>message<close>" holds a default system message: false when one begins with open
 * and does not end so, or when there is always a system turn, whose message is put together. */
static bool find_system_turn(struct kvl_chat_style *style, struct kvl_gguf_string normal) {
    const struct kvl_chat_format *format = style->format;
    if (format->system != KVL_CHAT_SYSTEM_TURN || format->has_system_turn) {
        return true;
    }
    for (const char *at = normal.data;
         (at = memchr(at, *Q, normal.bytes - (uint64_t)(at - normal.data)));) {
        struct kvl_gguf_string literal = literal_at(normal, at);
        if (!literal.data) {
            return false;
        }
        at = literal.data + literal.bytes + 1;
        if (!begins_with(literal, format->system_open)) {
            continue;
        }
        if (literal.bytes == strlen(format->system_open)) {
            if (is_outside_of_blocks(normal, literal.data)) {
                return false;
            }
            continue;
        }
        literal.data += strlen(format->system_open);
        literal.bytes -= strlen(format->system_open);
        const char *close = find(literal, format->system_close);
        if (!close || close + strlen(format->system_close) != literal.data + literal.bytes) {
            return false;
        }
        style->default_system =
            (struct kvl_gguf_string){literal.data, (uint64_t)(close - literal.data)};
    }
    return true;
}

static struct kvl_gguf_string behind(struct kvl_gguf_string normal, const char *at) {
    return (struct kvl_gguf_string){at, (uint64_t)(normal.data + normal.bytes - at)};
}

/* More than one word. */
static bool is_prose(struct kvl_gguf_string literal) {
    const char *blank = find(literal, " ");
    return blank && blank + 1 < literal.data + literal.bytes;
}

/* One "name=value%}..." that a template sets. A name that speaks of the system's message sets its
 * default. False when that is more than a literal, or when prose has a name that tells nothing. */
static bool take_variable(struct kvl_chat_style *style, struct kvl_gguf_string set) {
    const char *equals = find(set, "=");
    if (!equals) {
        return true;
    }
    struct kvl_gguf_string name = {set.data, (uint64_t)(equals - set.data)};
    struct kvl_gguf_string literal = literal_at(set, equals + 1);
    if (!literal.data || literal.bytes == 0) {
        return true; /* the user's, false, or nothing */
    }
    if (!find(name, "system")) { /* Llama 3.1's is its date, which is a mark */
        return style->format->has_system_turn || !is_prose(literal);
    }
    if (!begins_with(behind(set, literal.data + literal.bytes + 1), "%}")) {
        return false;
    }
    style->default_system = literal;
    return true;
}

static bool find_system_variable(struct kvl_chat_style *style, struct kvl_gguf_string normal) {
    static const char set[] = "{%set";
    struct kvl_gguf_string rest = normal;
    for (const char *hit; (hit = find(rest, set));) {
        rest = behind(normal, hit + strlen(set));
        if (!take_variable(style, rest)) {
            return false;
        }
    }
    return true;
}

/* True when nothing is written behind the generation prompt: blocks end, and these two forms, which
 * write something only when it is not wanted or when asked not to think, are known. */
static bool ends_with_prompt(struct kvl_gguf_string rest) {
    static const char *const known[] = {"{%endif%}", "{%endfor%}", "{%else%}{{eos_token}}",
        "{%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{" Q "<think>\n\n</think>\n\n" Q
        "}}"};
    while (rest.bytes > 0) {
        uint64_t bytes = *rest.data == ' ' || *rest.data == '\n';
        for (size_t i = 0; i < sizeof known / sizeof *known && bytes == 0; i++) {
            bytes = begins_with(rest, known[i]) ? strlen(known[i]) : 0;
        }
        if (bytes == 0) {
            return false;
        }
        rest.data += bytes;
        rest.bytes -= bytes;
    }
    return true;
}

/* The text behind the last "add_generation_prompt"; data NULL when there is none. */
static struct kvl_gguf_string behind_condition(struct kvl_gguf_string normal) {
    static const char condition[] = "add_generation_prompt";
    struct kvl_gguf_string rest = {0};
    for (const char *hit = find(normal, condition); hit; hit = find(rest, condition)) {
        rest = behind(normal, hit + strlen(condition));
    }
    return rest;
}

/* What a generation prompt has beyond assistant_open. Templates without add_generation_prompt open
 * the assistant's turn in the loop, as the format says. */
static bool find_answer_begin(struct kvl_chat_style *style, struct kvl_gguf_string normal) {
    const char *open = style->format->assistant_open;
    struct kvl_gguf_string rest = behind_condition(normal);
    if (!rest.data || *open == '\0') {
        return find(normal, open);
    }
    const char *tag = find(rest, "{{" Q);
    struct kvl_gguf_string literal =
        tag ? literal_at(normal, tag + 2) : (struct kvl_gguf_string){0};
    if (!literal.data || !begins_with(behind(normal, literal.data + literal.bytes + 1), "}}")) {
        return false;
    }
    rest = behind(normal, literal.data + literal.bytes + 3);
    if (begins_with(literal, open)) {
        style->answer_begin =
            (struct kvl_gguf_string){literal.data + strlen(open), literal.bytes - strlen(open)};
    } else if (literal.bytes + 1 != strlen(open) ||
               memcmp(literal.data, open, literal.bytes) != 0 || open[literal.bytes] != '\n' ||
               !begins_with(rest, "\n")) { /* the line break may stand behind the tag */
        return false;
    }
    return ends_with_prompt(rest);
}

/* Whether the user's text is trimmed. Templates trim other texts as well. */
static bool trims(const struct kvl_chat_format *format, struct kvl_gguf_string normal) {
    char with_close[64];
    snprintf(with_close, sizeof with_close, "|trim+" Q "%s", format->user_close);
    return find(normal, with_close) || (format->trims && find(normal, "content|trim"));
}

static bool takes_system(const struct kvl_chat_format *format, struct kvl_gguf_string normal) {
    return format->system != KVL_CHAT_SYSTEM_NONE &&
           (find(normal, "system") || find(normal, ".role+"));
}

static bool recognize(struct kvl_chat_style *style, struct kvl_gguf_string normal) {
    for (size_t i = 0; i < FORMAT_COUNT && !style->format; i++) {
        if (has_marks(&formats[i], normal)) {
            style->format = &formats[i];
        }
    }
    if (!style->format) {
        return false;
    }
    style->trims = trims(style->format, normal);
    style->writes_bos = find(normal, "bos_token");
    style->takes_system = takes_system(style->format, normal);
    return find_system_turn(style, normal) && find_system_variable(style, normal) &&
           find_answer_begin(style, normal);
}

kvl_err kvl_chat_style_of_template(struct kvl_gguf_string template, const char *path,
    struct kvl_chat_style *style, struct kvl_errmsg *msg) {
    char names[256];
    struct kvl_gguf_string normal = {0};
    kvl_err err = kvl_chat_normalize(template, &style->normal, &normal.bytes);
    normal.data = style->normal;
    if (err == KVL_ERR_NOMEM) {
        return kvl_fail(msg, err, "%s: out of memory", path);
    }
    if (err || !recognize(style, normal)) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s: its chat template is not one that is supported%s%s%s; use it without --chat, or "
            "give --chat-template NAME: %s",
            path, style->format ? " (it begins as " : "", style->format ? style->format->name : "",
            style->format ? " does)" : "", kvl_chat_format_names(names, sizeof names));
    }
    return KVL_OK;
}

kvl_err kvl_chat_style_of_name(
    const char *name, struct kvl_chat_style *style, struct kvl_errmsg *msg) {
    char names[256];
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (strcmp(formats[i].name, name) == 0) {
            style->format = &formats[i];
            style->trims = formats[i].trims;
            style->takes_system = formats[i].system != KVL_CHAT_SYSTEM_NONE;
            return KVL_OK;
        }
    }
    return kvl_fail(msg, KVL_ERR_INVALID, "there is no chat template '%s'; there are: %s", name,
        kvl_chat_format_names(names, sizeof names));
}

void kvl_chat_style_deinit(struct kvl_chat_style *style) {
    free(style->normal);
    *style = (struct kvl_chat_style){0};
}
