/* wire.h - every message of kvloft's control protocol and of the attach socket, as plain structs
 * and one coder per message. docs/wire.md has the byte tables.
 *
 * A coder walks a message's fields in wire order and either writes or reads each of them, so that
 * encoding and decoding cannot disagree. Decoding is zero copy: pointers in a decoded struct point
 * into the message and live as long as it does; they have no alignment beyond what their type
 * needs when read through memcpy, except struct kvl_key (bytes). Pure: no I/O, no globals.
 *
 * Nothing here trusts a message: every count is bounded, every read is checked, trailing bytes,
 * unterminated texts and non-zero padding are INVALID.
 * Threads: any. */
#ifndef KVL_WIRE_H
#define KVL_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "kvl_key.h"
#include "kvl_types.h"

#define KVL_WIRE_MAGIC 0x4d4c564bu    /* "KVLM" */
#define KVL_ATTACH_MAGIC 0x414c564bu  /* "KVLA" */
#define KVL_GOODBYE_MAGIC 0x474c564bu /* "KVLG" */
#define KVL_WIRE_VERSION 4u
#define KVL_WIRE_HEADER_BYTES 56u
#define KVL_WIRE_MESSAGE_BYTES_MAX (4u << 20)
#define KVL_WIRE_TOKEN_BYTES 16u
#define KVL_WIRE_PROOF_BYTES 32u
#define KVL_WIRE_NAME_BYTES 64u
#define KVL_WIRE_LIST_MAX 4096u             /* blocks or events in one reply */
#define KVL_WIRE_SESSION_TOKENS_MAX 262144u /* tokens in one append or read */

/* ---- coding ------------------------------------------------------------------------------- */

struct kvl_wire {
    uint8_t *out;      /* encoding; NULL with bytes 0 measures */
    const uint8_t *in; /* decoding */
    uint64_t bytes;    /* room in out, or length of in */
    uint64_t used;     /* encoding: grows past bytes, so that the need is known */
    bool encoding;
    kvl_err err; /* first error while decoding */
};

typedef void (*kvl_wire_coder)(struct kvl_wire *wire, void *message);

struct kvl_wire_buffer {
    uint8_t *data;
    uint64_t bytes, capacity;
};

/* Fixed part of every message. The first eight bytes and the place of status never change, so
 * that versions can tell each other apart. */
struct kvl_wire_header {
    uint16_t version;
    uint16_t verb;
    uint32_t status; /* reply: kvl_err; request: 0 */
    uint32_t client;
    uint8_t token[KVL_WIRE_TOKEN_BYTES]; /* reply: zero */
    uint64_t epoch;
    uint64_t sequence;
    uint32_t body_bytes;
};

/* Encodes header (body_bytes is filled in) and body into buffer, growing it. coder may be NULL.
 * Errors: TOOBIG (over KVL_WIRE_MESSAGE_BYTES_MAX), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_wire_encode(struct kvl_wire_buffer *buffer,
    struct kvl_wire_header *header, kvl_wire_coder coder, void *message);
void kvl_wire_buffer_free(struct kvl_wire_buffer *buffer);
/* Errors: INVALID (not a message of ours), VERSION (header is filled in, body is not to be read).
 */
KVL_MUST_CHECK kvl_err kvl_wire_decode_header(
    const void *data, uint64_t bytes, struct kvl_wire_header *out);
/* Exactly `bytes` bytes must be used up. INVALID. */
KVL_MUST_CHECK kvl_err kvl_wire_decode(
    kvl_wire_coder coder, const void *data, uint64_t bytes, void *message);

/* ---- verbs -------------------------------------------------------------------------------- */

