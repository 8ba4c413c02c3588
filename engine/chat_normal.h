/* chat_normal.h - a chat template without what Jinja ignores, so that it can be searched.
 *
 * Tags lose white space, "-" at their ends, and comments go; a literal's escapes are undone and it
 * stands between two bytes 03; literals joined by + become one; x["name"] is x.name, and x.strip()
 * is x|trim. Text between tags stays as it is,
 * but for the white space that Jinja takes away: behind "-%}", before "{%-", and (as transformers
 * and llama.cpp set it) the line break behind a block and the blanks before one. */
#ifndef KVL_CHAT_NORMAL_H
#define KVL_CHAT_NORMAL_H

#include "gguf.h"

#define KVL_CHAT_QUOTE "\x03"

/* *out is allocated, the caller's to free also after an error.
 * Errors: NOMEM; CORRUPT (a tag, literal or block that does not end, an unknown escape, a byte 01
 * to 03, over 1 MiB). */
KVL_MUST_CHECK kvl_err kvl_chat_normalize(
    struct kvl_gguf_string template, char **out, uint64_t *out_bytes);

#endif
