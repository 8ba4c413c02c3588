/* store.h - the owner of all metadata: blocks, leases, tickets, namespaces, sessions, pins.
 *
 * One thread calls everything here, poll included; nothing blocks, no lock is taken. The table
 * answers from RAM. A block is in zero or more tiers at once; it is visible only when sealed and
 * its hash taken. Sealed blocks are persisted behind (disk tier present), demoted device -> host
 * when the device runs full, dropped from host when that is full; children before parents, but
 * in window groups (kvl_key.h, layer_group) by use alone. A device
 * that is lost (its tier answers CLOSED) is told of once, in log and status; from then on it
 * says NOSPC, and host and disk go on.
 *
 * Tenants (tenant.h): keys are inside keys everywhere here but in sessions, whose names are
 * "TENANT/NAME" for every tenant but the default one; whoever serves clients turns keys and names.
 * A `tenant` argument narrows what is seen to one tenant's, or is KVL_TENANT_ALL.
 *
 * Clients: opened and closed by the server; closing a client (its proven death, or its word that
 * nothing of it uses the memory any more) ends its leases,
 * returns its unsealed slots and hands keys it was filling to the first waiter.
 *
 * What is handed out points into the store and lives until the next call, unless said otherwise. */
#ifndef KVL_STORE_H
#define KVL_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "block.h"
#include "catalog.h"
#include "kvl_err.h"
#include "kvl_key.h"
#include "kvl_types.h"
#include "log.h"
#include "policy.h"
#include "tenant.h"
#include "ticket.h"
#include "tier.h"

/* Room that the host must have beside a device that the CPU cannot address. */
#define KVL_FAR_HOST_BLOCKS_MIN 8u

struct kvl_store;

struct kvl_store_options {
    struct kvl_tier *device;                  /* required */
    struct kvl_tier *host;                    /* NULL: demoted blocks live on disk only; a device
                                                 without addresses needs one */
    struct kvl_tier *disk;                    /* NULL: nothing outlives the process */
    struct kvl_catalog *catalog;              /* with disk */
    const struct kvl_policy_ops *policy;      /* NULL: lru */
    uint64_t client_lease_bytes_max;          /* per client; 0: no limit */
    uint32_t hash_threads;                    /* seal hashing; 0: one */
    const struct kvl_tenant_options *tenants; /* beside the default one, or its quotas */
    uint32_t tenant_count;
    struct kvl_log *log;
};

/* Owns: the tiers stay the caller's, and outlive the store. */
KVL_MUST_CHECK kvl_err kvl_store_create(
    const struct kvl_store_options *options, struct kvl_store **out, struct kvl_errmsg *msg);
/* Flushes nothing; drain first (kvl_store_drain). Waits for what is in flight; afterwards the tiers
 * may only be drained and ended. NULL is fine. */
void kvl_store_destroy(struct kvl_store *store);

/* Readable when poll has work (an epoll fd over tiers and workers). */
int kvl_store_fd(const struct kvl_store *store);
void kvl_store_poll(struct kvl_store *store);
/* True once every block that was on disk at start is in the table. Until then callers may release,
 * ask for tickets, reports and events, and open known namespaces; look up, restore and prefetch
 * keys that were sought; and, once checked, open any namespace, use sessions, and allocate, seal
 * and pin keys that were sought. They hold back everything else. */
bool kvl_store_is_loaded(const struct kvl_store *store);
/* All but the blocks is known, and it is certain which blocks there are, if one seeks them. */
bool kvl_store_is_checked(const struct kvl_store *store);

/* What a request that came before loaded waits for. Zeroed: nothing yet. */
struct kvl_seek {
    bool leading; /* the caller's: keys behind the first that is nowhere are of no interest */
    uint64_t number;
    bool open; /* it was over, and it was not certain that the rest is not there */
};
/* Whether the table knows of these keys all that there is to know; else they are being sought, as
 * far as there is room for it: ask again when kvl_store_seek_news has changed. */
