/* chat_test.c - chat templates, and what Jinja makes of them (make_chat_reference.py).
 *
 * Those of data/chat are written for this test: the families' markers, and nothing else, are as
 * published templates have them. With --real it takes templates of real models from the folder
 * where scripts/make-references keeps them, and is skipped without. A template is recognised by the
 * marks of engine/chat_format.c: how the text around a message is put together in one expression.
 * One that does the same in other steps is refused, and belongs among the refused ones here.
 *
 * A conversation's first turn is compared token by token with the tokenized rendering; longer ones
 * as text, since an answer's tokens are the model's. With --list FILE it compares the templates of
 * any such file and says what it finds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "chat_format.h"
#include "tokenizer_vocab.h"

#define TEXT_BYTES_MAX 65536

static const char *const specials[] = {"<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<start_of_turn>",
    "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"};
#define SPECIAL_COUNT (sizeof specials / sizeof *specials)

struct fixture {
    struct gguf_writer writer;
    struct kvl_gguf *gguf;
    struct kvl_tokenizer *tokenizer;
    struct kvl_chat *chat;
    struct kvl_token_list list;
    struct kvl_errmsg msg;
};

static kvl_err open_chat(struct fixture *f, const char *template) {
    uint64_t bytes;
    memset(f, 0, sizeof *f);
    gguf_writer_init(&f->writer);
    vocab_add_bpe_specials(&f->writer, specials, SPECIAL_COUNT);
    gguf_add_bool(&f->writer, "tokenizer.ggml.add_bos_token", false);
    gguf_add_string(&f->writer, "tokenizer.chat_template", template);
    const uint8_t *file = gguf_writer_finish(&f->writer, &bytes);
    assert_int_equal(kvl_gguf_open_memory(file, bytes, "tiny", &f->gguf, &f->msg), KVL_OK);
    assert_int_equal(kvl_tokenizer_create(f->gguf, &f->tokenizer, &f->msg), KVL_OK);
    return kvl_chat_create(f->gguf, f->tokenizer, NULL, &f->chat, &f->msg);
}

static void close_chat(struct fixture *f) {
    kvl_chat_destroy(f->chat);
    kvl_tokenizer_destroy(f->tokenizer);
    kvl_gguf_close(f->gguf);
    gguf_writer_deinit(&f->writer);
    kvl_token_list_free(&f->list);
}

static const char *string_of(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static void write_text(const struct fixture *f, char *out) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < f->list.count; i++) {
        struct kvl_gguf_string piece = kvl_token_piece(f->tokenizer, f->list.ids[i]);
        assert_true(bytes + piece.bytes < TEXT_BYTES_MAX);
        memcpy(out + bytes, piece.data, piece.bytes);
        bytes += piece.bytes;
    }
    out[bytes] = '\0';
}

static bool same_tokens(struct fixture *f, const char *rendered) {
    struct kvl_token_list expected = {0};
    assert_int_equal(kvl_tokenize(f->tokenizer, rendered, strlen(rendered),
                         KVL_TOKENIZE_PARSE_SPECIAL, &expected),
        KVL_OK);
    bool same = f->list.count == expected.count &&
                memcmp(f->list.ids, expected.ids, expected.count * sizeof *expected.ids) == 0;
    kvl_token_list_free(&expected);
    return same;
}

/* Users' texts and answers in turn, the last a user's. */
static kvl_err append_messages(struct fixture *f, const json_t *entry) {
    const json_t *messages = json_object_get(entry, "messages");
    const char *begin = string_of(entry, "answer_begin");
    kvl_err err = KVL_OK;
    for (size_t i = 0; i < json_array_size(messages) && !err; i++) {
        const char *text = json_string_value(json_array_get(messages, i));
        const struct kvl_chat_turn turn = {.begins = i == 0,
            .system = string_of(entry, "system"),
            .text = text,
            .text_bytes = strlen(text)};
        if (i % 2 == 0) {
            err = kvl_chat_append(f->chat, &turn, &f->list);
            continue;
        }
        err = kvl_tokenize(f->tokenizer, begin, strlen(begin), 0, &f->list);
        err = err ? err : kvl_tokenize(f->tokenizer, text, strlen(text), 0, &f->list);
    }
    return err;
}

/* NULL, or what differs. */
static const char *check_case(struct fixture *f, const json_t *entry) {
    static char text[TEXT_BYTES_MAX];
    const char *rendered = string_of(entry, "rendered");
    f->list.count = 0;
    kvl_err err = append_messages(f, entry);
    if (!rendered) { /* Jinja has no answer either */
        return err == KVL_ERR_INVALID ? NULL : "not refused";
    }
    if (err) {
        return "refused";
    }
    write_text(f, text);
    if (strcmp(text, rendered) != 0) {
        return text;
    }
    return json_array_size(json_object_get(entry, "messages")) > 1 || same_tokens(f, rendered)
               ? NULL
               : "equal text, other tokens";
}