/* X(NAME, number, request coder, reply coder, flags). Numbers are never reused. */
#define KVL_WIRE_VERB_LIST(X)                                                                      \
    X(HELLO, 1, kvl_wire_hello, kvl_wire_hello_reply, KVL_WIRE_EARLY)                              \
    X(PING, 2, kvl_wire_blob, kvl_wire_blob, KVL_WIRE_EARLY)                                       \
    X(NAMESPACE_OPEN, 3, kvl_wire_namespace, kvl_wire_namespace_info, KVL_WIRE_SOUGHT)             \
    X(NAMESPACE_AT, 4, kvl_wire_u32_message, kvl_wire_namespace_info, KVL_WIRE_CHECKED)            \
    X(LOOKUP, 5, kvl_wire_chain, kvl_wire_found, KVL_WIRE_SOUGHT)                                  \
    X(RESTORE, 6, kvl_wire_chain, kvl_wire_restored, KVL_WIRE_LEASING | KVL_WIRE_SOUGHT)           \
    X(PREFETCH, 7, kvl_wire_chain, kvl_wire_ticket, KVL_WIRE_SOUGHT)                               \
    X(ALLOC, 8, kvl_wire_chain, kvl_wire_allocated,                                                \
        KVL_WIRE_LEASING | KVL_WIRE_CHECKED | KVL_WIRE_SOUGHT)                                     \
    X(SEAL, 9, kvl_wire_seals, kvl_wire_sealed,                                                    \
        KVL_WIRE_LEASING | KVL_WIRE_CHECKED | KVL_WIRE_SOUGHT)                                     \
    X(RELEASE, 10, kvl_wire_release, kvl_wire_empty, KVL_WIRE_EARLY)                               \
    X(PIN, 11, kvl_wire_chain, kvl_wire_u32_message, KVL_WIRE_CHECKED | KVL_WIRE_SOUGHT)           \
    X(SESSION_OPEN, 12, kvl_wire_session_open, kvl_wire_session_info,                              \
        KVL_WIRE_BODY_ON_ERROR | KVL_WIRE_CHECKED)                                                 \
    X(SESSION_READ, 13, kvl_wire_session_read, kvl_wire_session_tokens, KVL_WIRE_CHECKED)          \
    X(SESSION_APPEND, 14, kvl_wire_session_append, kvl_wire_empty, KVL_WIRE_CHECKED)               \
    X(SESSION_TAIL, 15, kvl_wire_session_tail, kvl_wire_empty, KVL_WIRE_CHECKED)                   \
    X(SESSION_CLOSE, 16, kvl_wire_session_name, kvl_wire_empty, KVL_WIRE_CHECKED)                  \
    X(SESSION_DROP, 17, kvl_wire_session_name, kvl_wire_session_info,                              \
        KVL_WIRE_BODY_ON_ERROR | KVL_WIRE_CHECKED)                                                 \
    X(SESSION_AT, 18, kvl_wire_u32_message, kvl_wire_session_info, KVL_WIRE_CHECKED)               \
    X(CLEAR, 19, kvl_wire_clear, kvl_wire_ticket, 0)                                               \
    X(FLUSH, 20, kvl_wire_empty, kvl_wire_ticket, 0)                                               \
    X(VERIFY, 21, kvl_wire_empty, kvl_wire_ticket, 0)                                              \
    X(TICKET_ASK, 22, kvl_wire_ticket, kvl_wire_progress, KVL_WIRE_EARLY)                          \
    X(STATS, 23, kvl_wire_empty, kvl_wire_stats, KVL_WIRE_EARLY)                                   \
    X(STATS_CLIENT, 24, kvl_wire_u32_message, kvl_wire_client_report, KVL_WIRE_EARLY)              \
    X(STATS_WARNING, 25, kvl_wire_u32_message, kvl_wire_blob, KVL_WIRE_EARLY)                      \
    X(LIST_BLOCKS, 26, kvl_wire_page, kvl_wire_blocks, 0)                                          \
    X(EVENTS, 27, kvl_wire_page, kvl_wire_events, KVL_WIRE_EARLY)                                  \
    X(DEMOTE, 28, kvl_wire_chain, kvl_wire_ticket, 0)                                              \
    X(STATS_TENANT, 29, kvl_wire_u32_message, kvl_wire_tenant_report, KVL_WIRE_EARLY)