bool kvl_store_seek(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_seek *seek);
/* Whether asking again is of no use yet. */
bool kvl_store_seek_waits(const struct kvl_store *store, const struct kvl_seek *seek);
/* Changes with everything that a seek may wait for. */
uint64_t kvl_store_seek_news(const struct kvl_store *store);
/* Before loaded there may be more of them on disk. */
bool kvl_store_namespace_is_known(struct kvl_store *store, const struct kvl_key *key);
/* Blocks until all sealed blocks are durable and nothing is in flight, or until deadline_ns of
 * kvl_clock_ns (UINT64_MAX: however long it takes). Errors: TIMEOUT (the report says how many
 * blocks are not durable; while the disk hangs, destroy would hang too), IO. */
KVL_MUST_CHECK kvl_err kvl_store_drain(struct kvl_store *store, uint64_t deadline_ns);

struct kvl_ticket_pool *kvl_store_tickets(struct kvl_store *store);
struct kvl_tier *kvl_store_tier(struct kvl_store *store, enum kvl_tier_kind kind); /* or NULL */
uint64_t kvl_store_epoch(const struct kvl_store *store); /* random, never 0 */

/* ---- tenants ------------------------------------------------------------------------------ */

/* The number of the admitted tenant of that name; KVL_TENANT_ALL: there is none. */
uint32_t kvl_store_tenant(const struct kvl_store *store, const char *name);
/* What turns its keys (kvl_tenant_turn_key); zero for KVL_TENANT_ALL. */
struct kvl_key kvl_store_salt(const struct kvl_store *store, uint32_t tenant);
/* By position, among those the view has; false past the last. */
bool kvl_store_tenant_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_tenant_report *out);

/* Whether a client that the view has holds the ticket. */
bool kvl_store_ticket_is_of(struct kvl_store *store, uint32_t tenant, struct kvl_ticket ticket);

/* ---- clients ------------------------------------------------------------------------------ */

struct kvl_client_info {
    uint32_t pid;
    uint32_t uid;
    char name[64];
    bool attached;   /* has mapped the arenas: may lease */
    bool sees_all;   /* an operator's: flush, verify and clear mean everybody's blocks */
    uint32_t tenant; /* whose blocks it stores */
};

KVL_MUST_CHECK kvl_err kvl_store_client_open(
    struct kvl_store *store, const struct kvl_client_info *info, uint32_t *client);
void kvl_store_client_close(struct kvl_store *store, uint32_t client);
/* The client asks for nothing any more, but may still use the memory: its tickets, waits and
 * sessions end, its leases stay. False when it has none: it can be closed. */
bool kvl_store_client_leave(struct kvl_store *store, uint32_t client);

/* ---- namespaces --------------------------------------------------------------------------- */

/* Errors: INVALID, LIMIT, NOMEM, TOOBIG (blocks that the disk cannot take), NOSPC (too few fit the
 * host to pass through it to the device); the log and status name the smallest capacity that works.
 */
KVL_MUST_CHECK kvl_err kvl_store_namespace_open(struct kvl_store *store, uint32_t tenant,
    const struct kvl_namespace_request *request, struct kvl_namespace_info *out);
/* By position; false past the last. */
bool kvl_store_namespace_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_namespace_info *out);

/* ---- blocks ------------------------------------------------------------------------------- */

/* found[i]: bit mask (1 << enum kvl_tier_kind) of the tiers that hold block i; returns how many
 * leading keys are somewhere (entries after the first miss are 0). */
uint32_t kvl_store_lookup(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, uint8_t *found);
/* The same of every key, whether those before it are anywhere or not; 0: nowhere, or
 * KVL_FOUND_SEALING. At most KVL_CHAIN_BLOCKS_MAX of them. */
void kvl_store_lookup_each(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, uint8_t *found);
/* After kvl_store_lookup_each: of an attached client, which restores only what was found, the keys
 * that are nowhere are its tenant's misses; the first time when it asks again. */
void kvl_store_count_looked(struct kvl_store *store, uint32_t client, const struct kvl_key *keys,
    uint32_t count, const uint8_t *found);

struct kvl_restore_request {
    uint32_t client;
    enum kvl_tier_kind target; /* DEVICE (resident use) or HOST (offload use) */
    const struct kvl_key *keys;
    uint32_t count;
    enum kvl_io_priority priority;
};