static json_t *load(const char *path) {
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root) {
        fail_msg("%s: %s", path, error.text);
    }
    json_t *templates = json_incref(json_object_get(root, "templates"));
    json_decref(root);
    return templates;
}

/* The entry's own, or the file of its name in data/chat. */
static const char *template_of(const json_t *entry) {
    static char text[TEXT_BYTES_MAX];
    char path[4096];
    const char *template = string_of(entry, "template");
    if (template) {
        return template;
    }
    snprintf(path, sizeof path, "%s/chat/%s", KVL_GOLDEN_DATA, string_of(entry, "name"));
    FILE *file = fopen(path, "rb");
    if (!file) {
        fail_msg("cannot open %s", path);
    }
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

static void check_template(const json_t *entry) {
    struct fixture f;
    const char *name = string_of(entry, "name"), *format = string_of(entry, "format");
    size_t i;
    json_t *one;
    kvl_err err = open_chat(&f, template_of(entry));
    if (!format && err != KVL_ERR_UNSUPPORTED) {
        fail_msg("%s: not refused", name);
    }
    if (format && err) {
        fail_msg("%s: %s", name, f.msg.text);
    }
    if (format) {
        assert_string_equal(kvl_chat_format_name(f.chat), format);
    }
    json_array_foreach(json_object_get(entry, "cases"), i, one) {
        const char *wrong = check_case(&f, one);
        if (wrong) {
            fail_msg("%s, case %zu: %s\nJinja: %s", name, i, wrong, string_of(one, "rendered"));
        }
    }
    close_chat(&f);
}

static void templates_render_as_jinja_renders_them(void **state) {
    json_t *templates = load(*state);
    size_t i;
    json_t *entry;
    assert_true(json_array_size(templates) >= 20);
    json_array_foreach(templates, i, entry) {
        check_template(entry);
    }
    json_decref(templates);
}

static bool has_format(const json_t *templates, const char *name) {
    size_t i;
    json_t *entry;
    json_array_foreach(templates, i, entry) {
        const char *format = string_of(entry, "format");
        if (format && strcmp(format, name) == 0) {
            return true;
        }
    }
    return false;
}

static void every_format_has_a_template(void **state) {
    char names[256], *rest = NULL;
    json_t *templates = load(*state);
    kvl_chat_format_names(names, sizeof names);
    for (char *name = strtok_r(names, ", ", &rest); name; name = strtok_r(NULL, ", ", &rest)) {
        if (!has_format(templates, name)) {
            fail_msg("no template of data/chat is %s", name);
        }
    }
    json_decref(templates);
}

static void list(void **state) {
    json_t *templates = load(*state);
    size_t i, j;
    json_t *entry, *one;
    json_array_foreach(templates, i, entry) {
        struct fixture f;
        const char *wrong = NULL, *rendered = NULL;
        kvl_err err = open_chat(&f, template_of(entry));
        json_array_foreach(json_object_get(entry, "cases"), j, one) {
            if (!err && !wrong) {
                wrong = check_case(&f, one);
                rendered = string_of(one, "rendered");
            }
        }
        printf("%-70.70s %-14s %s\n", string_of(entry, "name"),
            err ? "-" : kvl_chat_format_name(f.chat), wrong ? "DIFFERS" : "");
        if (wrong) {
            printf("  ours  %s\n  Jinja %s\n", wrong, rendered ? rendered : "(none)");
        }
        close_chat(&f);
    }
    json_decref(templates);
}

static int run_real(void) {
    char path[4096];
    const char *work = getenv("KVLOFT_REFERENCE_DIR"), *cache = getenv("XDG_CACHE_HOME");
    if (work && *work) {
        snprintf(path, sizeof path, "%s/chat_templates.json", work);
    } else if (cache && *cache) {
        snprintf(path, sizeof path, "%s/kvloft/references/chat_templates.json", cache);
    } else {
        const char *home = getenv("HOME");
        snprintf(
            path, sizeof path, "%s/.cache/kvloft/references/chat_templates.json", home ? home : "");
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "skipped: no %s: scripts/make-references --only chat makes it\n", path);
        return 77;
    }
    fclose(file);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(templates_render_as_jinja_renders_them, path)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) {
    static char own[] = KVL_GOLDEN_DATA "/chat_templates.json";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(templates_render_as_jinja_renders_them, own),
        cmocka_unit_test_prestate(every_format_has_a_template, own)};
    if (argc == 3 && strcmp(argv[1], "--list") == 0) {
        const struct CMUnitTest lists[] = {cmocka_unit_test_prestate(list, argv[2])};
        return cmocka_run_group_tests(lists, NULL, NULL);
    }
    if (argc == 2 && strcmp(argv[1], "--real") == 0) {
        return run_real();
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