#define KVL_WIRE_EARLY 1u         /* answered while the store is still loading */
#define KVL_WIRE_LEASING 2u       /* attached clients only */
#define KVL_WIRE_BODY_ON_ERROR 4u /* the reply has its body whatever the status */
#define KVL_WIRE_SOUGHT 8u        /* while loading: as soon as what it names was found, or is not */
#define KVL_WIRE_CHECKED 16u      /* while loading: once the index was checked */

enum kvl_wire_verb_number {
#define KVL_WIRE_VERB_ENUM(name, number, request, reply, flags) KVL_VERB_##name = (number),
    KVL_WIRE_VERB_LIST(KVL_WIRE_VERB_ENUM)
#undef KVL_WIRE_VERB_ENUM
        KVL_VERB_COUNT
};

struct kvl_wire_verb {
    const char *name;
    kvl_wire_coder request, reply;
    uint32_t flags;
};
/* NULL for a number that is no verb. */
const struct kvl_wire_verb *kvl_wire_verb(uint32_t number);

/* ---- requests ----------------------------------------------------------------------------- */

struct kvl_wire_hello {
    uint32_t pid;
    char name[KVL_WIRE_NAME_BYTES];
    char tenant[KVL_WIRE_NAME_BYTES]; /* tcp only, as all that follows; otherwise zero */
    uint8_t nonce[KVL_WIRE_PROOF_BYTES];
    uint8_t proof[KVL_WIRE_PROOF_BYTES]; /* under the tenant's secret, or the shared one */
};
struct kvl_wire_blob {
    uint32_t bytes;
    const uint8_t *data;
};
struct kvl_wire_chain {
    uint32_t namespace_id; /* alloc */
    uint32_t target;       /* enum kvl_tier_kind: restore, prefetch, alloc, demote */
    bool flag;             /* alloc: wait; pin: pinned; lookup: each */
    uint32_t count;        /* <= KVL_CHAIN_BLOCKS_MAX */
    const struct kvl_key *keys;
};
/* Items of unlike length, back to back: checked as a whole when decoded, then walked with
 * kvl_wire_seal_next from a cursor of 0. For encoding, items points to count structs. */
struct kvl_wire_seal {
    uint64_t lease;
    struct kvl_key parent;
    uint8_t opaque_key[32];
    bool opaque;
    uint32_t token_count; /* <= KVL_BLOCK_TOKENS_MAX */
    uint32_t extra_bytes;
    const uint8_t *tokens; /* u32le each */
    const uint8_t *extra;
};
struct kvl_wire_seals {
    uint32_t count;
    struct kvl_wire_seal *items; /* encoding */
    const uint8_t *data;         /* decoding */
    uint64_t data_bytes;
};
void kvl_wire_seal_next(
    const struct kvl_wire_seals *seals, uint64_t *cursor, struct kvl_wire_seal *out);
struct kvl_wire_release {
    uint32_t lease_count, ticket_count; /* <= KVL_CHAIN_BLOCKS_MAX */
    const uint8_t *leases;              /* u64le each */
    const uint8_t *tickets;             /* struct kvl_ticket each */
};
struct kvl_wire_session {
    char name[KVL_SESSION_NAME_MAX + 1];
    struct kvl_key key; /* open: the namespace; tail: the tail block */
    uint32_t tail_tokens;
    uint64_t from_token;
    uint32_t count; /* append: tokens here; read: at most so many */
    const uint8_t *tokens;
};
struct kvl_wire_clear {
    uint32_t scope; /* enum kvl_clear_scope */
    uint32_t namespace_id;
    char name[KVL_SESSION_NAME_MAX + 1]; /* session's or tenant's; empty: none */
};
struct kvl_wire_page {
    uint64_t cursor;
    uint32_t max; /* <= KVL_WIRE_LIST_MAX */
};

union kvl_wire_request {
    struct kvl_wire_hello hello;
    struct kvl_wire_blob blob;
    struct kvl_namespace_request namespace_open;
    uint32_t u32;
    struct kvl_wire_chain chain;
    struct kvl_wire_seals seals;
    struct kvl_wire_release release;
    struct kvl_wire_session session;
    struct kvl_wire_clear clear;
    struct kvl_ticket ticket;
    struct kvl_wire_page page;
};

