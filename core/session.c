/* session.c - see session.h. */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "little_endian.h"
#include "tenant.h"

#define KVL_SESSION_RECORD_VERSION 1u

struct kvl_session_set {
    struct kvl_session **sessions; /* in order of name */
    uint32_t count;
    uint32_t room;
};

kvl_err kvl_session_set_create(struct kvl_session_set **out) {
    *out = calloc(1, sizeof(**out));
    return *out == NULL ? KVL_ERR_NOMEM : KVL_OK;
}

static void session_free(struct kvl_session *session) {
    free(session->tokens);
    free(session);
}

void kvl_session_set_destroy(struct kvl_session_set *set) {
    if (set == NULL)
        return;
    for (uint32_t i = 0; i < set->count; i++)
        session_free(set->sessions[i]);
    free(set->sessions);
    free(set);
}

/* ---- names -------------------------------------------------------------------------------- */

/* Bytes of the UTF-8 character at text (0: malformed) and its code point. */
static unsigned decode(const uint8_t *text, uint32_t *code) {
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned bytes = text[0] < 0x80 ? 1 : text[0] >> 5 == 6 ? 2 : text[0] >> 4 == 14 ? 3 : 4;
    if (bytes == 4 && text[0] >> 3 != 30)
        return 0;
    *code = bytes == 1 ? text[0] : text[0] & (0xffu >> (bytes + 1));
    for (unsigned i = 1; i < bytes; i++) {
        if (text[i] >> 6 != 2)
            return 0;
        *code = *code << 6 | (text[i] & 0x3f);
    }
    bool surrogate = *code >= 0xd800 && *code <= 0xdfff;
    return *code < smallest[bytes] || *code > 0x10ffff || surrogate ? 0 : bytes;
}

bool kvl_session_name_is_valid(const char *name) {
    if (name == NULL)
        return false;
    size_t length = strnlen(name, KVL_SESSION_NAME_MAX + 1);
    if (length == 0 || length > KVL_SESSION_NAME_MAX)
        return false;
    const uint8_t *at = (const uint8_t *)name;
    while (*at != 0) {
        uint32_t code = 0;
        unsigned bytes = decode(at, &code);
        bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
        if (bytes == 0 || control || code == '/')
            return false;
        at += bytes;
    }
    return true;
}

bool kvl_session_full_name_is_valid(const char *name) {
    char tenant[KVL_TENANT_NAME_MAX + 1];
    const char *slash = name == NULL ? NULL : strchr(name, '/');
    if (slash == NULL)
        return kvl_session_name_is_valid(name);
    size_t length = (size_t)(slash - name);
    if (length > KVL_TENANT_NAME_MAX ||
        strnlen(name, KVL_SESSION_NAME_MAX + 1) > KVL_SESSION_NAME_MAX)
        return false;
    memcpy(tenant, name, length);
    tenant[length] = '\0';
    return kvl_tenant_name_is_valid(tenant) && kvl_session_name_is_valid(slash + 1);
}

/* ---- the set ------------------------------------------------------------------------------ */

/* Names without a tenant first, then by tenant, then by name: '/' is in no name. */
static int order_of(const char *a, const char *b) {
    const char *slash_a = strchr(a, '/'), *slash_b = strchr(b, '/');
    if (slash_a == NULL || slash_b == NULL)
        return slash_a == slash_b ? strcmp(a, b) : slash_a == NULL ? -1 : 1;
    size_t length_a = (size_t)(slash_a - a), length_b = (size_t)(slash_b - b);
    int order = memcmp(a, b, length_a < length_b ? length_a : length_b);
    if (order != 0 || length_a == length_b)
        return order != 0 ? order : strcmp(slash_a, slash_b);
    return length_a < length_b ? -1 : 1;
}

