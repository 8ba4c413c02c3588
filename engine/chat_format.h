/* chat_format.h - the forms of conversation that chat templates write, and which one a template is.
 *
 * A template is a Jinja program. It is not run: it is brought into a normal form, checked to be
 * whole, and recognised by the marks of one row of the table in chat_format.c. What rows leave open
 * is read out of it: a default system message, whether contents are trimmed, whether BOS comes
 * first, what stands before the assistant's answer. Where that cannot be read, the template is
 * refused rather than guessed.
 *
 * Threads: any. */
#ifndef KVL_CHAT_FORMAT_H
#define KVL_CHAT_FORMAT_H

#include "gguf.h"

/* In the texts of a format these stand for the file's BOS and EOS tokens. */
#define KVL_CHAT_BOS "\x01"
#define KVL_CHAT_EOS "\x02"

enum kvl_chat_system {
    KVL_CHAT_SYSTEM_TURN,    /* a turn of its own, first */
    KVL_CHAT_SYSTEM_IN_USER, /* inside the first user's turn, before its text */
    KVL_CHAT_SYSTEM_NONE,    /* the template refuses or drops it */
};

/* A turn is open, text, close. */
struct kvl_chat_format {
    const char *name;
    const char *marks[6];  /* the normal form has them all; a byte 04 is any variable */
    const char *absent[3]; /* and none of these */
    const char *tokens[3]; /* have to be special tokens of the vocabulary */
    enum kvl_chat_system system;
    const char *system_open, *system_close;
    const char *user_open, *user_close;
    const char *assistant_open;
    const char *assistant_close; /* has the token that ends the turn */
    bool has_system_turn;        /* also where there is no system message */
    bool trims;                  /* the form that goes by this name does; a file's own may not */
    bool trims_whole;            /* the system message and the user's text together, not each */
};

/* A format, and what this template makes of it. */
struct kvl_chat_style {
    const struct kvl_chat_format *format;
    char *normal;                          /* owned; the strings below lie in it */
    struct kvl_gguf_string default_system; /* data NULL: none */
    struct kvl_gguf_string answer_begin;   /* follows assistant_open, e.g. "<think>\n" */
    bool trims, writes_bos, takes_system;
};

/* Zeroed style. Errors: UNSUPPORTED (msg names path and the formats), NOMEM. Deinit it anyway. */
KVL_MUST_CHECK kvl_err kvl_chat_style_of_template(struct kvl_gguf_string template, const char *path,
    struct kvl_chat_style *style, struct kvl_errmsg *msg);
/* By a format's name. Errors: INVALID (msg lists the names). */
KVL_MUST_CHECK kvl_err kvl_chat_style_of_name(
    const char *name, struct kvl_chat_style *style, struct kvl_errmsg *msg);
void kvl_chat_style_deinit(struct kvl_chat_style *style);

/* Writes "chatml, llama-2, ..."; returns out. */
const char *kvl_chat_format_names(char *out, uint64_t out_bytes);

#endif