struct kvl_restore_reply {
    uint32_t count;           /* leading blocks leased; blocks[] has that many entries */
    bool out_of_space;        /* more were there, but leases fill the tier */
    struct kvl_ticket ticket; /* none when all of them were resident: nothing to wait for */
};

/* Leases what it can of a chain and starts bringing it to the target tier. The ticket's word has
 * blocks_ready and layers_ready; final status OK, or CORRUPT / IO / CANCELED when only the leading
 * blocks_ready blocks came (the others' leases stay the client's to release). values[0..2]: bytes
 * moved from device, host, disk. Errors: INVALID, LIMIT (client's leases or tickets), PERM, AGAIN
 * (nothing was leased, ask again soon: the tier's memory is still being touched after start, or the
 * next block was sealed a moment ago and is being hashed). */
KVL_MUST_CHECK kvl_err kvl_store_restore(struct kvl_store *store,
    const struct kvl_restore_request *request, struct kvl_restored *blocks,
    struct kvl_restore_reply *reply);

/* Restore without leases: the blocks are in the target tier when the ticket ends. values[0]: blocks
 * moved. */
KVL_MUST_CHECK kvl_err kvl_store_prefetch(struct kvl_store *store, uint32_t client,
    const struct kvl_key *keys, uint32_t count, enum kvl_tier_kind target,
    struct kvl_ticket *ticket);

/* The operator's push downwards: the blocks of a chain leave every tier above `target` (HOST or
 * DISK), copied there first where they are not yet; leased blocks stay. The ticket ends when they
 * are there; values[0]: blocks that left a tier. */
KVL_MUST_CHECK kvl_err kvl_store_demote(struct kvl_store *store, uint32_t client,
    const struct kvl_key *keys, uint32_t count, enum kvl_tier_kind target,
    struct kvl_ticket *ticket);

struct kvl_alloc_request {
    uint32_t client;
    uint32_t namespace_id;
    enum kvl_tier_kind target;
    const struct kvl_key *keys; /* zero: not known yet (a block of tokens still to be generated) */
    uint32_t count;
    bool wait; /* make a ticket for the first PENDING block */
};

/* The ticket, if any, ends OK with values[0] = 0 when that block was sealed, or with values[0] =
 * the write lease and values[1] = its offset when the filler died and this client inherited the
 * key. Errors: INVALID, NOTFOUND (namespace), LIMIT (tickets), PERM, NOMEM, AGAIN (as restore);
 * then nothing was granted. */
KVL_MUST_CHECK kvl_err kvl_store_alloc(struct kvl_store *store,
    const struct kvl_alloc_request *request, struct kvl_allocated *blocks,
    struct kvl_ticket *ticket);

struct kvl_seal_request {
    uint32_t client;
    uint64_t lease;
    struct kvl_key parent;  /* the block before, or the namespace's key for the first */
    const uint32_t *tokens; /* token_count of them: block_tokens, or fewer for a tail */
    uint32_t token_count;
    struct kvl_bytes extra;
    bool opaque; /* parent unused; opaque_key instead of tokens */
    uint8_t opaque_key[32];
};

/* The write lease becomes a read lease of the sealed block. The block becomes visible once its
 * hash was taken, behind this call; when a device fails at that, it never does, and the slot stays
 * the client's own until release. EXISTS: the key is sealed already; the slot stays the client's
 * private one until release. INVALID: the computed key is not the one alloc was told. */
KVL_MUST_CHECK kvl_err kvl_store_seal(
    struct kvl_store *store, const struct kvl_seal_request *request, struct kvl_key *key);
/* The key that it would be sealed under; false: it would be refused. */
bool kvl_store_seal_key(
    struct kvl_store *store, const struct kvl_seal_request *request, struct kvl_key *key);

/* Unknown or foreign leases and tickets are ignored and counted. Unsealed slots are freed. */
void kvl_store_release(struct kvl_store *store, uint32_t client, const uint64_t *leases,
    uint32_t lease_count, const struct kvl_ticket *tickets, uint32_t ticket_count);

/* Pins (operator's) of the leading known blocks of a chain; returns how many. Survive restarts.
 * They are taken back from all of a chain, also behind unknown blocks, as a window that went on
 * leaves pinned ones behind; returns how many were. */
