/* stop_strings.h - finds the first of some strings in a text that comes in pieces, and says how
 * much of it cannot be the beginning of one, so that the rest can be shown.
 *
 * Knuth, Morris and Pratt's matching, one state a string: a byte costs the same however long the
 * strings are. On whole characters (utf8.h) what is safe to show ends with one, too, since a string
 * is valid UTF-8 and so begins with one.
 *
 * Owns:    copies of the strings. Threads: its caller's.
 * Errors:  INVALID (an empty string, one that is not UTF-8), NOMEM. */
#ifndef KVL_STOP_STRINGS_H
#define KVL_STOP_STRINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

struct kvl_stop_strings { /* zeroed: none */
    struct kvl_stop_string *strings;
    uint32_t count;
    uint64_t text_bytes; /* pushed so far */
    bool found;
    uint64_t found_at; /* where in the text it begins; of several that end together, the first */
};

KVL_MUST_CHECK kvl_err kvl_stop_strings_init(
    struct kvl_stop_strings *stops, const char *const *strings, uint32_t count);
void kvl_stop_strings_deinit(struct kvl_stop_strings *stops);
/* For a new text. */
void kvl_stop_strings_restart(struct kvl_stop_strings *stops);

/* The next bytes of the text. Returns how many bytes of the whole text are safe: all but those that
 * a string may have begun with; once one is found, found_at, whatever follows. */
uint64_t kvl_stop_strings_push(struct kvl_stop_strings *stops, const char *bytes, uint64_t count);

#endif
