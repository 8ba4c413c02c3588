/* session.h - conversations by name: their tokens in RAM, and how they are written down.
 *
 * A session is a record and chunks of KVL_SESSION_CHUNK_TOKENS token ids each:
 *
 *   record: version u8 = 1 | cut u64le | namespace 32 | token_count u64le | tail 32 |
 *           tail_tokens u32le | updated_wall_ns u64le                             = 93 bytes
 *   chunk:  cut u64le | token ids u32le each
 *
 * `cut` counts how often the session was shortened. Chunks are put before their record; if only
 * some of that became durable, a chunk with a smaller cut than the one before it is of an earlier
 * text and is left out, with all after it. What remains is always a true beginning.
 *
 * A named tenant's sessions are called "TENANT/NAME" here and on disk, so that two tenants may use
 * the same name; the default tenant's stand before all others. Keys are as clients know them.
 *
 * Owns: the sessions. Pointers live until remove. Threads: one. Blocks: never. */
#ifndef KVL_SESSION_H
#define KVL_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "kvl_types.h"

#define KVL_SESSION_CHUNK_TOKENS 1024u
#define KVL_SESSION_TOKENS_MAX (1u << 24)
#define KVL_SESSIONS_MAX 65536u
#define KVL_SESSION_RECORD_BYTES 93u
#define KVL_SESSION_CHUNK_BYTES (8u + 4u * KVL_SESSION_CHUNK_TOKENS)
#define KVL_SESSION_CHUNK_KEY_BYTES_MAX (KVL_SESSION_NAME_MAX + 1u + 4u)

/* In the tokens' chain of blocks: so many whole ones, and the key behind them. */
struct kvl_session_place {
    uint64_t whole;
    struct kvl_key parent;
};

/* Where a tail stood last, in the chain of the session's namespace and in that of another layer
 * group: tails move on, so the next one is looked for from there, and no token is hashed again. */
struct kvl_session_walk {
    uint32_t block_tokens; /* 0: at the beginning */
    struct kvl_session_place own, other;
    struct kvl_key other_root;
};

struct kvl_session {
    struct kvl_session_info info; /* token_count is the length of tokens */
    uint32_t holder;              /* client; 0: not open */
    uint64_t cut;
    uint32_t *tokens;
    uint64_t token_room;
    struct kvl_session_walk walk;
    uint64_t recorded_tokens; /* while loading: what the record says */
    uint64_t chunk_cut;       /* while loading: of the last chunk taken */
    uint32_t chunks_taken;
    bool has_record;
    bool chunks_over; /* while loading: what follows is stale */
};

struct kvl_session_set;

KVL_MUST_CHECK kvl_err kvl_session_set_create(struct kvl_session_set **out);
void kvl_session_set_destroy(struct kvl_session_set *set); /* NULL is fine */

/* 1..KVL_SESSION_NAME_MAX bytes of printable UTF-8 without '/'. */
bool kvl_session_name_is_valid(const char *name);
/* The same, or a tenant's name, '/' and the same: KVL_SESSION_NAME_MAX bytes in all. */
bool kvl_session_full_name_is_valid(const char *name);

struct kvl_session *kvl_session_find(const struct kvl_session_set *set, const char *name);
/* In order of name; NULL past the last. */
struct kvl_session *kvl_session_set_at(const struct kvl_session_set *set, uint32_t index);
uint32_t kvl_session_count(const struct kvl_session_set *set);
/* Where a tenant's sessions begin and how many there are ("": the default tenant's). */
struct kvl_session_range {
    uint32_t first, count;
};
struct kvl_session_range kvl_session_range(
    const struct kvl_session_set *set, const char *tenant_name);
/* The name must be valid and new. Errors: NOMEM, LIMIT. */
KVL_MUST_CHECK kvl_err kvl_session_add(
    struct kvl_session_set *set, const char *name, struct kvl_session **out);
void kvl_session_remove(struct kvl_session_set *set, struct kvl_session *session);

/* Cuts to from_token and appends. Errors: INVALID (from_token past the end), TOOBIG, NOMEM; then
 * nothing has changed. */
KVL_MUST_CHECK kvl_err kvl_session_write(
    struct kvl_session *session, uint64_t from_token, const uint32_t *tokens, uint32_t count);

/* Moves *place, which begins with no blocks and the namespace's key, or wherever these tokens'
 * chain has been before, on to where the tail stands. That is not written down: it is where the
 * tokens make its key. Errors, and then *place stays: NOTFOUND (no tail, or none from there on),
 * those of kvl_key_of_block. */
KVL_MUST_CHECK kvl_err kvl_session_tail_place(const struct kvl_session_info *info,
    const uint32_t *tokens, uint32_t block_tokens, struct kvl_session_place *place);

uint32_t kvl_session_chunks(uint64_t token_count);
void kvl_session_record(const struct kvl_session *session, uint8_t out[KVL_SESSION_RECORD_BYTES]);
/* Returns the bytes used of out. */
uint32_t kvl_session_chunk(
    const struct kvl_session *session, uint32_t chunk, uint8_t out[KVL_SESSION_CHUNK_BYTES]);
uint32_t kvl_session_chunk_key(const struct kvl_session *session, uint32_t chunk,
    uint8_t out[KVL_SESSION_CHUNK_KEY_BYTES_MAX]);

/* Loading: records and chunks as the catalog tells them, the chunks of one session in order;
 * then finish each. Malformed ones are left out: INVALID. */
KVL_MUST_CHECK kvl_err kvl_session_load_record(struct kvl_session_set *set, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes);
KVL_MUST_CHECK kvl_err kvl_session_load_chunk(struct kvl_session_set *set, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes);
/* False: chunks without a record; remove it. */
bool kvl_session_load_finish(struct kvl_session *session);

#endif