/* ---- replies ------------------------------------------------------------------------------ */

struct kvl_wire_hello_reply {
    uint32_t client;
    uint64_t epoch;
    uint8_t token[KVL_WIRE_TOKEN_BYTES]; /* tcp only, otherwise zero: attach has told it */
    uint8_t proof[KVL_WIRE_PROOF_BYTES]; /* tcp only: the daemon knows the secret too */
};
struct kvl_wire_items {
    uint32_t count; /* bounded by verb */
    bool flag;      /* restored: out_of_space */
    struct kvl_ticket ticket;
    uint64_t cursor;  /* blocks: the next page's; events: the oldest one kept */
    const void *data; /* count items, see kvl_wire_sealed_item and kvl_types.h */
};
struct kvl_wire_sealed_item {
    uint32_t status;
    struct kvl_key key;
};
struct kvl_wire_session_tokens {
    struct kvl_session_info info;
    uint32_t count;
    const uint8_t *tokens; /* u32le each */
};
struct kvl_wire_progress {
    uint32_t status, blocks_ready, layers_ready;
    uint64_t values[5];
};
struct kvl_wire_stats {
    struct kvl_store_report report;
    char version[32];
    uint32_t pid;
    char device[32];
    char address[108];
    char disk_path[256];
    uint32_t persist_ms;
};

union kvl_wire_reply {
    struct kvl_wire_hello_reply hello;
    struct kvl_wire_blob blob;
    struct kvl_namespace_info namespace_info;
    struct kvl_wire_items items; /* found, restored, allocated, sealed, blocks, events */
    uint32_t u32;
    struct kvl_ticket ticket;
    struct kvl_session_info session;
    struct kvl_wire_session_tokens session_tokens;
    struct kvl_wire_progress progress;
    struct kvl_wire_stats stats;
    struct kvl_client_report client;
    struct kvl_tenant_report tenant;
};

/* ---- the attach socket -------------------------------------------------------------------- */

#define KVL_ATTACH_LOOK_ONLY 1u
#define KVL_ATTACH_BYTES_MAX 512u

struct kvl_attach_hello {
    uint32_t magic;
    uint16_t version;
    uint16_t flags;
    uint32_t pid;
    char name[KVL_WIRE_NAME_BYTES];
    char tenant[KVL_WIRE_NAME_BYTES]; /* empty: the default one, and nothing to prove */
    uint8_t nonce[KVL_WIRE_PROOF_BYTES];
    uint8_t proof[KVL_WIRE_PROOF_BYTES]; /* under the tenant's secret */
};
/* File descriptors ride along: one for each arena, in order, then the ticket words. */
struct kvl_attach_reply {
    uint32_t magic;
    uint16_t version;
    uint32_t status; /* kvl_err; unless OK all that follows is zero and no descriptor comes */
    uint32_t client;
    uint8_t token[KVL_WIRE_TOKEN_BYTES];
    uint64_t epoch;
    uint32_t ticket_words;
    uint32_t arena_count;
    struct {
        uint32_t kind;   /* enum kvl_tier_kind */
        uint32_t memory; /* enum kvl_arena_memory; decoded whatever it is */
        uint64_t bytes;
        uint8_t device_uuid[16]; /* KVL_ARENA_CUDA: the GPU; zero for a memfd */
    } arenas[KVL_TIER_COUNT];
};
/* Encode into a buffer of KVL_ATTACH_BYTES_MAX; return the length. */
uint32_t kvl_attach_encode_hello(struct kvl_attach_hello *hello, uint8_t *data);
uint32_t kvl_attach_encode_reply(struct kvl_attach_reply *reply, uint8_t *data);
/* INVALID; VERSION (magic, version and, in a reply, status are filled in). */
/* A client's last word: nothing of its process uses the memory any more. */
#define KVL_GOODBYE_BYTES 8u
void kvl_attach_encode_goodbye(uint8_t data[KVL_GOODBYE_BYTES]);
bool kvl_attach_is_goodbye(const void *data, uint64_t bytes);
KVL_MUST_CHECK kvl_err kvl_attach_decode_hello(
    const void *data, uint64_t bytes, struct kvl_attach_hello *out);