/* Where the name is, or belongs. */
static uint32_t position(const struct kvl_session_set *set, const char *name, bool *found) {
    uint32_t low = 0, high = set->count;
    *found = false;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = order_of(set->sessions[middle]->info.name, name);
        if (order == 0) {
            *found = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct kvl_session *kvl_session_find(const struct kvl_session_set *set, const char *name) {
    bool found;
    uint32_t at = position(set, name, &found);
    return found ? set->sessions[at] : NULL;
}

struct kvl_session *kvl_session_set_at(const struct kvl_session_set *set, uint32_t index) {
    return index < set->count ? set->sessions[index] : NULL;
}

uint32_t kvl_session_count(const struct kvl_session_set *set) {
    return set->count;
}

/* The first session from `low` on that is not of the tenant any more, or not yet. */
static uint32_t bound(const struct kvl_session_set *set, uint32_t low, const char *edge) {
    uint32_t high = set->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (order_of(set->sessions[middle]->info.name, edge) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct kvl_session_range kvl_session_range(
    const struct kvl_session_set *set, const char *tenant_name) {
    /* No session is called "TENANT/" or has a name from \xff on. */
    char first[KVL_TENANT_NAME_MAX + 3], end[KVL_TENANT_NAME_MAX + 3];
    const char *slash = tenant_name[0] != '\0' ? "/" : "";
    snprintf(first, sizeof(first), "%s%s", tenant_name, slash);
    snprintf(end, sizeof(end), "%s%s\xff", tenant_name, slash);
    uint32_t from = bound(set, 0, first);
    return (struct kvl_session_range){from, bound(set, from, end) - from};
}

kvl_err kvl_session_add(struct kvl_session_set *set, const char *name, struct kvl_session **out) {
    if (set->count >= KVL_SESSIONS_MAX)
        return KVL_ERR_LIMIT;
    if (set->count == set->room) {
        uint32_t room = set->room == 0 ? 16 : set->room * 2;
        struct kvl_session **all = realloc(set->sessions, room * sizeof(all[0]));
        if (all == NULL)
            return KVL_ERR_NOMEM;
        set->sessions = all;
        set->room = room;
    }
    struct kvl_session *session = calloc(1, sizeof(*session));
    if (session == NULL)
        return KVL_ERR_NOMEM;
    memcpy(session->info.name, name, strlen(name) + 1);
    bool found;
    uint32_t at = position(set, name, &found);
    memmove(
        set->sessions + at + 1, set->sessions + at, (set->count - at) * sizeof(set->sessions[0]));
    set->sessions[at] = session;
    set->count++;
    *out = session;
    return KVL_OK;
}

void kvl_session_remove(struct kvl_session_set *set, struct kvl_session *session) {
    bool found;
    uint32_t at = position(set, session->info.name, &found);
    if (!found)
        return;
    memmove(set->sessions + at, set->sessions + at + 1,
        (set->count - at - 1) * sizeof(set->sessions[0]));
    set->count--;
    session_free(session);
}

/* ---- tokens ------------------------------------------------------------------------------- */

static kvl_err ensure_tokens(struct kvl_session *session, uint64_t count) {
    if (count > KVL_SESSION_TOKENS_MAX)
        return KVL_ERR_TOOBIG;
    if (count <= session->token_room)
        return KVL_OK;
    uint64_t room = count > 2 * session->token_room ? count : 2 * session->token_room;
    uint32_t *tokens = realloc(session->tokens, room * sizeof(tokens[0]));
    if (tokens == NULL)
        return KVL_ERR_NOMEM;
    session->tokens = tokens;
    session->token_room = room;
    return KVL_OK;
}

kvl_err kvl_session_write(
    struct kvl_session *session, uint64_t from_token, const uint32_t *tokens, uint32_t count) {
    if (from_token > session->info.token_count)
        return KVL_ERR_INVALID;
    kvl_err err = ensure_tokens(session, from_token + count);
    if (err != KVL_OK)
        return err;
    if (count > 0)
        memcpy(session->tokens + from_token, tokens, count * sizeof(tokens[0]));
    if (from_token < session->info.token_count) {
        session->cut++;
        session->info.tail = (struct kvl_key){{0}};
        session->info.tail_tokens = 0;
        session->walk = (struct kvl_session_walk){0};
    }
    session->info.token_count = from_token + count;
    return KVL_OK;
}

uint32_t kvl_session_chunks(uint64_t token_count) {
    return (uint32_t)((token_count + KVL_SESSION_CHUNK_TOKENS - 1) / KVL_SESSION_CHUNK_TOKENS);
}

/* ---- records ------------------------------------------------------------------------------ */

static uint8_t *put_key(uint8_t *at, const struct kvl_key *key) {
    memcpy(at, key->bytes, KVL_KEY_BYTES);
    return at + KVL_KEY_BYTES;
}

static void get_key(const uint8_t **at, struct kvl_key *key) {
    memcpy(key->bytes, *at, KVL_KEY_BYTES);
    *at += KVL_KEY_BYTES;
}

void kvl_session_record(const struct kvl_session *session, uint8_t out[KVL_SESSION_RECORD_BYTES]) {
    const struct kvl_session_info *info = &session->info;
    uint8_t *at = kvl_le_put(out, KVL_SESSION_RECORD_VERSION, 1);
    at = kvl_le_put(at, session->cut, 8);
    at = put_key(at, &info->namespace_key);
    at = kvl_le_put(at, info->token_count, 8);
    at = put_key(at, &info->tail);
    at = kvl_le_put(at, info->tail_tokens, 4);
    kvl_le_put(at, info->updated_wall_ns, 8);
}

uint32_t kvl_session_chunk(
    const struct kvl_session *session, uint32_t chunk, uint8_t out[KVL_SESSION_CHUNK_BYTES]) {
    uint64_t first = (uint64_t)chunk * KVL_SESSION_CHUNK_TOKENS;
    uint64_t end = first + KVL_SESSION_CHUNK_TOKENS;
    if (end > session->info.token_count)
        end = session->info.token_count;
    uint8_t *at = kvl_le_put(out, session->cut, 8);
    for (uint64_t i = first; i < end; i++)
        at = kvl_le_put(at, session->tokens[i], 4);
    return (uint32_t)(at - out);
}

uint32_t kvl_session_chunk_key(const struct kvl_session *session, uint32_t chunk,
    uint8_t out[KVL_SESSION_CHUNK_KEY_BYTES_MAX]) {
    uint32_t length = (uint32_t)strlen(session->info.name) + 1;
    memcpy(out, session->info.name, length);
    for (unsigned i = 0; i < 4; i++)
        out[length + i] = (uint8_t)(chunk >> (24 - 8 * i));
    return length + 4;
}

/* ---- loading ------------------------------------------------------------------------------ */

static kvl_err find_or_add(struct kvl_session_set *set, const void *name_bytes, uint32_t length,
    struct kvl_session **out) {
    char name[KVL_SESSION_NAME_MAX + 1];
    if (length > KVL_SESSION_NAME_MAX)
        return KVL_ERR_INVALID;
    memcpy(name, name_bytes, length);
    name[length] = '\0';
    if (strlen(name) != length || !kvl_session_full_name_is_valid(name))
        return KVL_ERR_INVALID;
    *out = kvl_session_find(set, name);
    return *out != NULL ? KVL_OK : kvl_session_add(set, name, out);
}

kvl_err kvl_session_load_record(struct kvl_session_set *set, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    const uint8_t *at = value;
    struct kvl_session *session = NULL;
    if (value_bytes != KVL_SESSION_RECORD_BYTES || kvl_le_get(&at, 1) != KVL_SESSION_RECORD_VERSION)
        return KVL_ERR_INVALID;
    kvl_err err = find_or_add(set, key, key_bytes, &session);
    if (err != KVL_OK)
        return err;
    session->has_record = true;
    session->cut = kvl_le_get(&at, 8);
    get_key(&at, &session->info.namespace_key);
    session->recorded_tokens = kvl_le_get(&at, 8);
    get_key(&at, &session->info.tail);
    session->info.tail_tokens = (uint32_t)kvl_le_get(&at, 4);
    session->info.updated_wall_ns = kvl_le_get(&at, 8);
    return KVL_OK;
}

static kvl_err take_chunk(
    struct kvl_session *session, const uint8_t *at, uint32_t count, uint64_t cut) {
    kvl_err err = ensure_tokens(session, session->info.token_count + count);
    if (err != KVL_OK)
        return err;
    for (uint32_t i = 0; i < count; i++)
        session->tokens[session->info.token_count++] = (uint32_t)kvl_le_get(&at, 4);
    session->chunk_cut = cut;
    session->chunks_taken++;
    return KVL_OK;
}

kvl_err kvl_session_load_chunk(struct kvl_session_set *set, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    const uint8_t *bytes = key;
    const uint8_t *at = value;
    struct kvl_session *session = NULL;
    if (key_bytes < 6 || bytes[key_bytes - 5] != 0 || value_bytes < 8 || value_bytes % 4 != 0 ||
        value_bytes > KVL_SESSION_CHUNK_BYTES)
        return KVL_ERR_INVALID;
    kvl_err err = find_or_add(set, key, key_bytes - 5, &session);
    if (err != KVL_OK)
        return err;
    uint32_t chunk = 0;
    for (unsigned i = 0; i < 4; i++)
        chunk = chunk << 8 | bytes[key_bytes - 4 + i];
    uint64_t cut = kvl_le_get(&at, 8);
    bool follows = chunk == session->chunks_taken && cut >= session->chunk_cut &&
                   session->info.token_count % KVL_SESSION_CHUNK_TOKENS == 0;
    if (!follows)
        session->chunks_over = true;
    return session->chunks_over ? KVL_OK : take_chunk(session, at, (value_bytes - 8) / 4, cut);
}

bool kvl_session_load_finish(struct kvl_session *session) {
    if (!session->has_record)
        return false;
    /* A newer chunk than the record: the record did not make it, the text ends with the chunk. */
    bool record_is_older = session->chunks_taken > 0 && session->chunk_cut > session->cut;
    if (!record_is_older && session->recorded_tokens < session->info.token_count)
        session->info.token_count = session->recorded_tokens;
    if (record_is_older)
        session->cut = session->chunk_cut;
    if (record_is_older || session->info.token_count != session->recorded_tokens) {
        session->info.tail = (struct kvl_key){{0}};
        session->info.tail_tokens = 0;
    }
    return true;
}

kvl_err kvl_session_tail_place(const struct kvl_session_info *info, const uint32_t *tokens,
    uint32_t block_tokens, struct kvl_session_place *place) {
    struct kvl_session_place next = *place;
    struct kvl_key key;
    if (kvl_key_is_zero(&info->tail))
        return KVL_ERR_NOTFOUND;
    for (;; next.whole++) {
        uint64_t at = next.whole * block_tokens;
        if (at + info->tail_tokens > info->token_count)
            return KVL_ERR_NOTFOUND;
        kvl_err err = kvl_key_of_block(
            &next.parent, tokens + at, info->tail_tokens, (struct kvl_bytes){0}, &key);
        if (err == KVL_OK && kvl_key_equal(&key, &info->tail)) {
            *place = next;
            return KVL_OK;
        }
        if (err == KVL_OK && at + block_tokens > info->token_count)
            return KVL_ERR_NOTFOUND;
        if (err == KVL_OK)
            err = kvl_key_of_block(
                &next.parent, tokens + at, block_tokens, (struct kvl_bytes){0}, &next.parent);
        if (err != KVL_OK)
            return err;
    }
}