uint32_t kvl_store_pin(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, bool pinned);

/* ---- clear, flush, verify ----------------------------------------------------------------- */

struct kvl_clear_request {
    uint32_t client;
    enum kvl_clear_scope scope;
    uint32_t namespace_id;
    const char *name; /* session: its record and the blocks only it uses; tenant: NULL is the own */
};

/* Blocks under a lease vanish from the table at once and their slots when released. The ticket
 * ends when the deletions are durable; values[0]: blocks cleared. Pinned blocks are cleared too.
 * What the client may not see is not there. Errors: NOTFOUND; BUSY (a session, or one of the
 * tenant's, is open). */
KVL_MUST_CHECK kvl_err kvl_store_clear(
    struct kvl_store *store, const struct kvl_clear_request *request, struct kvl_ticket *ticket);
/* Ends when everything sealed before is durable; with an error when the disk refused some of it,
 * which then is in memory only. Without a disk: ends once all of it is visible. */
KVL_MUST_CHECK kvl_err kvl_store_flush(
    struct kvl_store *store, uint32_t client, struct kvl_ticket *ticket);
/* Reads every block of every tier and checks its hash. values[0]: blocks checked, values[1]: those
 * with a bad copy (it is dropped, and the block when no other is left), values[2]: blocks in all.
 */
KVL_MUST_CHECK kvl_err kvl_store_verify(
    struct kvl_store *store, uint32_t client, struct kvl_ticket *ticket);

/* ---- sessions ----------------------------------------------------------------------------- */

/* Opens for writing, creates when absent. BUSY: info's holder fields say who. INVALID: it belongs
 * to another namespace (info.namespace_key). */
KVL_MUST_CHECK kvl_err kvl_store_session_open(struct kvl_store *store, uint32_t client,
    const char *name, const struct kvl_key *namespace_key, struct kvl_session_info *info);
/* Cuts the session to from_token tokens and appends. PERM unless this client holds it. */
KVL_MUST_CHECK kvl_err kvl_store_session_append(struct kvl_store *store, uint32_t client,
    const char *name, uint64_t from_token, const uint32_t *tokens, uint32_t count);
/* The sealed tail block that follows the whole blocks; zero key: none. */
KVL_MUST_CHECK kvl_err kvl_store_session_tail(struct kvl_store *store, uint32_t client,
    const char *name, const struct kvl_key *tail, uint32_t tail_tokens);
KVL_MUST_CHECK kvl_err kvl_store_session_close(
    struct kvl_store *store, uint32_t client, const char *name);
KVL_MUST_CHECK kvl_err kvl_store_session_drop(
    struct kvl_store *store, uint32_t client, const char *name, struct kvl_session_info *info);
/* NOTFOUND. tokens may be NULL; else up to max tokens from from_token, *count of them. */
KVL_MUST_CHECK kvl_err kvl_store_session_read(struct kvl_store *store, const char *name,
    uint64_t from_token, uint32_t max, uint32_t *tokens, uint32_t *count,
    struct kvl_session_info *info);
/* By position in order of name; false past the last. */
bool kvl_store_session_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_session_info *out);

/* ---- what people look at ------------------------------------------------------------------ */

/* Of one tenant: what is its own; capacity is its quota where that is less. What is nobody's own
 * (ghosts, the table, transfers under way) is zero. */
void kvl_store_report(struct kvl_store *store, uint32_t tenant, struct kvl_store_report *out);

bool kvl_store_client_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_client_report *out);

/* Pages through the table: *cursor 0 at first; returns entries written; 0 at the end. Blocks that
 * come or go in between may be missed, none is listed twice. */
uint32_t kvl_store_list(struct kvl_store *store, uint32_t tenant, uint64_t *cursor, uint32_t max,
    struct kvl_block_report *out);

/* Events with sequence > after, oldest first; *oldest is the first one still kept, so a gap shows
 * as *oldest > after + 1. A tenant's are numbered by themselves. */
uint32_t kvl_store_events(struct kvl_store *store, uint32_t tenant, uint64_t after, uint32_t max,
    struct kvl_event *out, uint64_t *oldest);

#endif