KVL_MUST_CHECK kvl_err kvl_attach_decode_reply(
    const void *data, uint64_t bytes, struct kvl_attach_reply *out);

/* ---- fields, for the coders --------------------------------------------------------------- */

void kvl_wire_raw(struct kvl_wire *wire, void *value, uint64_t bytes);
void kvl_wire_u16(struct kvl_wire *wire, uint16_t *value);
void kvl_wire_u32(struct kvl_wire *wire, uint32_t *value);
void kvl_wire_u64(struct kvl_wire *wire, uint64_t *value);
void kvl_wire_flag(struct kvl_wire *wire, bool *value); /* u32, 0 or 1 */
void kvl_wire_zero(struct kvl_wire *wire, uint32_t bytes);
void kvl_wire_key(struct kvl_wire *wire, struct kvl_key *key);
/* u32, at most max. */
void kvl_wire_count(struct kvl_wire *wire, uint32_t *count, uint32_t max);
/* Points into the message when decoding; padded with zeros to a multiple of four. */
void kvl_wire_array(struct kvl_wire *wire, const void **items, uint64_t count, uint64_t item_bytes);
/* Field of fixed width, ended by a NUL and filled with NULs. */
void kvl_wire_fixed_text(struct kvl_wire *wire, char *text, uint32_t text_bytes);
/* u32 length and that many bytes, none of them NUL, padded to four. capacity includes the NUL. */
void kvl_wire_text(struct kvl_wire *wire, char *text, uint32_t capacity);

/* ---- coders, named in KVL_WIRE_VERB_LIST --------------------------------------------------- */

void kvl_wire_empty(struct kvl_wire *wire, void *message);
void kvl_wire_u32_message(struct kvl_wire *wire, void *message);
void kvl_wire_blob(struct kvl_wire *wire, void *message);
void kvl_wire_ticket(struct kvl_wire *wire, void *message);
void kvl_wire_hello(struct kvl_wire *wire, void *message);
void kvl_wire_hello_reply(struct kvl_wire *wire, void *message);
void kvl_wire_namespace(struct kvl_wire *wire, void *message);
void kvl_wire_namespace_info(struct kvl_wire *wire, void *message);
void kvl_wire_chain(struct kvl_wire *wire, void *message);
void kvl_wire_found(struct kvl_wire *wire, void *message);
void kvl_wire_restored(struct kvl_wire *wire, void *message);
void kvl_wire_allocated(struct kvl_wire *wire, void *message);
void kvl_wire_seals(struct kvl_wire *wire, void *message);
void kvl_wire_sealed(struct kvl_wire *wire, void *message);
void kvl_wire_release(struct kvl_wire *wire, void *message);
void kvl_wire_session_open(struct kvl_wire *wire, void *message);
void kvl_wire_session_read(struct kvl_wire *wire, void *message);
void kvl_wire_session_append(struct kvl_wire *wire, void *message);
void kvl_wire_session_tail(struct kvl_wire *wire, void *message);
void kvl_wire_session_name(struct kvl_wire *wire, void *message);
void kvl_wire_session_info(struct kvl_wire *wire, void *message);
void kvl_wire_session_tokens(struct kvl_wire *wire, void *message);
void kvl_wire_clear(struct kvl_wire *wire, void *message);
void kvl_wire_progress(struct kvl_wire *wire, void *message);
void kvl_wire_stats(struct kvl_wire *wire, void *message);
void kvl_wire_client_report(struct kvl_wire *wire, void *message);
void kvl_wire_tenant_report(struct kvl_wire *wire, void *message);
void kvl_wire_page(struct kvl_wire *wire, void *message);
void kvl_wire_blocks(struct kvl_wire *wire, void *message);
void kvl_wire_events(struct kvl_wire *wire, void *message);

#endif
