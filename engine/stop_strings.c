/* stop_strings.c - see stop_strings.h. */
#include "stop_strings.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"

struct kvl_stop_string {
    char *text;
    uint32_t *fallback; /* [i]: the longest proper beginning of text[0..i] that also ends it */
    uint32_t bytes, matched;
};

static bool is_utf8(const char *text, uint64_t text_bytes) {
    for (uint64_t at = 0; at < text_bytes;) {
        uint32_t bytes = kvl_utf8_char_bytes(text + at, text_bytes - at);
        if (bytes == 0) {
            return false;
        }
        at += bytes;
    }
    return true;
}

/* How much of the string is matched after one more byte. */
static uint32_t advance(const struct kvl_stop_string *string, uint32_t matched, char byte) {
    while (matched > 0 && (matched == string->bytes || string->text[matched] != byte)) {
        matched = string->fallback[matched - 1];
    }
    return matched + (string->text[matched] == byte);
}

static kvl_err init_string(struct kvl_stop_string *string, const char *text) {
    uint64_t bytes = strlen(text);
    if (bytes == 0 || bytes > UINT16_MAX || !is_utf8(text, bytes)) {
        return KVL_ERR_INVALID;
    }
    string->bytes = (uint32_t)bytes;
    string->text = strdup(text);
    string->fallback = calloc(bytes, sizeof *string->fallback);
    if (!string->text || !string->fallback) {
        return KVL_ERR_NOMEM;
    }
    for (uint32_t i = 1; i < string->bytes; i++) {
        string->fallback[i] = advance(string, string->fallback[i - 1], text[i]);
    }
    return KVL_OK;
}

kvl_err kvl_stop_strings_init(
    struct kvl_stop_strings *stops, const char *const *strings, uint32_t count) {
    *stops = (struct kvl_stop_strings){0};
    if (count == 0) {
        return KVL_OK;
    }
    stops->strings = calloc(count, sizeof *stops->strings);
    if (!stops->strings) {
        return KVL_ERR_NOMEM;
    }
    kvl_err err = KVL_OK;
    while (stops->count < count && !err) {
        err = init_string(&stops->strings[stops->count], strings[stops->count]);
        stops->count++;
    }
    if (err) {
        kvl_stop_strings_deinit(stops);
    }
    return err;
}

void kvl_stop_strings_deinit(struct kvl_stop_strings *stops) {
    for (uint32_t i = 0; i < stops->count; i++) {
        free(stops->strings[i].text);
        free(stops->strings[i].fallback);
    }
    free(stops->strings);
    *stops = (struct kvl_stop_strings){0};
}

void kvl_stop_strings_restart(struct kvl_stop_strings *stops) {
    for (uint32_t i = 0; i < stops->count; i++) {
        stops->strings[i].matched = 0;
    }
    stops->text_bytes = 0;
    stops->found = false;
    stops->found_at = 0;
}

/* Returns the longest match under way. */
static uint32_t push_byte(struct kvl_stop_strings *stops, char byte) {
    uint32_t longest = 0, found = 0;
    for (uint32_t i = 0; i < stops->count; i++) {
        struct kvl_stop_string *string = &stops->strings[i];
        string->matched = advance(string, string->matched, byte);
        longest = string->matched > longest ? string->matched : longest;
        found = string->matched == string->bytes && string->bytes > found ? string->bytes : found;
    }
    stops->text_bytes++;
    if (found > 0) {
        stops->found = true;
        stops->found_at = stops->text_bytes - found;
    }
    return longest;
}

uint64_t kvl_stop_strings_push(struct kvl_stop_strings *stops, const char *bytes, uint64_t count) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < stops->count; i++) {
        held = stops->strings[i].matched > held ? stops->strings[i].matched : held;
    }
    for (uint64_t i = 0; i < count && !stops->found; i++) {
        held = push_byte(stops, bytes[i]);
    }
    return stops->found ? stops->found_at : stops->text_bytes - held;
}
